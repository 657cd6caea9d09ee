"""Buffers of one segment that are used again and again.

A fresh megabyte costs the kernel as much time to hand out, page by page, as decrypting a megabyte takes; opening a
small file or reading at random would spend most of its time there. So buffers go back to a short list instead. They
lie in pairs on huge pages where the kernel has them: that is worth a tenth to a fifth of the speed.

Who borrowed a buffer owns it alone until it is given back, by ``give_back_wiped`` if it held plaintext.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap

__all__ = ["STANDARD", "Buffer", "borrow", "wipe"]

STANDARD = 1024 * 1024
_SMALL = STANDARD // 4  # below this a fresh buffer is cheaper than a whole one that lies idle
_HUGE = 2 * STANDARD
_KEPT = 8  # spare buffers for the whole process
_ZEROS = memoryview(bytes(STANDARD))
_spare: list[memoryview] = []


class Buffer:
    """Memory of the size that was asked for, in ``view``. Dropping it instead of giving it back is allowed."""

    __slots__ = ("_whole", "view")

    def __init__(self, whole: memoryview | None, view: memoryview) -> None:
        self._whole = whole
        self.view = view

    def give_back(self) -> None:
        """Not while anybody still reads it. Only the first call does something."""
        whole, self._whole, self.view = self._whole, None, self.view[:0]
        if whole is not None and len(_spare) < _KEPT:
            _spare.append(whole)

    def give_back_wiped(self) -> None:
        wipe(self.view)
        self.give_back()


def borrow(size: int) -> Buffer:
    """``size`` bytes of memory with any content."""
    if not _SMALL <= size <= STANDARD:
        return Buffer(None, memoryview(bytearray(size)))
    try:
        whole = _spare.pop()  # atomic: two threads never get the same one
    except IndexError:
        whole, other = _pair()
        _spare.append(other)
    return Buffer(whole, whole[:size])


def _pair() -> tuple[memoryview, memoryview]:
    """Two buffers on one huge page, if there are such pages; they are freed when nobody holds either any longer."""
    memory = mmap.mmap(-1, 2 * _HUGE)  # a huge page begins somewhere in the first half; the rest is never touched
    start = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % _HUGE
    with contextlib.suppress(OSError):  # a kernel without huge pages: it was only a hint
        memory.madvise(mmap.MADV_HUGEPAGE, start, _HUGE)
    view = memoryview(memory)[start : start + _HUGE]
    return view[:STANDARD], view[STANDARD:]


def wipe(view: memoryview) -> None:
    """Overwrite with zeros, without making that many zeros first."""
    for start in range(0, len(view), STANDARD):
        part = view[start : start + STANDARD]
        part[:] = _ZEROS[: len(part)]
