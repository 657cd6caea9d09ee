"""Stores of sealed objects: a local folder, S3, any file system of fsspec, and a cache on disk in front of one.

The tour: ``ports`` (what a store promises, and what it needs of a bucket), ``layout`` (where an object lies, and what
makes it whole), ``transfer`` (one object in or out, hashed on the way), ``local``, ``fsspec_store`` (members first,
manifest last) over ``bucket`` or ``s3``, ``ranges`` (random access by range requests), ``patience`` (timeouts, retries
and errors), ``blocks`` and ``cache`` (ciphertext on the local disk), ``opening`` (a store from its URL). A store is
never trusted: docs/spec/stores.md says what it can and can't do.
"""

from .blocks import BlockCache, CacheCounts
from .cache import CachedStore
from .credentials import S3Credentials
from .fsspec_store import FsspecStore
from .local import LocalStore
from .opening import open_store
from .patience import Patience
from .ports import Store

__all__ = [
    "BlockCache",
    "CacheCounts",
    "CachedStore",
    "FsspecStore",
    "LocalStore",
    "Patience",
    "S3Credentials",
    "Store",
    "open_store",
]
