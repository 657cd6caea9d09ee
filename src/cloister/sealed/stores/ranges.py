"""A remote file as a seekable one: whole blocks by range requests, and ahead of a reader who goes straight on."""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import Executor, Future

from ...errors import Misuse, Untrusted
from .layout import BLOCK

__all__ = ["RangeFile", "ReadRange"]

ReadRange = Callable[[int, int], bytes]  # start, length → at most that many bytes


class RangeFile:
    """``ReadableFile`` of exactly ``size`` bytes. For one thread; ``lane`` does the reading ahead.

    Whoever jumps costs one block a jump. Each request that follows on the one before is twice as long as that, up
    to ``most`` blocks, and the next is under way while this one is used: at most three windows of memory.
    Raises Untrusted if the store gives fewer or more bytes than were asked for.
    """

    def __init__(self, read: ReadRange, size: int, lane: Executor | None = None, *, most: int = 8) -> None:
        self._read, self._size, self._lane, self._most = read, size, lane, most
        self._position = 0
        self._start, self._data = 0, memoryview(b"")
        self._window = 1
        self._ahead: tuple[int, int, Future[bytes]] | None = None
        self.closed = False

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}.get(whence)
        if base is None or base + offset < 0:
            raise Misuse("stream.seek", "Seek to a position from the file's start on.")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: memoryview, /) -> int:
        if self.closed:
            raise Misuse("stream.closed", "The file of the store is closed; open it again.")
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), self._size - self._position)
        if wanted <= 0:
            return 0
        if not self._start <= self._position < self._start + len(self._data):
            self._load(self._position // BLOCK * BLOCK, self._position + wanted)
        offset = self._position - self._start
        n = min(wanted, len(self._data) - offset)
        view[:n] = self._data[offset : offset + n]
        self._position += n
        return n

    def _load(self, start: int, end: int) -> None:
        follows = len(self._data) > 0 and start == self._start + len(self._data)
        self._window = min(self._most, self._window * 2) if follows else 1
        blocks = max(self._window, min(self._most, -(-(end - start) // BLOCK)))
        length = min(blocks * BLOCK, self._size - start)
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == start:
            length, data = ahead[1], ahead[2].result()
        else:
            if ahead is not None:
                ahead[2].cancel()
            data = self._read(start, length)
        if len(data) != length:
            raise Untrusted("sealed.size", "A file in the store has not the size that its manifest names.")
        self._start, self._data = start, memoryview(data)
        if follows and self._lane is not None and start + length < self._size:
            following = min(self._window * BLOCK, self._size - start - length)
            self._ahead = (start + length, following, self._lane.submit(self._read, start + length, following))

    def close(self) -> None:
        """What is still being read ahead is dropped when it arrives."""
        self.closed = True
        self._data = memoryview(b"")
        if self._ahead is not None:
            self._ahead[2].cancel()
            self._ahead = None
