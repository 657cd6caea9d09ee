"""Where the control plane keeps objects: on its own disk, or in a store elsewhere with a cache here."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import Misuse
from ..sealed.stores import BlockCache, CachedStore, FsspecStore, S3Credentials, Store, open_store

__all__ = ["DEFAULT_CACHE_MIB", "OpenStorage", "Storage", "store_arguments", "store_choice", "store_credentials"]

DEFAULT_CACHE_MIB = 4096
_MIB = 1 << 20


@dataclass(frozen=True)
class Storage:
    """What the operator chose. ``url`` names the store, ``cache_mib`` bounds the ciphertext that is kept here of it."""

    url: str
    credentials: S3Credentials | None = None
    cache_mib: int = DEFAULT_CACHE_MIB

    def __post_init__(self) -> None:
        if not 16 <= self.cache_mib < 1 << 30:
            raise Misuse("store.cache", "Give the cache's size in MiB, from 16 on.")

    def open(self, home: Path) -> OpenStorage:
        """Raises Denied, Misuse or Unavailable at once where the first upload would otherwise find out."""
        behind = open_store(self.url, credentials=self.credentials)
        try:
            behind.check()
            cache = BlockCache(home / "cache", self.cache_mib * _MIB)
        except BaseException:
            behind.close()
            raise
        return OpenStorage(CachedStore(behind, cache), behind)


@dataclass(frozen=True)
class OpenStorage:
    """``store`` is for use, ``behind`` is what has to be closed."""

    store: Store
    behind: FsspecStore

    def close(self) -> None:
        self.behind.close()


# --- as the supervisor keeps it: the credentials' place, never what is in it ------------------------------------------


def store_choice(options: argparse.Namespace) -> dict[str, Any] | None:
    """What ``--objects`` and its companions say, or None. Raises Misuse where they don't belong together."""
    file: Path | None = options.objects_credentials
    if options.objects is None:
        if file is not None:
            raise Misuse("control.objects", "Name the store that the credentials are for with --objects.")
        return None
    place = None if file is None else str(file.absolute())
    return {"cache_mib": options.objects_cache, "credentials": place, "url": options.objects}


def store_arguments(choice: dict[str, Any] | None) -> tuple[str, ...]:
    """Of ``python -m cloister.control``."""
    if choice is None:
        return ()
    given = () if choice["credentials"] is None else ("--objects-credentials", "-")
    return ("--objects", choice["url"], "--objects-cache", str(choice["cache_mib"]), *given)


def store_credentials(choice: dict[str, Any] | None) -> str | None:
    """For the control plane's pipe. Raises Misuse or Malformed."""
    if choice is None or choice["credentials"] is None:
        return None
    return S3Credentials.from_file(Path(choice["credentials"])).reveal_json()
