"""A host that changes ciphertext while it is being read, or shows one text to the check and another to the reader.

The owner may help it: two ciphertexts of one file under one key, both authentic. Then only the root tells them apart.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cloister.errors import CloisterError, Misuse, Untrusted
from cloister.sealed import SealedObject, open_sealed
from cloister.sealed.folder import FolderSource, MemberFile, OwnFolder
from tests.sealing import DEK, MIB, OWNER_KEY, Made, make

LONG = 6 * MIB  # more blocks than are hashed while they are read


class Host(FolderSource):
    """Answers each read of a block as ``serve`` says: (block number, true bytes, number of the read) to bytes."""

    def __init__(self, folder: Path, serve: Callable[[int, bytes, int], bytes]) -> None:
        super().__init__(folder)
        self.serve = serve
        self.reads: dict[int, int] = {}

    def open(self, name: str, size: int) -> MemberFile:
        file = super().open(name, size)
        read_at = file.read_at

        def lie(offset: int, buffer: memoryview) -> int:
            n = read_at(offset, buffer)
            block = offset // MIB
            self.reads[block] = self.reads.get(block, 0) + 1
            buffer[:n] = self.serve(block, bytes(buffer[:n]), self.reads[block])
            return n

        file.read_at = lie  # type: ignore[method-assign]
        return file


def refused(call: Callable[[], object]) -> CloisterError:
    with pytest.raises(Untrusted) as info:
        call()
    return info.value


def opened(made: Made, source: FolderSource) -> SealedObject:
    return open_sealed(source, dek=DEK, expected_digest=made.sealed.digest, signer_keys=[OWNER_KEY.public])


@pytest.fixture
def twins(tmp_path: Path) -> tuple[Made, bytes, bytes]:
    """One object, and two ciphertexts of its file that both open under its key."""
    made = make(tmp_path / "mine", {"a": b"A" * LONG})
    other = make(tmp_path / "twin", {"a": b"B" * LONG})
    return made, (made.folder / "0000.sealed").read_bytes(), (other.folder / "0000.sealed").read_bytes()


def swap(evil: bytes, when: Callable[[int], bool]) -> Callable[[int, bytes, int], bytes]:
    return lambda block, data, read: evil[block * MIB : block * MIB + len(data)] if when(read) else data


def test_the_twin_for_the_reader_and_the_true_one_for_the_check(twins: tuple[Made, bytes, bytes]) -> None:
    made, _, evil = twins
    with opened(made, Host(made.folder, swap(evil, lambda read: read == 1))) as sealed:
        assert set(sealed.read("a")) == {ord("B")}  # authentic under the key, but not what was signed
        assert refused(sealed.check_roots).code == "sealed.changed"
        for _ in range(2):
            assert refused(sealed.require_complete).code == "sealed.changed"


def test_the_true_one_for_the_check_and_then_the_twin(twins: tuple[Made, bytes, bytes]) -> None:
    made, _, evil = twins
    host = Host(made.folder, lambda block, data, read: data)
    with opened(made, host) as sealed:
        sealed.check_roots()
        sealed.require_complete()
        host.serve = swap(evil, lambda read: True)
        assert refused(lambda: sealed.read("a")).code == "sealed.changed"
        host.serve = swap(evil, lambda read: False)
        assert refused(sealed.require_complete).code == "sealed.changed"


def test_the_twin_for_a_second_reader(twins: tuple[Made, bytes, bytes]) -> None:
    made, _, evil = twins
    host = Host(made.folder, lambda block, data, read: data)
    with opened(made, host) as sealed:
        assert set(sealed.read("a")) == {ord("A")}
        host.serve = swap(evil, lambda read: True)
        assert refused(lambda: sealed.read("a")).code == "sealed.changed"
        host.serve = swap(evil, lambda read: False)
        assert refused(lambda: (sealed.check_roots(), sealed.require_complete())).code == "sealed.changed"


def test_the_twin_for_everybody(twins: tuple[Made, bytes, bytes]) -> None:
    made, _, evil = twins
    with opened(made, Host(made.folder, swap(evil, lambda read: True))) as sealed:
        sealed.read("a")
        assert refused(sealed.check_roots).code == "sealed.root"
        assert refused(sealed.require_complete).code == "sealed.root"


def test_reading_alone_releases_nothing(twins: tuple[Made, bytes, bytes]) -> None:
    made, _, _ = twins
    with opened(made, FolderSource(made.folder)) as sealed:
        sealed.read("a")
        assert refused(sealed.require_complete).code == "sealed.unchecked"
        sealed.check_roots(background=True)
        sealed.require_complete()


def test_a_block_that_was_refused_once_stays_refused(twins: tuple[Made, bytes, bytes]) -> None:
    """Even rubbish that never opened: whoever serves it once and the true block later has shown what he is."""
    made, _, _ = twins

    def serve(block: int, data: bytes, read: int) -> bytes:
        return bytes(len(data)) if block == 3 and read == 1 else data

    with opened(made, Host(made.folder, serve)) as sealed:
        assert refused(lambda: sealed.read("a")).code == "stream.segment"
        assert refused(sealed.check_roots).code == "sealed.changed"
        assert refused(sealed.require_complete).code == "sealed.changed"


class Flicker(MemberFile):
    """The page cache of a hostile host: right after a block was read, it is another one."""

    folder: Path

    def read_at(self, offset: int, buffer: memoryview) -> int:
        n = super().read_at(offset, buffer)
        with (self.folder / "0000.sealed").open("r+b") as file:
            file.seek(offset + 50)
            file.write(bytes(30))
        return n


def test_a_file_that_changes_under_the_readers_hands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block is fetched once: what changes after that reaches neither the check of the tag nor the plaintext."""
    made = make(tmp_path / "o", {"a": b"A" * (2 * MIB)})
    Flicker.folder = made.folder
    monkeypatch.setattr("cloister.sealed.folder.MemberFile", Flicker)
    with made.open() as sealed:
        assert sealed.read("a") == b"A" * (2 * MIB)
        sealed.require_complete()  # and that was the true file
        assert refused(lambda: sealed.read("a")).code == "stream.segment"
        assert refused(sealed.require_complete).code == "sealed.changed"


def test_nothing_but_the_callers_word_makes_a_folder_its_own(tmp_path: Path) -> None:
    """A path, and a source that offers windows without being ``OwnFolder``, leave marks like any other."""
    made = make(tmp_path / "o", {"a": b"A" * LONG})

    class Claims(FolderSource):
        def open(self, name: str, size: int) -> MemberFile:
            return OwnFolder(self._folder).open(name, size)

    with opened(made, Claims(made.folder)) as sealed:
        sealed.read("a")
        data = bytearray((made.folder / "0000.sealed").read_bytes())
        data[5 * MIB] ^= 1
        (made.folder / "0000.sealed").write_bytes(data)
        assert refused(sealed.check_roots).code == "sealed.changed"


def test_a_closed_object_shows_nothing_more_not_even_from_its_own_folder(tmp_path: Path) -> None:
    made = make(tmp_path / "o", {"a": b"A" * LONG})
    sealed = opened(made, OwnFolder(made.folder))
    file = sealed.open("a")
    sealed.close()
    with pytest.raises(Misuse) as info:
        file.read(3 * MIB)
    assert info.value.code == "sealed.closed"
    file.close()
