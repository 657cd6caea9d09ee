"""Writer and reader as files: random access, constant memory, and every change is detected."""

from __future__ import annotations

import io
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.crypto.streaming import SegmentCipher, StreamFormat, StreamReader, StreamWriter
from cloister.errors import CloisterError, Malformed, Misuse, Unavailable, Untrusted

SMALL = StreamFormat(segment_size=64)  # 8 plaintext bytes in the first segment, 48 in the others
KEY = bytes(range(32))


def seal(*parts: bytes) -> bytes:
    out = io.BytesIO()
    with StreamWriter(out, KEY, b"aad", SMALL) as writer:
        for part in parts:
            writer.write(part)
    return out.getvalue()


def opened(ciphertext: bytes, **kw: Callable[[int, memoryview], None]) -> StreamReader:
    return StreamReader(io.BytesIO(ciphertext), KEY, b"aad", SMALL, **kw)


def text(size: int) -> bytes:
    return bytes(i * 7 % 256 for i in range(size))


@given(st.lists(st.binary(max_size=150), max_size=8))
def test_how_it_is_written_does_not_matter(parts: list[bytes]) -> None:
    whole = b"".join(parts)
    ciphertext = seal(*parts)
    assert len(ciphertext) == SMALL.ciphertext_size(len(whole))
    assert opened(ciphertext).readall() == whole


@given(size=st.integers(0, 300), moves=st.lists(st.tuples(st.integers(0, 320), st.integers(0, 200)), max_size=12))
def test_random_access_equals_a_plain_file(size: int, moves: list[tuple[int, int]]) -> None:
    plain, reader = io.BytesIO(text(size)), opened(seal(text(size)))
    for position, count in moves:
        assert reader.seek(position) == plain.seek(position)
        assert reader.read(count) == plain.read(count)
        assert reader.tell() == plain.tell()


def test_seeking_as_files_do() -> None:
    reader = opened(seal(text(100)))
    assert (reader.seek(-3, io.SEEK_END), reader.read()) == (97, text(100)[97:])
    assert reader.seek(10) == 10
    assert reader.seek(5, io.SEEK_CUR) == 15
    assert reader.readable()
    assert reader.seekable()
    assert not reader.writable()
    for offset, whence in ((-1, 0), (0, 9)):
        with pytest.raises(Misuse) as info:
            reader.seek(offset, whence)
        assert info.value.code == "stream.seek"


def test_lines_through_a_buffered_reader() -> None:
    rows = [f"row {i}\n".encode() for i in range(60)]
    with io.BufferedReader(opened(seal(b"".join(rows)))) as file:
        assert list(file) == rows


def test_a_closed_reader_forgets_and_refuses() -> None:
    file = io.BytesIO(seal(text(100)))
    reader = StreamReader(file, KEY, b"aad", SMALL)
    kept = [slot.buffer.view for slot in reader._slots]
    reader.close()
    reader.close()
    assert file.closed
    assert kept
    assert not any(any(plain) for plain in kept)
    for call in (reader.tell, lambda: reader.readinto(bytearray(1)), lambda: reader.seek(0)):
        with pytest.raises(Misuse) as info:
            call()
        assert info.value.code == "stream.closed"
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(reader)


def break_off(out: io.BytesIO) -> None:
    with StreamWriter(out, KEY, b"aad", SMALL) as writer:
        writer.write(text(200))
        raise RuntimeError("stop")


def test_an_error_while_writing_never_leaves_a_file_that_opens() -> None:
    out = io.BytesIO()
    with pytest.raises(RuntimeError, match="stop"):
        break_off(out)
    assert out.getvalue()  # something was written, and it is no stream
    with pytest.raises((Untrusted, Malformed)):
        opened(out.getvalue())


def test_a_finished_stream_takes_nothing_more() -> None:
    out = io.BytesIO()
    writer = StreamWriter(out, KEY, b"aad", SMALL)
    writer.write(b"abc")
    writer.close()
    size = len(out.getvalue())
    writer.close()
    assert len(out.getvalue()) == size
    assert writer.plaintext_size == 3
    with pytest.raises(Misuse) as info:
        writer.write(b"d")
    assert info.value.code == "stream.closed"


def test_the_observer_sees_the_file_as_it_is() -> None:
    out, written, read = io.BytesIO(), {}, {}
    with StreamWriter(out, KEY, b"aad", SMALL, observe=lambda i, b: written.__setitem__(i, bytes(b))) as writer:
        writer.write(text(150))
    reader = opened(out.getvalue(), inspect=lambda i, b: read.__setitem__(i, bytes(b)))
    reader.readall()
    assert b"".join(written[i] for i in sorted(written)) == out.getvalue()
    assert read == written


def test_an_observers_error_reaches_the_reader() -> None:
    def refuse(number: int, block: memoryview) -> None:
        raise Untrusted("test.refused", "no")

    with pytest.raises(Untrusted) as info:
        StreamReader(io.BytesIO(seal(text(200))), KEY, b"aad", SMALL, inspect=refuse)
    assert info.value.code == "test.refused"


class Dribble(io.BytesIO):
    """An unbuffered file takes and gives as little as it likes."""

    def write(self, data: memoryview) -> int:  # type: ignore[override]
        return super().write(data[:7])

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        return super().readinto(buffer[:5])


def test_short_writes_and_short_reads_are_completed() -> None:
    out = Dribble()
    with StreamWriter(out, KEY, b"aad", SMALL) as writer:
        writer.write(text(130))
    assert opened(out.getvalue()).readall() == text(130)
    assert StreamReader(Dribble(out.getvalue()), KEY, b"aad", SMALL).readall() == text(130)


class Stuck(io.BytesIO):
    def write(self, data: memoryview) -> int:  # type: ignore[override]
        return 0

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        raise OSError(5, "Input/output error")


def test_storage_that_fails_is_unavailable() -> None:
    with pytest.raises(Unavailable) as info:
        StreamReader(Stuck(seal(b"x")), KEY, b"aad", SMALL)
    assert info.value.code == "storage.read"
    with pytest.raises(Unavailable) as info:
        StreamWriter(Stuck(), KEY, b"aad", SMALL).close()
    assert info.value.code == "storage.write"


def test_memory_stays_constant(tmp_path: Path) -> None:
    import tracemalloc

    tracemalloc.start()
    try:
        with (tmp_path / "big").open("wb", buffering=0) as file, StreamWriter(file, KEY, b"") as writer:
            for _ in range(24):
                writer.write(bytes(1024 * 1024))
        with StreamReader((tmp_path / "big").open("rb", buffering=0), KEY, b"") as reader:
            buffer = bytearray(100_000)
            while reader.readinto(buffer):
                pass
        assert tracemalloc.get_traced_memory()[1] < 8 * 1024 * 1024
    finally:
        tracemalloc.stop()


# Every change is detected. Whatever the attacker does, opening and reading all of it must raise.


def must_fail(ciphertext: bytes, key: bytes = KEY, aad: bytes = b"aad") -> CloisterError:
    with pytest.raises((Untrusted, Malformed)) as info:
        StreamReader(io.BytesIO(ciphertext), key, aad, SMALL).readall()
    return info.value


@pytest.mark.parametrize("size", [0, 7, 8, 9, 56, 120])
def test_every_single_bit_flip_is_detected(size: int) -> None:
    ciphertext = bytearray(seal(text(size)))
    for bit in range(len(ciphertext) * 8):
        ciphertext[bit // 8] ^= 1 << bit % 8
        must_fail(bytes(ciphertext))
        ciphertext[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize("size", [0, 8, 9, 56, 57, 200])
def test_every_truncation_is_detected_on_opening(size: int) -> None:
    ciphertext = seal(text(size))
    for end in range(len(ciphertext)):
        with pytest.raises((Untrusted, Malformed)):
            opened(ciphertext[:end])  # before a single byte is returned


@given(size=st.integers(0, 200), extra=st.binary(min_size=1, max_size=200))
def test_every_extension_is_detected(size: int, extra: bytes) -> None:
    must_fail(seal(text(size)) + extra)


@given(size=st.integers(60, 400), data=st.data())
@settings(max_examples=80)
def test_segments_can_not_be_moved_dropped_or_repeated(size: int, data: st.DataObject) -> None:
    whole = seal(text(size))
    blocks = [whole[i : i + 64] for i in range(0, len(whole), 64)]
    order = data.draw(st.lists(st.integers(0, len(blocks) - 1), min_size=1, max_size=len(blocks) + 1))
    if order != list(range(len(blocks))):
        must_fail(b"".join(blocks[i] for i in order))


def test_segments_of_another_stream_under_the_same_key_are_foreign() -> None:
    one, two = seal(text(150)), seal(text(150))
    for i in range(0, len(one), 64):
        must_fail(one[:i] + two[i : i + 64] + one[i + 64 :])


@given(key=st.binary(min_size=32, max_size=32), aad=st.binary(max_size=8))
def test_no_other_key_or_associated_data_opens(key: bytes, aad: bytes) -> None:
    if (key, aad) != (KEY, b"aad"):
        assert must_fail(seal(text(60)), key, aad).code == "stream.segment"


def test_an_unused_trailing_empty_segment_is_not_accepted() -> None:
    """A second spelling of the same plaintext: authentic, but not what any writer makes."""
    cipher = SegmentCipher.for_writing(KEY, b"aad", SMALL)
    first, second = bytearray(24), bytearray(16)
    cipher.encrypt_into(0, False, text(8), first)
    cipher.encrypt_into(1, True, b"", second)
    assert must_fail(cipher.header + first + second).code == "stream.length"


def test_what_failed_to_open_is_wiped() -> None:
    ciphertext = bytearray(seal(text(100)))
    ciphertext[70] ^= 1
    reader = opened(bytes(ciphertext))
    out = bytearray(b"\xff" * 100)
    with pytest.raises(Untrusted) as info:
        reader.readinto(out)
    assert info.value.details == {"segment": 1}
    assert out[:8] == text(8)  # authentic
    assert not any(out[8:56])  # GCM had already decrypted these before it saw the tag
    with pytest.raises(Untrusted):  # and a failed segment is not served from memory afterwards
        reader.seek(9), reader.read(3)


class Shifting(io.BytesIO):
    """A host that shows one file first and another later."""

    later = b""

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        n = super().readinto(buffer)
        if self.later:
            at = self.tell()
            self.seek(0), super().write(self.later), self.seek(at)
        return n


def test_a_header_that_changes_between_reads_is_noticed() -> None:
    one, two = seal(text(150)), seal(text(150))
    file = Shifting(one)
    reader = StreamReader(file, KEY, b"aad", SMALL)
    file.later = two
    reader.seek(60), reader.read(1)  # a third segment, so that the first is kept no longer
    reader.seek(0)
    with pytest.raises(Untrusted) as info:
        reader.read(1)
    assert info.value.code == "stream.header_changed"


def test_a_file_that_shrinks_while_read_is_noticed() -> None:
    file = io.BytesIO(seal(text(150)))
    reader = StreamReader(file, KEY, b"aad", SMALL)
    file.truncate(100)
    with pytest.raises(Untrusted) as info:
        reader.readall()
    assert info.value.code == "stream.truncated"


def test_large_random_round_trip_with_many_reads() -> None:
    rng = random.Random(7)
    data = rng.randbytes(3 * 1024 * 1024 + 17)
    out = io.BytesIO()
    with StreamWriter(out, KEY, b"") as writer:
        writer.write(data)
    with io.BufferedReader(StreamReader(io.BytesIO(out.getvalue()), KEY, b""), 65536) as file:
        for _ in range(25):
            start, count = rng.randrange(len(data)), rng.randrange(300_000)
            file.seek(start)
            assert file.read(count) == data[start : start + count]
