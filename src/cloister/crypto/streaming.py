"""Streaming AEAD for files: Tink's AES-GCM-HKDF streaming wire format, by default AES256_GCM_HKDF_1MB.

A file is ``header ‖ segment 0 ‖ segment 1 ‖ …`` with header = ``length (1 byte, 0x28) ‖ salt (32) ‖ nonce prefix (7)``.
The AES key is HKDF(input key, salt = salt, info = associated data); a segment's nonce is
``prefix ‖ segment number (4 bytes, big-endian) ‖ 1 if it is the last, else 0``, its own associated data is empty.
Each segment is AES-GCM ciphertext with a tag of 16 bytes. Source: Tink, "AES-GCM-HKDF Streaming AEAD" wire format.

A *block* is what stands in the file at a multiple of the segment size: block 0 is the header and the
first segment together, every other block is one segment. So a file is simply cut into 1 MiB blocks.

Guaranteed: nothing is returned that was changed, moved or cut, and no file opens under other associated data.
Not hidden: a file's length. Not committed to: the key (GCM allows crafted ciphertexts that open under two keys);
who needs that compares hashes of blocks, which ``observe`` is for.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, Protocol

from ..errors import Misuse, Unavailable, Untrusted
from .segments import AES256_GCM_HKDF_1MB, TAG_SIZE, SegmentCipher, StreamFormat

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

__all__ = [
    "AES256_GCM_HKDF_1MB",
    "Observer",
    "ReadableFile",
    "SegmentCipher",
    "StreamFormat",
    "StreamReader",
    "StreamWriter",
    "WritableFile",
]

# Sees each block (its number, its bytes) as it is written or read. It may work on the bytes in another thread: then
# it returns a function that waits for that, which is called before the bytes are overwritten.
Observer = Callable[[int, memoryview], "Callable[[], object] | None"]
_Waiter = Callable[[], object]


class WritableFile(Protocol):
    """What a writer needs of a file."""

    def write(self, data: memoryview, /) -> int | None: ...


class ReadableFile(Protocol):
    """What a reader needs of a file: any binary file from ``open`` or ``io`` has it."""

    def seek(self, offset: int, whence: int = 0, /) -> int: ...

    def readinto(self, buffer: memoryview, /) -> int | None: ...

    def close(self) -> None: ...


class _Ring:
    """Two block buffers in turn, so that an observer can work on one block while the next is made."""

    def __init__(self, size: int, observe: Observer | None) -> None:
        self._buffers = (memoryview(bytearray(size)), memoryview(bytearray(size)))
        self._pending: list[_Waiter | None] = [None, None]
        self._turn = 0
        self._observe = observe

    def take(self) -> memoryview:
        """The buffer that was used longest ago, once its observer is done; raises what the observer raised."""
        self._turn ^= 1
        wait, self._pending[self._turn] = self._pending[self._turn], None
        if wait is not None:
            wait()
        return self._buffers[self._turn]

    def show(self, number: int, block: memoryview) -> None:
        if self._observe is not None:
            self._pending[self._turn] = self._observe(number, block)

    def drain(self) -> None:
        self.take()
        self.take()


class StreamWriter:
    """Encrypts what is written to it into ``file`` with constant memory (about three segments).

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
        self._plain = memoryview(bytearray(form.capacity))
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
            self._plain[:] = bytes(len(self._plain))

    def __enter__(self) -> StreamWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()


class StreamReader(io.RawIOBase):
    """The plaintext of a sealed file as a read-only, seekable binary file; give it to ``io.BufferedReader`` for lines.

    ``file`` must be seekable. Opening checks the last segment (random access alone would miss truncation) and
    the first, whose header gives the key. Every byte comes from a segment whose tag was checked. Each block is
    read once into private memory, and both observed and decrypted from there, so that a host that
    changes the file meanwhile can't show one thing to the observer and another to the reader.

    Raises Malformed (not a sealed file), Untrusted (changed, cut, wrong key or associated data), Unavailable (I/O).
    Not for use by several threads at once: open one reader each.
    """

    def __init__(
        self,
        file: ReadableFile,
        key: bytes,
        aad: bytes,
        form: StreamFormat = AES256_GCM_HKDF_1MB,
        *,
        observe: Observer | None = None,
    ) -> None:
        super().__init__()
        self._file, self._form = file, form
        self._plain = memoryview(bytearray())
        self._ciphertext_size = file.seek(0, io.SEEK_END)
        self.size = form.plaintext_size(self._ciphertext_size)
        self._segments = form.blocks(self._ciphertext_size)
        self._position = 0
        self._cached = -1
        self._ring = _Ring(min(form.segment_size, self._ciphertext_size), observe)
        self._plain = memoryview(bytearray(min(form.capacity, self.size)))
        first = self._fetch(0)
        self._cipher = SegmentCipher.for_reading(key, bytes(first[: form.header_size]), aad, form)
        if self._segments > 1:
            last = self._segments - 1
            self._open_block(last, self._fetch(last), self._plain[: self._length(last)])
        self._open_block(0, first, self._plain[: self._length(0)])
        self._cached = 0

    def _length(self, segment: int) -> int:
        """Plaintext bytes in a segment."""
        return min(self._form.start(segment + 1), self.size) - self._form.start(segment)

    def _fetch(self, number: int) -> memoryview:
        offset = number * self._form.segment_size
        block = self._ring.take()[: min(self._form.segment_size, self._ciphertext_size - offset)]
        _read_exactly(self._file, offset, block)
        self._ring.show(number, block)
        return block

    def _open_block(self, segment: int, block: memoryview, out: memoryview) -> None:
        if segment == 0:
            head = self._form.header_size
            # The key came from the header as first read; the observer must have seen that same header.
            if bytes(block[:head]) != self._cipher.header:
                raise Untrusted("stream.header_changed", "A sealed file was changed while it was being read.")
            block = block[head:]
        self._cipher.decrypt_into(segment, segment == self._segments - 1, block, out)

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill as much of ``buffer`` as there is plaintext; whole segments are decrypted right into it."""
        self._check_open()
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view) and self._position < self.size:
            segment = self._form.segment_at(self._position)
            skip, length = self._position - self._form.start(segment), self._length(segment)
            rest = view[done:]
            if skip == 0 and len(rest) >= length and segment != self._cached:
                self._open_block(segment, self._fetch(segment), rest[:length])
                n = length
            else:
                n = min(length - skip, len(rest))
                rest[:n] = self._segment(segment, length)[skip : skip + n]
            done += n
            self._position += n
        if self._position >= self.size:
            self._ring.drain()  # whoever read to the end has the observer's verdict on all that was read
        return done

    def _segment(self, segment: int, length: int) -> memoryview:
        if segment != self._cached:
            self._cached = -1  # if opening fails, what is in the buffer belongs to no segment
            self._open_block(segment, self._fetch(segment), self._plain[:length])
            self._cached = segment
        return self._plain[:length]

    def readall(self) -> bytes:
        out = bytearray(max(0, self.size - self._position))
        self.readinto(out)
        return bytes(out)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._check_open()
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}.get(whence)
        if base is None or base + offset < 0:
            raise Misuse("stream.seek", "Seek to a position from the file's start on.")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        self._check_open()
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def _check_open(self) -> None:
        if self.closed:
            raise Misuse("stream.closed", "The sealed file is closed; open it again.")

    def close(self) -> None:
        """Also closes ``file``, and clears the plaintext that was kept."""
        if not self.closed:
            super().close()
            self._file.close()
            self._plain[:] = bytes(len(self._plain))

    def __reduce__(self) -> NoReturn:
        raise TypeError("an open sealed file is not pickled")


def _read_exactly(file: ReadableFile, offset: int, out: memoryview) -> None:
    try:
        file.seek(offset)
        done = 0
        while done < len(out):
            n = file.readinto(out[done:])
            if not n:
                raise Untrusted("stream.truncated", "A sealed file became shorter while it was being read.")
            done += n
    except OSError:
        raise Unavailable("storage.read", "A sealed file can't be read; check the storage and try again.") from None
