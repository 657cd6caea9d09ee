"""Where a stream's ciphertext comes from, and why what is decrypted is what was inspected.

AES-GCM loads ciphertext more than once on some processors (once to hash it, once to decrypt it), and whoever inspects a
block loads it again. A host that can change the bytes between two loads would pass the check with one text and have
another one decrypted. So a block is copied into private memory before anything looks at it.

The one exception is a file that offers ``window``: by offering it, it promises that nobody but this process and those
it trusts can change the file while it is open. That is a statement about the place where it lies, so only who opens it
can make it; then blocks are decrypted straight from the mapped file, which saves the copy.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Protocol

from ..errors import Unavailable, Untrusted
from .buffers import Buffer, borrow
from .segments import StreamFormat

__all__ = ["BlockSource", "ReadableFile", "SharedFile", "StableFile"]

_EXPECTED = 4  # blocks


class ReadableFile(Protocol):
    """What a reader needs of a file: any binary file from ``open`` or ``io`` has it."""

    def seek(self, offset: int, whence: int = 0, /) -> int: ...

    def readinto(self, buffer: memoryview, /) -> int | None: ...

    def close(self) -> None: ...


class SharedFile(ReadableFile, Protocol):
    """A file that several threads may read at once."""

    def read_at(self, offset: int, buffer: memoryview, /) -> int:
        """Fill ``buffer``, or its beginning, with what stands at ``offset``; 0 at the file's end. Raises OSError."""
        ...


class StableFile(SharedFile, Protocol):
    """A file that nobody changes while it is open."""

    def window(self, offset: int, length: int, /) -> memoryview:
        """The bytes of the file themselves, readable until the view is dropped. Raises OSError."""
        ...


class BlockSource:
    """The blocks of one file of ciphertext."""

    def __init__(self, file: ReadableFile, form: StreamFormat) -> None:
        try:
            self.size = file.seek(0, io.SEEK_END)
        except OSError:
            raise _unreadable() from None
        self._block = form.segment_size
        self._window: Callable[[int, int], memoryview] | None = getattr(file, "window", None)
        self._read_at: Callable[[int, memoryview], int] | None = getattr(file, "read_at", None)
        self.shared = self._read_at is not None
        self._file = file

    def block(self, number: int) -> _Block:
        """For ``with``: the ciphertext of one block, private, or of a file that nobody changes."""
        offset = number * self._block
        length = min(self._block, self.size - offset)
        if self._window is None:
            return _Block(self._copy(offset, length))
        try:
            return _Block(self._window(offset, length))
        except OSError:
            raise _unreadable() from None

    def expect(self, number: int, last: int) -> None:
        """Blocks ``number`` to ``last`` are about to be asked for, maybe by two threads: a mapped file gets them ready
        at one go, since threads that ask the kernel for that at one time wait for each other. Not for many blocks."""
        if self._window is not None and last - number < _EXPECTED:
            offset, end = number * self._block, min((last + 1) * self._block, self.size)
            with contextlib.suppress(OSError):  # whoever asks for the block is told
                self._window(offset, end - offset)

    def _copy(self, offset: int, length: int) -> Buffer:
        buffer = borrow(length)
        try:
            _fill(self._read_at or self._seek_and_read, offset, buffer.view)
        except OSError:
            raise _unreadable() from None
        return buffer

    def _seek_and_read(self, offset: int, buffer: memoryview) -> int | None:
        self._file.seek(offset)
        return self._file.readinto(buffer)


class _Block:
    """A block for the time of a ``with``; a borrowed buffer goes back afterwards."""

    __slots__ = ("_block",)

    def __init__(self, block: Buffer | memoryview) -> None:
        self._block = block

    def __enter__(self) -> memoryview:
        return self._block.view if isinstance(self._block, Buffer) else self._block

    def __exit__(self, *_: object) -> None:
        if isinstance(self._block, Buffer):
            self._block.give_back()


def _fill(read: Callable[[int, memoryview], int | None], offset: int, out: memoryview) -> None:
    done = 0
    while done < len(out):
        n = read(offset + done, out[done:])
        if not n:
            raise Untrusted("stream.truncated", "A sealed file became shorter while it was being read.")
        done += n


def _unreadable() -> Unavailable:
    return Unavailable("storage.read", "A sealed file can't be read; check the storage and try again.")
