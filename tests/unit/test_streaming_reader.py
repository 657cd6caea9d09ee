"""Reading with a helper, from several threads' files, and without leaving plaintext in buffers that are used again."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.crypto import buffers
from cloister.crypto.gmac import FINGERPRINT_SIZE, Fingerprinter
from cloister.crypto.helper import Helper
from cloister.crypto.streaming import StreamFormat, StreamReader, StreamWriter
from cloister.errors import Misuse, Unavailable, Untrusted

SMALL = StreamFormat(segment_size=64)  # 8 plaintext bytes in the first segment, 48 in the others
KEY = bytes(range(32))


class Shared(io.BytesIO):
    """A file with ``read_at``, as files on disk have it."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.threads: set[int] = set()

    def read_at(self, offset: int, buffer: memoryview) -> int:
        self.threads.add(threading.get_ident())
        part = self.getvalue()[offset : offset + len(buffer)]
        buffer[: len(part)] = part
        return len(part)


class Stable(Shared):
    """A file that promises not to change."""

    def window(self, offset: int, length: int) -> memoryview:
        return self.getbuffer()[offset : offset + length]


def text(size: int) -> bytes:
    return bytes(i * 7 % 256 for i in range(size))


def seal(plaintext: bytes) -> bytes:
    out = io.BytesIO()
    with StreamWriter(out, KEY, b"aad", SMALL) as writer:
        writer.write(plaintext)
    return out.getvalue()


@pytest.fixture(scope="module")
def helper() -> Iterator[Helper]:
    helper = Helper()
    yield helper
    helper.close()


@given(
    size=st.integers(0, 600),
    moves=st.lists(st.tuples(st.integers(0, 620), st.integers(0, 500)), max_size=10),
    kind=st.sampled_from([io.BytesIO, Shared, Stable]),
)
@settings(deadline=None)
def test_random_access_equals_a_plain_file(helper: Helper, size: int, moves: list[tuple[int, int]], kind: Any) -> None:
    plain = io.BytesIO(text(size))
    with StreamReader(kind(seal(text(size))), KEY, b"aad", SMALL, helper=helper) as reader:
        assert reader.size == size
        for position, count in moves:
            assert reader.seek(position) == plain.seek(position)
            found = bytearray(count)
            n = reader.readinto(found)
            assert bytes(found[:n]) == plain.read(count)
            assert reader.tell() == position + n
        reader.seek(0)
        assert reader.readall() == text(size)


def test_a_large_read_is_shared_with_the_helper(helper: Helper) -> None:
    met = threading.Barrier(2, timeout=60)

    class Meeting(Shared):
        def read_at(self, offset: int, buffer: memoryview) -> int:
            if offset in (64, 64 * 7):  # the first block of either half
                met.wait()
            return super().read_at(offset, buffer)

    file = Meeting(seal(text(600)))
    with StreamReader(file, KEY, b"aad", SMALL, helper=helper) as reader:
        assert file.threads == {threading.get_ident()}
        assert reader.readall() == text(600)
        assert len(file.threads) == 2


def test_a_busy_or_closed_helper_is_done_without(helper: Helper) -> None:
    go, begun = threading.Event(), threading.Event()
    busy = threading.Thread(target=helper.both, args=(go.wait, lambda: (begun.set(), go.wait())))
    busy.start()
    begun.wait()
    closed = Helper()
    closed.close()
    for other in (helper, closed):
        with StreamReader(Shared(seal(text(600))), KEY, b"aad", SMALL, helper=other) as reader:
            assert reader.readall() == text(600)
    go.set()
    busy.join()


def test_a_further_reader_takes_the_cipher_and_still_checks_what_it_reads() -> None:
    data = seal(text(600))
    with StreamReader(io.BytesIO(data), KEY, b"aad", SMALL) as first:
        cipher = first.cipher
        with StreamReader(io.BytesIO(data), KEY, b"aad", SMALL, cipher=cipher) as again:
            assert again.readall() == text(600)
    for at in (3, 50, 200, len(data) - 1):  # its header, its first segment, one in the middle, the last one
        changed = bytearray(data)
        changed[at] ^= 1
        with StreamReader(io.BytesIO(changed), KEY, b"aad", SMALL, cipher=cipher) as reader:
            with pytest.raises(Untrusted) as info:
                reader.readall()
            assert info.value.code in ("stream.segment", "stream.header_changed")
    # Cut at a segment's end: then the last one is not marked as the last.
    with StreamReader(io.BytesIO(data[: 64 * 5]), KEY, b"aad", SMALL, cipher=cipher) as reader:
        with pytest.raises(Untrusted) as info:
            reader.readall()
        assert info.value.code == "stream.segment"
    first = StreamReader(io.BytesIO(data), KEY, b"aad", SMALL)
    first.close()
    with pytest.raises(Misuse):
        _ = first.cipher


@pytest.mark.parametrize("segment", [2, 11])  # this thread's half, and the helper's
def test_a_failure_in_either_half_is_raised_and_zeroed(helper: Helper, segment: int) -> None:
    data = bytearray(seal(text(600)))
    data[segment * 64 + 5] ^= 1
    out = bytearray(b"x" * 600)
    with StreamReader(Shared(bytes(data)), KEY, b"aad", SMALL, helper=helper) as reader:
        with pytest.raises(Untrusted) as info:
            reader.readinto(out)
        assert info.value.code == "stream.segment"
        assert reader.tell() == 0
    start = SMALL.start(segment)
    assert out[start : start + SMALL.capacity] == bytes(SMALL.capacity)


def test_a_block_that_is_refused_leaves_nothing_behind() -> None:
    def refuse(number: int, block: memoryview) -> None:
        if number == 2:
            raise Untrusted("test.refused", "no")

    out = bytearray(b"x" * 150)
    with StreamReader(io.BytesIO(seal(text(250))), KEY, b"aad", SMALL, inspect=refuse) as reader:
        with pytest.raises(Untrusted) as info:
            reader.readinto(out)
        assert info.value.code == "test.refused"
    assert out[56:104] == bytes(48)


def test_a_mapping_that_fails_is_storage_that_fails() -> None:
    class Bad(Shared):
        def window(self, offset: int, length: int) -> memoryview:
            raise OSError(5, "Input/output error")

    with pytest.raises(Unavailable) as info:
        StreamReader(Bad(seal(text(250))), KEY, b"aad", SMALL)
    assert info.value.code == "storage.read"


def test_no_plaintext_stays_in_buffers_that_are_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    spare: list[memoryview] = []
    monkeypatch.setattr(buffers, "_spare", spare)
    plaintext = b"nobody may see this row" * 50_000
    out = io.BytesIO()
    with StreamWriter(out, KEY, b"") as writer:
        writer.write(plaintext)
    with StreamReader(io.BytesIO(out.getvalue()), KEY, b"") as reader:
        reader.seek(100), reader.read(10)
    assert len(spare) >= 3
    assert not any(b"row" in bytes(buffer) for buffer in spare)


def test_buffers_go_back_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    spare: list[memoryview] = []
    monkeypatch.setattr(buffers, "_spare", spare)
    borrowed = [buffers.borrow(buffers.STANDARD - 1) for _ in range(20)]
    for number, buffer in enumerate(borrowed):
        buffer.view[:2] = bytes([number, 1])
    assert [buffer.view[0] for buffer in borrowed] == list(range(20)), "no two are the same memory"
    for buffer in borrowed:
        buffer.give_back_wiped()
        buffer.give_back()  # a second time changes nothing
        assert len(buffer.view) == 0
    assert len(spare) == 8
    assert not any(any(whole[:2]) for whole in spare)
    assert {len(whole) for whole in spare} == {buffers.STANDARD}


@pytest.mark.parametrize("size", [0, 1, buffers.STANDARD // 4 - 1, buffers.STANDARD + 1])
def test_small_and_very_large_buffers_are_fresh(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    spare: list[memoryview] = []
    monkeypatch.setattr(buffers, "_spare", spare)
    buffer = buffers.borrow(size)
    view = buffer.view
    view[:] = b"x" * size
    buffer.give_back_wiped()
    assert bytes(view) == bytes(size)
    assert spare == []


def test_fingerprints_tell_blocks_files_and_processes_apart() -> None:
    one, two = Fingerprinter(), Fingerprinter()
    known = one.of(1, 2, b"block")
    assert len(known) == FINGERPRINT_SIZE
    assert one.of(1, 2, memoryview(b"block")) == known
    assert known not in {one.of(1, 3, b"block"), one.of(2, 2, b"block"), one.of(1, 2, b"bloc!"), two.of(1, 2, b"block")}
    assert one.of(1, 2, b"block\0") != known
    with pytest.raises(TypeError, match="not pickled"):
        one.__reduce__()
    assert repr(one) == "Fingerprinter()"


@given(data=st.binary(min_size=1, max_size=300), bit=st.integers(0, 2400))
def test_any_changed_bit_changes_the_fingerprint(data: bytes, bit: int) -> None:
    mac, changed = Fingerprinter(), bytearray(data)
    changed[bit // 8 % len(data)] ^= 1 << bit % 8
    assert mac.of(0, 0, data) != mac.of(0, 0, changed)


def test_a_closed_reader_can_not_be_read_by_a_late_thread() -> None:
    reader = StreamReader(io.BytesIO(seal(text(300))), KEY, b"aad", SMALL)
    reader.close()
    with pytest.raises(Misuse) as info:
        reader._open_segment(1, memoryview(bytearray(48)))
    assert info.value.code == "stream.closed"
