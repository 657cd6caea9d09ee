"""A store or host that changes a sealed object: corrupt, cut, longer, reordered, files exchanged, files missing.

Each must be refused by the reader before wrong plaintext is returned, by the root check, and by the checker
that has no key; and a refused object never becomes releasable again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import CloisterError, Malformed, Untrusted
from cloister.sealed import SealedObject, check_ciphertext
from tests.sealing import FILES, MIB, Made, make

BIG = "data/train.csv"  # three segments, 0001.sealed


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return make(tmp_path / "object")


def edit(made: Made, change: Callable[[bytearray], bytes | bytearray | None], name: str = "0001.sealed") -> None:
    place = made.folder / name
    data = bytearray(place.read_bytes())
    changed = change(data)
    place.write_bytes(data if changed is None else changed)


def flip(position: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[position] ^= 1

    return change


def read_all(made: Made) -> None:
    with made.open() as sealed:
        for path in sealed.paths():
            assert sealed.read(path) == FILES[path]


def refused(call: Callable[[], object]) -> CloisterError:
    with pytest.raises((Untrusted, Malformed)) as info:
        call()
    return info.value


def never_releasable(made: Made) -> None:
    """The roots show it too, and go on showing it."""
    with made.open() as sealed:
        assert refused(sealed.check_roots).code == "sealed.root"
        for _ in range(2):
            assert refused(sealed.require_complete).code == "sealed.root"


@pytest.mark.parametrize("position", [0, 1, 33, 40, MIB - 1, MIB, 2 * MIB - 1, 2 * MIB, -1])
def test_corrupt_bytes(made: Made, position: int) -> None:
    edit(made, flip(position))
    expected = "stream.header" if position == 0 else "stream.segment"
    error = refused(lambda: read_all(made))
    assert error.code == expected
    never_releasable(made)
    assert refused(lambda: check_ciphertext(made.folder)).code == ("sealed.header" if position == 0 else "sealed.root")


@pytest.mark.parametrize("keep", [0, 1, 39, 56, MIB, 2 * MIB, -1, -16, -17])
def test_truncated(made: Made, keep: int) -> None:
    edit(made, lambda data: data[:keep])
    assert refused(made.open).code == "sealed.size"
    assert refused(lambda: check_ciphertext(made.folder)).code == "sealed.size"


def test_extended(made: Made) -> None:
    edit(made, lambda data: data + b"\0")
    assert refused(made.open).code == "sealed.size"
    assert refused(lambda: check_ciphertext(made.folder)).code == "sealed.size"


def test_reordered_segments(made: Made) -> None:
    # Sizes stay right: two full segments change places.
    big = make(made.folder.parent / "big", {"f": bytes(range(256)) * (16 * 1024)})
    edit(big, lambda d: d[:MIB] + d[2 * MIB : 3 * MIB] + d[MIB : 2 * MIB] + d[3 * MIB :], "0000.sealed")
    with big.open() as sealed:
        assert refused(lambda: sealed.read("f")).code == "stream.segment"
        assert refused(sealed.check_roots).code == "sealed.root"
    assert refused(lambda: check_ciphertext(big.folder)).code == "sealed.root"


def test_truncation_is_noticed_before_the_first_byte_even_with_a_matching_size(made: Made) -> None:
    """The last segment is checked on opening, so that reading only the start can't miss it."""
    edit(made, flip(2 * MIB + 100))
    with made.open() as sealed:
        assert refused(lambda: sealed.open(BIG)).code == "stream.segment"


def test_two_files_of_one_object_exchanged(tmp_path: Path) -> None:
    made = make(tmp_path / "o", {"a": b"same size 1", "b": b"same size 2"})
    one, two = (made.folder / "0000.sealed").read_bytes(), (made.folder / "0001.sealed").read_bytes()
    (made.folder / "0000.sealed").write_bytes(two)
    (made.folder / "0001.sealed").write_bytes(one)
    with made.open() as sealed:
        assert refused(lambda: sealed.read("a")).code == "stream.segment"
        assert refused(sealed.check_roots).code == "sealed.root"
    assert refused(lambda: check_ciphertext(made.folder)).code == "sealed.root"


@pytest.mark.parametrize(
    "other",
    [
        {},  # the very same object sealed again: only salt and roots differ
        {"version": 2},
        {"asset_id": b"another asset id"},
        {"owner": "bank", "name": "bank/visits"},
        {"asset_class": "model"},
        {"contract": b"\1" * 32},
        {"contract": b"\1" * 32, "job": b"\2" * 32},
        {"parents": (b"\3" * 32,)},
    ],
)
def test_a_foreign_objects_file_swapped_in(tmp_path: Path, other: dict[str, object]) -> None:
    """Even under the same data key, a file belongs to one owner, asset, version, class, origin, path and place."""
    made = make(tmp_path / "mine", {"a": b"plaintext one"})
    foreign = make(tmp_path / "theirs", {"a": b"plaintext two"}, **other)
    shutil.copy(foreign.folder / "0000.sealed", made.folder / "0000.sealed")
    with made.open() as sealed:
        if other:
            assert refused(lambda: sealed.read("a")).code == "stream.segment"
        else:  # AEAD can't tell: key and description are the same. The root can.
            assert refused(lambda: sealed.read("a")).code == "sealed.root"
        assert refused(sealed.check_roots).code == "sealed.root"
        assert refused(sealed.require_complete).code == "sealed.root"
    assert refused(lambda: check_ciphertext(made.folder)).code == "sealed.root"


@pytest.mark.parametrize("name", ["0000.sealed", "0003.sealed"])
def test_a_missing_file(made: Made, name: str) -> None:
    (made.folder / name).unlink()
    assert refused(made.open).code == "sealed.incomplete"
    assert refused(lambda: check_ciphertext(made.folder)).code == "sealed.incomplete"


@pytest.mark.parametrize("name", ["0004.sealed", "notes.txt", "0000.sealed.bak", ".hidden"])
def test_a_file_too_many(made: Made, name: str) -> None:
    (made.folder / name).write_bytes(b"x")
    assert refused(lambda: check_ciphertext(made.folder)).code == "sealed.foreign"


def test_a_link_or_a_pipe_instead_of_a_file(made: Made) -> None:
    place = made.folder / "0000.sealed"
    elsewhere = made.folder.parent / "elsewhere"
    place.rename(elsewhere)
    place.symlink_to(elsewhere)
    assert refused(made.open).code == "sealed.special"
    place.unlink()
    os.mkfifo(place)  # opening a pipe would wait for ever
    assert refused(made.open).code == "sealed.special"
    place.unlink()
    place.mkdir()
    assert refused(made.open).code == "sealed.special"


def test_a_file_that_is_swapped_after_opening_the_object(made: Made) -> None:
    with made.open() as sealed:
        (made.folder / "0001.sealed").write_bytes(b"short")
        assert refused(lambda: sealed.open(BIG)).code == "sealed.size"
        (made.folder / "0001.sealed").unlink()
        assert refused(lambda: sealed.open(BIG)).code == "sealed.incomplete"


def twins(tmp_path: Path) -> tuple[Made, bytes, bytes]:
    """One object, and two ciphertexts of its file that both open: what a colluding owner and host can make."""
    made = make(tmp_path / "mine", {"a": b"A" * (3 * MIB)})
    other = make(tmp_path / "twin", {"a": b"B" * (3 * MIB)})
    return made, (made.folder / "0000.sealed").read_bytes(), (other.folder / "0000.sealed").read_bytes()


def test_one_ciphertext_for_the_check_and_another_for_the_reader(tmp_path: Path) -> None:
    made, good, evil = twins(tmp_path)
    place = made.folder / "0000.sealed"
    with made.open() as sealed:
        sealed.check_roots()
        sealed.require_complete()  # the host showed the good one
        place.write_bytes(evil)
        assert refused(lambda: sealed.read("a")).code == "sealed.changed"
        place.write_bytes(good)
        assert refused(sealed.require_complete).code == "sealed.changed"


def test_another_ciphertext_for_the_reader_first(tmp_path: Path) -> None:
    made, good, evil = twins(tmp_path)
    place = made.folder / "0000.sealed"
    place.write_bytes(evil)
    with made.open() as sealed:
        with sealed.open("a") as file:
            assert file.read(10) == b"B" * 10  # authentic under the key, but not what was signed
        place.write_bytes(good)
        assert refused(lambda: _check_and_require(sealed)).code == "sealed.root"
        assert refused(sealed.require_complete).code == "sealed.root"


def _check_and_require(sealed: SealedObject) -> None:
    sealed.check_roots()
    sealed.require_complete()


def test_a_failure_in_the_background_is_not_lost(made: Made) -> None:
    edit(made, flip(MIB + 5))
    with made.open() as sealed:
        sealed.check_roots(background=True)
        assert refused(sealed.require_complete).code == "sealed.root"
    (made.folder / "0002.sealed").unlink()
    shutil.rmtree(made.folder)
    made = make(made.folder)
    with made.open() as sealed:
        (made.folder / "0003.sealed").unlink()
        sealed.check_roots(background=True)
        assert refused(sealed.require_complete).code == "sealed.incomplete"


@given(position=st.integers(0, 2 * MIB + 12345 + 40 + 48 - 1), bit=st.integers(0, 7))
@settings(max_examples=25, deadline=None)
def test_any_bit_anywhere(tmp_path_factory: pytest.TempPathFactory, position: int, bit: int) -> None:
    folder = tmp_path_factory.getbasetemp() / "any-bit"
    if folder.exists():
        shutil.rmtree(folder)
    made = make(folder, {BIG: FILES[BIG]})

    def change(data: bytearray) -> None:
        data[position] ^= 1 << bit

    edit(made, change, "0000.sealed")
    refused(lambda: read_all(made))
    refused(lambda: check_ciphertext(made.folder))
