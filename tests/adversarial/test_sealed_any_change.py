"""Every change of a sealed file is noticed: bits, swaps, cuts, additions, splices between objects, older versions.

Over 100,000 cases in the slow suite, on streams of small segments (same code, same checks, a thousand times as many a
second) and on whole objects; a few of each in the fast one.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloister.crypto.streaming import StreamFormat, StreamReader, StreamWriter
from cloister.errors import Malformed, Untrusted
from cloister.sealed import check_ciphertext
from tests.sealing import MIB, Made, make

SMALL = StreamFormat(segment_size=64)  # 8 plaintext bytes in the first segment, 48 in the others
KEY = bytes(range(32))
MOST, SOME, OBJECTS = 30_000, 2_000, 2_000  # cases in the slow suite: of each large kind, of each small one
AT_LEAST = 25_500  # really changed ones of each of the four large kinds, so over 100,000 together


def seal(plaintext: bytes, aad: bytes = b"file one") -> bytes:
    out = io.BytesIO()
    with StreamWriter(out, KEY, aad, SMALL) as writer:
        writer.write(plaintext)
    return out.getvalue()


def text(size: int) -> bytes:
    return bytes(i * 7 % 256 for i in range(size))


PLAIN = {size: text(size) for size in (0, 1, 8, 9, 56, 57, 104, 250)}
ONE = {size: seal(plain) for size, plain in PLAIN.items()}
AGAIN = {size: seal(plain) for size, plain in PLAIN.items()}  # the same text and description, another salt
OTHER = {size: seal(plain, b"file two") for size, plain in PLAIN.items()}


def flip(data: st.DataObject, size: int) -> bytes:
    changed = bytearray(ONE[size])
    bit = data.draw(st.integers(0, len(changed) * 8 - 1))
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def overwrite(data: st.DataObject, size: int) -> bytes:
    changed = bytearray(ONE[size])
    at = data.draw(st.integers(0, len(changed) - 1))
    new = data.draw(st.binary(min_size=1, max_size=40))[: len(changed) - at]
    changed[at : at + len(new)] = new
    return bytes(changed)


def cut(data: st.DataObject, size: int) -> bytes:
    return ONE[size][: data.draw(st.integers(0, len(ONE[size]) - 1))]


def extend(data: st.DataObject, size: int) -> bytes:
    more = data.draw(st.one_of(st.binary(min_size=1, max_size=130), st.sampled_from(list(AGAIN.values()))))
    return ONE[size] + more


def rearrange(data: st.DataObject, size: int) -> bytes:
    blocks = [ONE[size][i : i + 64] for i in range(0, len(ONE[size]), 64)]
    order = data.draw(st.lists(st.integers(0, len(blocks) - 1), max_size=len(blocks) + 2))
    return b"".join(blocks[i] for i in order)


def splice(data: st.DataObject, size: int) -> bytes:
    """Some blocks from another file, or from the same text sealed again."""
    from_size = data.draw(st.sampled_from(sorted(PLAIN)))
    source = data.draw(st.sampled_from([AGAIN, OTHER]))[from_size]
    changed = bytearray(ONE[size])
    end = (len(changed) - 1) // 64
    first, last = sorted(data.draw(st.tuples(st.integers(0, end), st.integers(0, end))))
    changed[first * 64 : (last + 1) * 64] = source[first * 64 : (last + 1) * 64]
    return bytes(changed)


def replace(data: st.DataObject, size: int) -> bytes:
    return OTHER[data.draw(st.sampled_from(sorted(PLAIN)))]


CHANGES = [flip, overwrite, cut, extend, rearrange, splice, replace]


def refused_or_the_same(ciphertext: bytes, size: int, start: int) -> bool:
    """True if it was refused. What is opened without complaint must be the very file, or the same text sealed again."""
    try:
        with StreamReader(io.BytesIO(ciphertext), KEY, b"file one", SMALL) as reader:
            assert reader.size in PLAIN
            reader.seek(min(start, reader.size))
            reader.read(20)
            reader.seek(0)
            found = reader.readall()
    except (Untrusted, Malformed):
        return True
    assert ciphertext in {ONE[size], AGAIN[size]} or ciphertext in AGAIN.values()
    assert found == PLAIN[len(found)]
    return False


def cases(wanted: int, change: Callable[[st.DataObject, int], bytes]) -> int:
    """How many changed streams were tried; every one of them was refused."""
    tried = 0

    @given(data=st.data(), size=st.sampled_from(sorted(PLAIN)), start=st.integers(0, 260))
    @settings(
        max_examples=wanted, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True
    )
    def run(data: st.DataObject, size: int, start: int) -> None:
        nonlocal tried
        changed = change(data, size)
        if changed != ONE[size]:
            tried += 1
            was_refused = refused_or_the_same(changed, size, start)
            assert was_refused or changed in AGAIN.values()

    run()
    return tried


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_stream_is_refused(change: Callable[[st.DataObject, int], bytes]) -> None:
    assert cases(100, change) >= 10


@pytest.mark.parametrize("size", [0, 9, 104])
def test_every_single_bit_of_a_stream_counts(size: int) -> None:
    for bit in range(len(ONE[size]) * 8):
        changed = bytearray(ONE[size])
        changed[bit // 8] ^= 1 << bit % 8
        assert refused_or_the_same(bytes(changed), size, 0)


@pytest.mark.parametrize("size", sorted(PLAIN))
def test_every_cut_of_a_stream_is_refused(size: int) -> None:
    for length in range(len(ONE[size])):
        assert refused_or_the_same(ONE[size][:length], size, 0)


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_stream_is_refused_in_very_many_cases(change: Callable[[st.DataObject, int], bytes]) -> None:
    # Of some kinds there are few, and Hypothesis stops when it has tried all; each cut is in a test of its own.
    large = change in (flip, overwrite, rearrange, splice)
    assert cases(MOST if large else SOME, change) >= (AT_LEAST if large else 10)


# -- whole objects -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Made, Made]:
    folder = tmp_path_factory.mktemp("any-change")
    files = {"a.csv": b"row 1\n" * 50, "b.bin": bytes(range(256)) * 4200, "empty": b""}
    old = make(folder / "one", files)
    return old, make(folder / "two", files, version=2, previous=old.sealed.digest)


def change_folder(data: st.DataObject, made: Made, older: Made, place: Path) -> str:
    """One change of a copy of the object at ``place``; its kind, for whoever reads a failure."""
    names = sorted(os.listdir(place))
    name = data.draw(st.sampled_from(names))
    kind = data.draw(st.sampled_from(["bit", "cut", "more", "older", "swap", "gone", "all older"]))
    content = bytearray((place / name).read_bytes())
    if kind == "bit":
        bit = data.draw(st.integers(0, len(content) * 8 - 1))
        content[bit // 8] ^= 1 << bit % 8
        (place / name).write_bytes(content)
    elif kind == "cut":
        (place / name).write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    elif kind == "more":
        (place / name).write_bytes(content + data.draw(st.binary(min_size=1, max_size=50)))
    elif kind == "older":
        shutil.copy(older.folder / name, place / name)
    elif kind == "swap":
        other = data.draw(st.sampled_from([n for n in names if n != name]))
        (place / name).write_bytes((place / other).read_bytes())
        (place / other).write_bytes(content)
    elif kind == "gone":
        (place / name).unlink()
    else:
        for each in names:
            shutil.copy(older.folder / each, place / each)
    return f"{kind} {name}"


def use(made: Made, place: Path) -> dict[str, bytes]:
    with Made(place, made.sealed).open() as sealed:
        found = {path: sealed.read(path) for path in sealed.paths()}
        sealed.check_roots()
        sealed.require_complete()
        return found


def objects(wanted: int, older: Made, made: Made, work: Path) -> int:
    tried = 0

    @given(data=st.data())
    @settings(
        max_examples=wanted, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True
    )
    def run(data: st.DataObject) -> None:
        nonlocal tried
        place = work / "object"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(made.folder, place)
        kind = change_folder(data, made, older, place)
        tried += 1
        try:
            found = use(made, place)
        except (Untrusted, Malformed):
            return
        # A signature's spelling may change without a change of what is signed; then everything is as it was.
        assert "manifest.json" in kind, kind
        assert found == made.files
        assert check_ciphertext(place) == made.sealed.manifest

    run()
    return tried


def test_a_changed_object_is_refused(versions: tuple[Made, Made], tmp_path: Path) -> None:
    assert objects(40, *versions, tmp_path) == 40


@pytest.mark.slow
def test_a_changed_object_is_refused_in_many_cases(versions: tuple[Made, Made], tmp_path: Path) -> None:
    assert objects(OBJECTS, *versions, tmp_path) == OBJECTS


@pytest.mark.slow
def test_every_bit_of_a_small_object_counts(tmp_path: Path) -> None:
    """Each bit of the ciphertext, and of the signed manifest inside its envelope."""
    made = make(tmp_path / "o", {"a": b"a few words"})
    assert len(made.sealed.envelope.payload) < MIB
    place = made.folder / "0000.sealed"
    whole = place.read_bytes()
    for bit in range(len(whole) * 8):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        place.write_bytes(changed)
        with pytest.raises((Untrusted, Malformed)):
            use(made, made.folder)
    place.write_bytes(whole)
    assert use(made, made.folder) == {"a": b"a few words"}
