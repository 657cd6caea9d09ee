"""Sealing and opening: what goes in comes out, at any position, and the store can check it without a key."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.crypto.streaming import StreamReader
from cloister.errors import Internal, Misuse, Unavailable, Untrusted
from cloister.sealed import (
    Sealed,
    associated_data,
    check_ciphertext,
    file_key,
    folder_files,
    member_name,
    open_sealed,
    seal_object,
)
from cloister.sealed.folder import MemberFile
from tests.sealing import ASSET, DEK, FILES, MIB, OWNER_KEY, Made, identity, make, signer


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("sealed") / "object")


def test_everything_comes_back(made: Made) -> None:
    with made.open(owner="hospital") as sealed:
        assert sealed.paths() == tuple(FILES)
        for path, data in FILES.items():
            assert sealed.read(path) == data
            assert sealed.entry(path).plaintext_size == len(data)
        sealed.require_complete()  # all blocks were read, so all roots are known


def test_the_folder_is_as_the_format_says(made: Made) -> None:
    assert sorted(os.listdir(made.folder)) == [*(f"{i:04d}.sealed" for i in range(len(FILES))), "manifest.json"]
    body = json.loads((made.folder / "manifest.json").read_bytes())
    assert body["payloadType"] == "application/vnd.cloister.manifest+json"
    assert made.sealed.envelope.digest == made.sealed.digest
    for entry, index in zip(made.sealed.manifest.files, range(9), strict=False):
        assert (made.folder / member_name(index)).stat().st_size == entry.ciphertext_size


def test_no_plaintext_and_no_key_in_the_folder(made: Made) -> None:
    stored = b"".join(place.read_bytes() for place in made.folder.iterdir())
    assert FILES["README.md"] not in stored
    assert FILES["data/train.csv"][:64] not in stored
    assert DEK not in stored


def test_any_stream_reader_opens_a_member(made: Made) -> None:
    """A file of an object is nothing but a stream under the key and the associated data that the spec names."""
    manifest = made.sealed.manifest
    aad = associated_data(identity(), manifest.dek_commit, "data/train.csv", 1)
    with StreamReader((made.folder / "0001.sealed").open("rb", buffering=0), file_key(DEK), aad) as reader:
        assert reader.readall() == FILES["data/train.csv"]


@given(moves=st.lists(st.tuples(st.integers(0, 2 * MIB + 13000), st.integers(0, 5000)), max_size=6))
@settings(max_examples=25, deadline=None)
def test_random_access(made: Made, moves: list[tuple[int, int]]) -> None:
    plain = io.BytesIO(FILES["data/train.csv"])
    with made.open() as sealed, sealed.open("data/train.csv") as file:
        for position, count in moves:
            assert file.seek(position) == plain.seek(position)
            assert file.read(count) == plain.read(count)


def test_roots_must_be_checked_before_release(made: Made) -> None:
    with made.open() as sealed:
        sealed.read("README.md")
        with pytest.raises(Untrusted) as info:
            sealed.require_complete()
        assert info.value.code == "sealed.unchecked"
        sealed.check_roots()
        sealed.require_complete()
        sealed.check_roots()  # nothing is left to do


def test_roots_are_checked_in_parallel_with_reading(made: Made) -> None:
    with made.open() as sealed:
        sealed.check_roots(background=True)
        sealed.check_roots(background=True)
        for path, data in FILES.items():
            assert sealed.read(path) == data
        sealed.require_complete()


def test_a_closed_object_drops_its_key(made: Made) -> None:
    sealed = made.open()
    file = sealed.open("data/train.csv")
    sealed.check_roots(background=True)
    sealed.close()
    for call in (
        lambda: sealed.open("README.md"),
        sealed.check_roots,
        sealed.require_complete,
        lambda: file.read(2 * MIB),
    ):
        with pytest.raises(Misuse) as info:
            call()
        assert info.value.code == "sealed.closed"
    file.close()


def test_secrets_hide(made: Made) -> None:
    with made.open() as sealed:
        assert file_key(DEK).hex() not in repr(sealed)
        assert "hospital/visits" in repr(sealed)
        with pytest.raises(TypeError, match="not pickled"):
            pickle.dumps(sealed)


def test_an_unknown_path_is_misuse(made: Made) -> None:
    with made.open() as sealed, pytest.raises(Misuse) as info:
        sealed.open("../README.md")
    assert info.value.code == "sealed.path"


def test_the_checker_needs_no_key(made: Made) -> None:
    assert check_ciphertext(made.folder) == made.sealed.manifest
    assert check_ciphertext(made.folder, signer_keys=[OWNER_KEY.public]) == made.sealed.manifest


def test_sealing_from_disk_with_progress(tmp_path: Path) -> None:
    source = tmp_path / "in"
    (source / "sub").mkdir(parents=True)
    (source / "b.txt").write_bytes(b"b" * 10)
    (source / "sub" / "a.bin").write_bytes(random.Random(1).randbytes(5 * MIB))
    seen: list[tuple[str, int]] = []
    sealed = seal_object(
        folder_files(source),
        tmp_path / "deep" / "er" / "out",
        dek=DEK,
        identity=identity(version=2, previous=bytes(32), parents=(b"\1" * 32,), contract=b"\2" * 32, job=b"\3" * 32),
        sign=signer(),
        terms={},
        progress=lambda path, done: seen.append((path, done)),
    )
    assert isinstance(sealed, Sealed)
    assert seen[0] == ("b.txt", 10)
    assert seen[-1] == ("sub/a.bin", 5 * MIB)
    folder = tmp_path / "deep" / "er" / "out"
    with open_sealed(
        folder, dek=DEK, expected_digest=sealed.digest, signer_keys=[b"\0" * 32, OWNER_KEY.public]
    ) as found:
        assert found.read("sub/a.bin") == (source / "sub" / "a.bin").read_bytes()
        assert found.manifest.asset_id == ASSET


class OnlyRead:
    """The least that a source may be: not even ``readinto``."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def read(self, n: int) -> bytes:
        return self._file.read(min(n, 1000))


def test_a_source_needs_only_read_and_stays_open(tmp_path: Path) -> None:
    source = io.BytesIO(b"abc")
    items = [("one", OnlyRead(bytes(5000))), ("two", source)]
    seal_object(items, tmp_path / "o", dek=DEK, identity=identity(), sign=signer(), terms={})  # type: ignore[arg-type]
    assert not source.closed
    assert check_ciphertext(tmp_path / "o").files[0].plaintext_size == 5000


def test_sealing_the_same_twice_differs(tmp_path: Path) -> None:
    one, two = make(tmp_path / "1", {"a": b"same"}), make(tmp_path / "2", {"a": b"same"})
    assert (one.folder / "0000.sealed").read_bytes() != (two.folder / "0000.sealed").read_bytes()
    assert one.sealed.digest != two.sealed.digest


def test_storage_that_fails_is_unavailable_and_then_not_releasable(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    class Broken(MemberFile):
        seek = readinto = read_at = fail  # type: ignore[assignment]

        def read(self, *_: object) -> bytes:  # type: ignore[override]
            raise OSError(5, "Input/output error")

    with made.open() as sealed:
        monkeypatch.setattr("cloister.sealed.folder.MemberFile", Broken)
        for call in (sealed.check_roots, lambda: check_ciphertext(made.folder)):
            with pytest.raises(Unavailable) as info:
                call()
            assert info.value.code == "storage.read"
        sealed.check_roots(background=True)
        with pytest.raises(Unavailable) as info:
            sealed.require_complete()
        assert info.value.code == "storage.read"


def test_a_bug_in_the_background_is_not_lost(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object) -> None:
        raise ZeroDivisionError

    with made.open() as sealed:
        monkeypatch.setattr("cloister.sealed.folder.open_member", bug)
        sealed.check_roots(background=True)
        with pytest.raises(Internal) as info:
            sealed.require_complete()
        assert info.value.code == "sealed.check"
