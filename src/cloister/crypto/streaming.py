"""Streaming AEAD for files: Tink's AES-GCM-HKDF streaming wire format, by default AES256_GCM_HKDF_1MB.

A file is ``header ‖ segment 0 ‖ segment 1 ‖ …`` with header = ``length (1 byte, 0x28) ‖ salt (32) ‖ nonce prefix (7)``.
The AES key is HKDF(input key, salt = salt, info = associated data); a segment's nonce is
``prefix ‖ segment number (4 bytes, big-endian) ‖ 1 if it is the last, else 0``, its own associated data is empty.
Each segment is AES-GCM ciphertext with a tag of 16 bytes. Source: Tink, "AES-GCM-HKDF Streaming AEAD" wire format.

A *block* is what stands in the file at a multiple of the segment size: block 0 is the header and the
first segment together, every other block is one segment. So a file is simply cut into 1 MiB blocks.

Guaranteed: nothing is returned that was changed, moved or cut, and no file opens under other associated data.
Not hidden: a file's length. Not committed to: the key (GCM allows crafted ciphertexts that open under two keys);
who needs that compares hashes of blocks, which ``observe`` and ``inspect`` are for.

Writing is here, reading in ``stream_reader`` and ``stream_source``, one segment and the lengths in ``segments``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from ..errors import Misuse, Unavailable
from .buffers import Buffer, borrow
from .segments import AES256_GCM_HKDF_1MB, TAG_SIZE, SegmentCipher, StreamFormat
from .stream_reader import Inspect, StreamReader
from .stream_source import ReadableFile, SharedFile, StableFile

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = [
    "AES256_GCM_HKDF_1MB",
    "Inspect",
    "Observer",
    "ReadableFile",
    "SegmentCipher",
    "SharedFile",
    "StableFile",
    "StreamFormat",
    "StreamReader",
    "StreamWriter",
    "WritableFile",
]

# Sees each block (its number, its bytes) as it is written. It may work on the bytes in another thread: then it
# returns a function that waits for that, which is called before the bytes are overwritten.
Observer = Callable[[int, memoryview], "Callable[[], object] | None"]
_Waiter = Callable[[], object]
_RING = 4


class WritableFile(Protocol):
    """What a writer needs of a file."""

    def write(self, data: memoryview, /) -> int | None: ...


class _Ring:
    """Block buffers in turn, so that an observer can work on some blocks while the next is made."""

    def __init__(self, size: int, observe: Observer | None) -> None:
        self._size = size
        self._buffers: list[Buffer] = []
        self._pending: list[_Waiter | None] = [None] * _RING
        self._turn = -1
        self._observe = observe

    def take(self) -> memoryview:
        """The buffer that was used longest ago, once its observer is done; raises what the observer raised."""
        self._turn = (self._turn + 1) % _RING
        self._wait(self._turn)
        if self._turn == len(self._buffers):
            self._buffers.append(borrow(self._size))
        return self._buffers[self._turn].view

    def _wait(self, turn: int) -> None:
        wait, self._pending[turn] = self._pending[turn], None
        if wait is not None:
            wait()

    def show(self, number: int, block: memoryview) -> None:
        if self._observe is not None:
            self._pending[self._turn] = self._observe(number, block)

    def drain(self) -> None:
        """Wait for the observer. Without this, as after a failure, the buffers are never used again."""
        for turn in range(_RING):
            self._wait(turn)
        while self._buffers:
            self._buffers.pop().give_back()


class StreamWriter:
    """Encrypts what is written to it into ``file`` with constant memory (at most five segments).

    Only ``close`` writes the last segment, and leaving a ``with`` block by an exception does not close: a stream that
    was cut short by an error can never look like a complete one. ``file`` itself stays open.
    """

    def __init__(
        self,
        file: WritableFile,
        key: bytes,
        aad: bytes,
        form: StreamFormat = AES256_GCM_HKDF_1MB,
        *,
        observe: Observer | None = None,
    ) -> None:
        self._cipher = SegmentCipher.for_writing(key, aad, form)
        self._file, self._form = file, form
        self._buffer = borrow(form.capacity)
        self._plain = self._buffer.view
        self._filled = self._segment = 0
        self._ring = _Ring(form.segment_size, observe)
        self.plaintext_size = 0
        self.closed = False

    def write(self, data: ReadableBuffer) -> int:
        """Take all of ``data``. What fills whole segments is encrypted from the caller's memory, uncopied."""
        if self.closed:
            raise Misuse("stream.closed", "The stream is closed; nothing can be added to a finished file.")
        view = memoryview(data).cast("B")
        size = len(view)
        while len(view):
            room = self._form.room(self._segment)
            if self._filled == room:
                self._emit(self._plain[:room], last=False)
            elif self._filled == 0 and len(view) > room:  # more follows, so this one is not the last
                self._emit(view[:room], last=False)
                view = view[room:]
            else:
                n = min(room - self._filled, len(view))
                self._plain[self._filled : self._filled + n] = view[:n]
                self._filled += n
                view = view[n:]
        self.plaintext_size += size
        return size

    def _emit(self, plaintext: memoryview, *, last: bool) -> None:
        head = self._form.header_size if self._segment == 0 else 0
        block = self._ring.take()[: head + len(plaintext) + TAG_SIZE]
        block[:head] = self._cipher.header[:head]
        self._cipher.encrypt_into(self._segment, last, plaintext, block[head:])
        self._ring.show(self._segment, block)
        rest = block
        while len(rest):  # an unbuffered file may take less than it is given
            taken = self._file.write(rest)
            if not taken:
                raise Unavailable("storage.write", "A sealed file can't be written; check the storage and try again.")
            rest = rest[taken:]
        self._segment += 1
        self._filled = 0

    def close(self) -> None:
        """Write the last segment. Calling it again does nothing."""
        if not self.closed:
            self._emit(self._plain[: self._filled], last=True)
            self._ring.drain()
            self.closed = True
            self._plain = self._plain[:0]
            self._buffer.give_back_wiped()

    def __enter__(self) -> StreamWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
