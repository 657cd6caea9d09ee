"""A store behind a cache: what was read once from far away is read from the local disk afterwards."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

from ...crypto.streaming import ReadableFile
from ...errors import Misuse, Untrusted
from ..folder import MANIFEST_NAME, parse_envelope
from ..ports import ObjectSource
from .blocks import BlockCache
from .layout import BLOCK, folder_of
from .ports import Store
from .transfer import fetch_object, read_full

__all__ = ["CachedStore"]


class CachedStore:
    """``Store`` in front of another. Objects never change under their digest, so nothing in the cache goes stale.

    Only reading uses the cache. Whether an object is there, and what there is, is asked of the store behind it.
    """

    def __init__(self, store: Store, cache: BlockCache) -> None:
        self._store, self._cache = store, cache

    def put(self, folder: Path, digest: bytes, *, recheck: bool = False) -> None:
        if recheck:
            self.forget(digest)
        self._store.put(folder, digest, recheck=recheck)

    def take(self, folder: Path, digest: bytes) -> None:
        self._store.take(folder, digest)

    def source(self, digest: bytes) -> ObjectSource:
        folder_of(digest)
        return _CachedSource(self._store.source(digest), digest, self._cache)

    def fetch(self, digest: bytes, dest: Path) -> None:
        try:
            fetch_object(self.source(digest), digest, dest)
        except Untrusted:  # the store may have been damaged when a block was cached, and mended since
            self.forget(digest)
            self._store.fetch(digest, dest)

    def forget(self, digest: bytes) -> None:
        """Drop what is cached of an object. For readers that found it wrong: a tag only shows that a block is what
        the store once sent, and the store may have been wrong."""
        self._cache.forget(digest)

    def digests(self) -> Iterator[bytes]:
        return self._store.digests()

    def has(self, digest: bytes) -> bool:
        return self._store.has(digest)

    def delete(self, digest: bytes) -> None:
        self._store.delete(digest)
        self.forget(digest)

    def sweep(self, *, before: int) -> int:
        return self._store.sweep(before=before)


class _CachedSource:
    def __init__(self, behind: ObjectSource, digest: bytes, cache: BlockCache) -> None:
        self._behind, self._digest, self._cache = behind, digest, cache

    def envelope(self) -> bytes:
        data = self._cache.get(self._digest, MANIFEST_NAME, 0)
        if data is not None:
            return bytes(data)
        fetched = self._behind.envelope()
        if parse_envelope(fetched).digest == self._digest:  # a lie of the store's is not kept
            self._cache.add(self._digest, MANIFEST_NAME, 0, fetched)
        return fetched

    def open(self, name: str, size: int) -> ReadableFile:
        """The store is asked only when a block is missing here, so what is cached can be read while it is away."""
        return _CachedFile(self._behind, self._digest, self._cache, name, size)


class _CachedFile:
    """``ReadableFile`` by blocks: from the cache, else from the store and into the cache."""

    def __init__(self, behind: ObjectSource, digest: bytes, cache: BlockCache, name: str, size: int) -> None:
        self._behind, self._digest, self._cache = behind, digest, cache
        self._name, self._size = name, size
        self._remote: ReadableFile | None = None
        self._position = 0
        self._number, self._block = -1, memoryview(b"")
        self._closed = False

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}.get(whence)
        if base is None or base + offset < 0:
            raise Misuse("stream.seek", "Seek to a position from the file's start on.")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: memoryview, /) -> int:
        if self._closed:
            raise Misuse("stream.closed", "The file of the store is closed; open it again.")
        view = memoryview(buffer).cast("B")
        if self._position >= self._size or not len(view):
            return 0
        number, skip = divmod(self._position, BLOCK)
        if number != self._number:
            self._block, self._number = self._fetch(number), number
        n = min(len(view), len(self._block) - skip)
        view[:n] = self._block[skip : skip + n]
        self._position += n
        return n

    def _fetch(self, number: int) -> memoryview:
        length = min(BLOCK, self._size - number * BLOCK)
        cached = self._cache.get(self._digest, self._name, number)
        if cached is not None and len(cached) == length:
            return memoryview(cached)
        if self._remote is None:
            self._remote = self._behind.open(self._name, self._size)
        self._remote.seek(number * BLOCK)
        block = memoryview(bytearray(length))
        if read_full(self._remote, block) != length:
            raise Untrusted("sealed.size", "A file in the store has not the size that its manifest names.")
        self._cache.add(self._digest, self._name, number, block)
        return block

    def close(self) -> None:
        self._closed = True
        self._block = memoryview(b"")
        if self._remote is not None:
            self._remote.close()
            self._remote = None
