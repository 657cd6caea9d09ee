"""A store from its URL."""

from __future__ import annotations

import time
from collections.abc import Callable
from urllib.parse import urlsplit

import fsspec

from ...errors import Misuse
from .bucket import FsspecBucket
from .credentials import S3Credentials
from .fsspec_store import FsspecStore
from .patience import Patience
from .s3 import S3Bucket, connect

__all__ = ["open_store"]


def open_store(
    url: str,
    *,
    credentials: S3Credentials | None = None,
    patience: Patience | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> FsspecStore:
    """A store at ``s3://bucket/prefix``, or at the URL of any other file system of fsspec (``file:///…``, ``memory://…``).

    No request is made yet: ``check`` says whether it answers. Raises Misuse for a URL that holds credentials or names
    no place, an unknown kind, and S3 without credentials.
    """
    patience = patience or Patience()
    try:
        parts = urlsplit(url)
        named = parts.username is not None or parts.password is not None
    except ValueError:
        raise Misuse("store.url", "Give the store as a URL such as s3://bucket/prefix.") from None
    if named or parts.query or parts.fragment:
        raise Misuse("store.url", "A store's URL holds no credentials and no options; put them into their own file.")
    place = (parts.netloc + parts.path).rstrip("/")
    if not parts.scheme or not place or ".." in place.split("/") or "//" in place:
        raise Misuse("store.url", "Give the store as a URL such as s3://bucket/prefix.")
    if parts.scheme == "s3":
        if credentials is None:
            raise Misuse("store.credentials", "An S3 store needs credentials; name the file that holds them.")
        return FsspecStore(S3Bucket(connect(credentials, patience), place.strip("/"), url, patience, sleep))
    try:
        fs = fsspec.filesystem(parts.scheme, use_listings_cache=False)
    except (ImportError, ValueError):
        raise Misuse("store.url", "No file system is installed for the store's URL.") from None
    return FsspecStore(FsspecBucket(fs, fs._strip_protocol(url), url, patience, sleep))
