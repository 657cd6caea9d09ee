"""A file of ciphertext on disk as an open file: read into private memory, or mapped where nobody else can change it."""

from __future__ import annotations

import errno
import io
import mmap
import os

from ..crypto.buffers import address_of, advise

__all__ = ["MappedFile", "MemberFile"]

_POPULATE_READ = 22  # MADV_POPULATE_READ of Linux 5.14, which Python 3.11 doesn't name
_NORESERVE = 0x4000  # MAP_NORESERVE, which it doesn't name either
_AHEAD = 8 << 20
_RESIDENT = 32 << 20


class MemberFile(io.FileIO):
    """A file of ciphertext that several threads may read at once: ``crypto.streaming.SharedFile``."""

    def read_at(self, offset: int, buffer: memoryview) -> int:
        return os.preadv(self.fileno(), [buffer], offset)


class MappedFile(MemberFile):
    """``crypto.streaming.StableFile``: decrypted straight from the page cache. Raises OSError if it can't be mapped."""

    def __init__(self, fd: int, mode: str) -> None:
        # Private and never written to, so these are the file's own pages; writable, because only such memory tells
        # ctypes its address; without a reservation, because no page of it is ever copied.
        flags, prot = mmap.MAP_PRIVATE | _NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE
        self._map = mmap.mmap(fd, 0, flags=flags, prot=prot)
        self._address = address_of(self._map)
        self._view = memoryview(self._map).toreadonly()
        self._ready = (-1, -1)
        self._ahead = 0
        self._resident = 0
        super().__init__(fd, mode)

    def window(self, offset: int, length: int) -> memoryview:
        """Pages are mapped before they are touched, so that a bad disk is an OSError here and not a SIGBUS later, and
        unmapped after some megabytes, so that a file's length doesn't show in this process's memory. Another
        thread that still reads an unmapped page just faults it in again."""
        view = self._view
        start, end = self._ready
        if not (start <= offset and offset + length <= end):
            # Who reads on from where the last window ended gets ever larger ones, who reads at random gets no more.
            self._ahead = min(2 * self._ahead, _AHEAD) if offset == end else length // 2
            end = min(offset + max(self._ahead, length), len(view))
            if self._resident > _RESIDENT:
                self._resident = 0
                self._advise(0, len(view), mmap.MADV_DONTNEED)
            first = offset - offset % mmap.PAGESIZE
            self._advise(first, end - first, _POPULATE_READ)
            self._resident += end - first
            self._ready = (offset, end)
        return view[offset : offset + length]

    def _advise(self, start: int, length: int, advice: int) -> None:
        try:
            advise(self._address + start, length, advice)
        except OSError as error:
            if error.errno != errno.EINVAL:  # an older kernel maps pages when they are touched
                raise

    def close(self) -> None:
        # The mapping itself goes with its last view: closing it under a reader's feet would end the process.
        self._view = memoryview(b"")
        super().close()
