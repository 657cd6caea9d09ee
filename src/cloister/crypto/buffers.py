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
import os

from ..errors import Internal

__all__ = ["STANDARD", "Buffer", "address_of", "advise", "borrow", "copy", "on_huge_pages", "wipe"]

STANDARD = 1024 * 1024
_SMALL = STANDARD // 4  # below this a fresh buffer is cheaper than a whole one that lies idle
_HUGE = 2 * STANDARD
_LONG = 64 * 1024
_KEPT = 8  # spare buffers for the whole process
_ZEROS = memoryview(bytes(STANDARD))
_spare: list[memoryview] = []
# Through ctypes because the method of ``mmap`` keeps all other threads waiting for as long as the kernel takes.
_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


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
    # A huge page begins somewhere in the first half; the rest is never touched. Private: shared memory has none.
    memory = mmap.mmap(-1, 2 * _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = -address_of(memory) % _HUGE
    view = memoryview(memory)[start : start + _HUGE]
    on_huge_pages(view)
    return view[:STANDARD], view[STANDARD:]


def address_of(memory: mmap.mmap | memoryview) -> int:
    """Where writable memory begins."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def on_huge_pages(view: memoryview) -> None:
    """Have the huge pages that lie wholly in writable, untouched memory handed out whole, where the kernel has them.

    The kernel hands out and clears a page at a time, in large memory 500 times as often without this, which costs more
    than decrypting what is written there. A hint: where it isn't taken, nothing changes but the time.
    """
    if len(view) < _HUGE:
        return
    begin = address_of(view)
    first, end = -(-begin // _HUGE) * _HUGE, (begin + len(view)) // _HUGE * _HUGE
    if first < end:
        with contextlib.suppress(OSError):
            advise(first, end - first, mmap.MADV_HUGEPAGE)


def advise(address: int, length: int, advice: int) -> None:
    """madvise(2), with other threads running meanwhile. Raises OSError."""
    if _libc.madvise(address, length, advice):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def wipe(view: memoryview) -> None:
    """Overwrite with zeros, without making that many zeros first."""
    for start in range(0, len(view), STANDARD):
        part = view[start : start + STANDARD]
        part[:] = _ZEROS[: len(part)]


def copy(source: memoryview, out: memoryview) -> None:
    """``out[:] = source``, of writable memory; with other threads running meanwhile, if it takes long."""
    if len(out) < _LONG:
        out[:] = source
        return
    if len(source) != len(out):
        raise Internal("buffers.copy", "Memory was to be copied to memory of another size; report this.")
    ctypes.memmove(address_of(out), address_of(source), len(out))
