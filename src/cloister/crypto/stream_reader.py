"""Reading a stream at any position: what ``streaming`` writes, as a file of plaintext."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from ..errors import Misuse, Untrusted
from .buffers import borrow, copy, wipe
from .helper import Helper
from .segments import AES256_GCM_HKDF_1MB, SegmentCipher, StreamFormat
from .stream_source import BlockSource, ReadableFile

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["Inspect", "StreamReader"]

# Sees each block (its number, its bytes) before its plaintext is given out, and raises to refuse it.
Inspect = Callable[[int, memoryview], object]
_SLOTS = 2


class _Slot:
    """One segment's plaintext, kept for reads that want only parts of it."""

    __slots__ = ("buffer", "segment")

    def __init__(self, size: int) -> None:
        self.buffer = borrow(size)
        self.segment = -1


class _Piece(NamedTuple):
    """What one read wants of one segment: from ``skip`` on, as much as ``out`` holds. Whole ones need no slot."""

    segment: int
    skip: int
    out: memoryview
    slot: _Slot | None


class StreamReader(io.RawIOBase):
    """The plaintext of a sealed file as a read-only, seekable binary file; give it to ``io.BufferedReader`` for lines.

    ``file`` must be seekable. Opening checks the last segment (random access alone would miss truncation) and
    the first, whose header gives the key. Every byte comes from a segment whose tag was checked. Each block is
    read once into private memory, and both inspected and decrypted from there, so that a host that changes the file
    meanwhile can't show one thing to ``inspect`` and another to the reader. (``stream_source`` has the one exception.)

    ``helper`` takes half of a read of several segments, if ``file`` has ``read_at``. ``cipher`` is that of an earlier
    reader of the same file: then the last and the first segment were checked by that one.

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
        inspect: Inspect | None = None,
        helper: Helper | None = None,
        cipher: SegmentCipher | None = None,
    ) -> None:
        super().__init__()
        self._slots: list[_Slot] = []
        self._file, self._form, self._inspect = file, form, inspect
        self._source = BlockSource(file, form)
        self._helper = helper if self._source.shared else None
        self.size = form.plaintext_size(self._source.size)
        self._segments = form.blocks(self._source.size)
        self._position = 0
        self._derive: Callable[[bytes], SegmentCipher] | None = None
        self._cipher = cipher
        if cipher is None:
            self._derive = lambda header: SegmentCipher.for_reading(key, header, aad, form)
            self._fill(self._slot(0), 0)
            self._derive = None  # the input key is needed no longer
            if self._segments > 1:
                self._fill(self._slot(self._segments - 1), self._segments - 1)

    @property
    def cipher(self) -> SegmentCipher:
        """For further readers of the same file."""
        self._check_open()
        if self._cipher is None:
            raise _closed()
        return self._cipher

    def _length(self, segment: int) -> int:
        """Plaintext bytes in a segment."""
        return min(self._form.start(segment + 1), self.size) - self._form.start(segment)

    def _open_segment(self, segment: int, out: memoryview) -> None:
        if self.closed:
            raise _closed()
        with self._source.block(segment) as block:
            refused = self._refusal(segment, block) if self._inspect is not None else None
            if segment == 0:
                header, block = bytes(block[: self._form.header_size]), block[self._form.header_size :]
                if self._derive is not None:
                    self._cipher = self._derive(header)
                elif self._cipher is not None and header != self._cipher.header:
                    # The key came from the header as first read; what is inspected must hold that same header.
                    changed = Untrusted("stream.header_changed", "A sealed file was changed while it was being read.")
                    raise refused or changed
            if self._cipher is None:
                raise _closed()
            # A bad tag is reported first, since it says more. Then nothing of what was refused stays behind.
            self._cipher.decrypt_into(segment, segment == self._segments - 1, block, out)
            if refused is not None:
                wipe(out)
                raise refused

    def _refusal(self, segment: int, block: memoryview) -> Untrusted | None:
        try:
            if self._inspect is not None:
                self._inspect(segment, block)
        except Untrusted as error:
            return error
        return None

    def _slot(self, segment: int) -> _Slot:
        """The slot that holds a segment, or an empty one: a new one, or the one that was used longest ago."""
        for at, slot in enumerate(self._slots):
            if slot.segment == segment:
                self._slots.append(self._slots.pop(at))
                return slot
        slot = self._slots.pop(0) if len(self._slots) == _SLOTS else _Slot(min(self._form.capacity, self.size))
        slot.segment = -1
        self._slots.append(slot)
        return slot

    def _holds(self, segment: int) -> bool:
        return any(slot.segment == segment for slot in self._slots)

    def _fill(self, slot: _Slot, segment: int) -> memoryview:
        """The segment's plaintext in ``slot``."""
        out = slot.buffer.view[: self._length(segment)]
        if slot.segment != segment:
            slot.segment = -1  # if opening fails, what is in the buffer belongs to no segment
            self._open_segment(segment, out)
            slot.segment = segment
        return out

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill as much of ``buffer`` as there is plaintext; whole segments are decrypted right into it."""
        self._check_open()
        pieces = self._pieces(memoryview(buffer).cast("B"))
        mine, others = self._halves(pieces)
        if self._helper is not None and others:
            self._source.expect(pieces[0].segment, pieces[-1].segment)
            self._helper.both(partial(self._open_pieces, mine), partial(self._open_pieces, others))
        else:
            self._open_pieces(pieces)
        done = sum(len(piece.out) for piece in pieces)
        self._position += done
        return done

    def _pieces(self, view: memoryview) -> list[_Piece]:
        """Only the first and the last piece can be partial, or held already. Those get a slot each, never the same
        one: the first piece's slot is the last used when the last piece gets its own."""
        pieces: list[_Piece] = []
        done, position = 0, self._position
        end = min(self.size, position + len(view))
        while position < end:
            segment = self._form.segment_at(position)
            skip, length = position - self._form.start(segment), self._length(segment)
            n = min(length - skip, end - position)
            outer = not pieces or position + n == end
            slot = self._slot(segment) if n < length or (outer and self._holds(segment)) else None
            pieces.append(_Piece(segment, skip, view[done : done + n], slot))
            done += n
            position += n
        return pieces

    def _halves(self, pieces: list[_Piece]) -> tuple[list[_Piece], list[_Piece]]:
        """What this thread does, and what the helper: nothing, if there is none, or only one segment to decrypt."""
        work = sum(piece.slot is None or piece.slot.segment != piece.segment for piece in pieces)
        if self._helper is None or work < 2:
            return pieces, []
        half = len(pieces) // 2
        mine, others = pieces[:half], pieces[half:]
        # The helper begins later; of two, which take equally long to decrypt, it gets the one with less to copy.
        return (others, mine) if len(pieces) == 2 and len(mine[0].out) < len(others[0].out) else (mine, others)

    def _open_pieces(self, pieces: Sequence[_Piece]) -> None:
        for segment, skip, out, slot in pieces:
            if slot is None:
                self._open_segment(segment, out)
            else:
                copy(self._fill(slot, segment)[skip : skip + len(out)], out)

    def readall(self) -> bytes:
        # CPython hands out a BytesIO's only buffer uncopied, so the plaintext exists once.
        out = io.BytesIO(bytes(max(0, self.size - self._position)))
        with out.getbuffer() as view:
            self.readinto(view)
        return out.getvalue()

    def pieces(self, start: int) -> Iterator[memoryview]:
        """The plaintext from ``start`` on, each piece up to the end of a segment and valid until the next is asked for.
        Moves no position. The shortest way through a file: what Python does for each segment costs its share, too."""
        buffer = borrow(self._form.capacity)
        try:
            for segment in range(self._form.segment_at(start), self._segments):
                out = buffer.view[: self._length(segment)]
                self._open_segment(segment, out)
                skip = max(0, start - self._form.start(segment))
                yield out[skip:] if skip else out
        finally:
            buffer.give_back_wiped()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._check_open()
        if whence != io.SEEK_SET:
            base = {io.SEEK_CUR: self._position, io.SEEK_END: self.size}.get(whence)
            offset = -1 if base is None else base + offset
        if offset < 0:
            raise Misuse("stream.seek", "Seek to a position from the file's start on.")
        self._position = offset
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
            raise _closed()

    def close(self) -> None:
        """Also closes ``file``, drops the key, and clears the plaintext that was kept."""
        if not self.closed:
            super().close()
            self._cipher = None
            slots, self._slots = self._slots, []
            for slot in slots:
                slot.buffer.give_back_wiped()
            self._file.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("an open sealed file is not pickled")


def _closed() -> Misuse:
    return Misuse("stream.closed", "The sealed file is closed; open it again.")
