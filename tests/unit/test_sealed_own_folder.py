"""Reading from a folder of one's own: mapped, uncopied, and with the same answers."""

from __future__ import annotations

import ctypes
import errno
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cloister.crypto import buffers
from cloister.errors import CloisterError, Unavailable, Untrusted
from cloister.sealed import SealedObject, members, open_sealed
from cloister.sealed.folder import FolderSource, OwnFolder, open_member
from tests.sealing import DEK, FILES, MIB, OWNER_KEY, Made, make

LONG = random.Random(3).randbytes(40 * MIB + 999)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("own") / "object", {**FILES, "long": LONG})


def opened(made: Made, *, threads: int = 2) -> SealedObject:
    return open_sealed(
        OwnFolder(made.folder),
        dek=DEK,
        expected_digest=made.sealed.digest,
        signer_keys=[OWNER_KEY.public],
        threads=threads,
    )


@pytest.mark.parametrize("threads", [1, 2])
def test_everything_comes_back(made: Made, threads: int) -> None:
    with opened(made, threads=threads) as sealed:
        for path, data in {**FILES, "long": LONG}.items():
            assert sealed.read(path) == data
        with sealed.open("long") as file:
            assert b"".join(bytes(piece) for piece in file.segments()) == LONG
            file.seek(5 * MIB + 3)
            pieces = file.segments()
            assert bytes(next(pieces)) == LONG[5 * MIB + 3 : 6 * MIB - 56 - 5 * 16]
            pieces.close()
        with pytest.raises(Untrusted) as info:
            sealed.require_complete()
        assert info.value.code == "sealed.unchecked"
        sealed.check_roots()
        sealed.require_complete()


def test_segments_come_the_same_way_from_anywhere(made: Made) -> None:
    with made.open() as sealed, sealed.open("long") as file:
        sizes = [len(piece) for piece in file.segments()]
    assert sizes[0] == MIB - 56
    assert set(sizes[1:-1]) == {MIB - 16}
    assert sum(sizes) == len(LONG)


def test_many_threads_read_at_random(made: Made) -> None:
    def read(seed: int) -> None:
        rng = random.Random(seed)
        with sealed.open("long") as file:
            for _ in range(15):
                start, count = rng.randrange(len(LONG)), rng.randrange(3 * MIB)
                file.seek(start)
                assert file.read(count) == LONG[start : start + count]

    for source in (OwnFolder(made.folder), FolderSource(made.folder)):
        with (
            open_sealed(
                source, dek=DEK, expected_digest=made.sealed.digest, signer_keys=[OWNER_KEY.public], threads=2
            ) as sealed,
            ThreadPoolExecutor(max_workers=3) as pool,
        ):
            list(pool.map(read, range(3)))


def test_a_changed_file_does_not_open(tmp_path: Path) -> None:
    made = make(tmp_path / "o", {"a": b"A" * (2 * MIB)})
    data = bytearray((made.folder / "0000.sealed").read_bytes())
    data[MIB + 7] ^= 1
    (made.folder / "0000.sealed").write_bytes(data)
    codes = []
    with opened(made) as sealed:
        for call in (lambda: sealed.read("a"), sealed.check_roots, sealed.require_complete):
            with pytest.raises(CloisterError) as info:
                call()
            codes.append(info.value.code)
    assert codes == ["stream.segment", "sealed.root", "sealed.root"]


def test_the_mapping_stays_small_and_outlives_the_file(made: Made) -> None:
    index = len(FILES)
    file = open_member(made.folder, f"{index:04d}.sealed", mapped=True)
    assert isinstance(file, members.MappedFile)
    view = file.window(0, MIB)
    for number in range(1, 40):
        file.window(number * MIB, MIB)
        assert file._resident <= members._RESIDENT + members._AHEAD
    start, end = file._ready
    assert end - start == min(members._AHEAD, end - start)
    file.window(3 * MIB, MIB)
    assert file._ready == (3 * MIB, 4 * MIB)  # who jumps gets what he asked for and no more
    expected = (made.folder / f"{index:04d}.sealed").read_bytes()[:MIB]
    file.close()
    assert view == expected


def test_a_kernel_that_can_not_map_ahead_is_done_without(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "_POPULATE_READ", 9999)  # EINVAL, as from a kernel that doesn't know it
    with opened(made) as sealed:
        assert sealed.read("data/train.csv") == FILES["data/train.csv"]


def test_a_disk_that_fails_while_mapping_is_unavailable(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    class Libc:
        @staticmethod
        def madvise(*_: int) -> int:
            ctypes.set_errno(errno.EFAULT)  # what the kernel says about a page that it can't read
            return -1

    with opened(made) as sealed:
        monkeypatch.setattr(buffers, "_libc", Libc)
        with pytest.raises(Unavailable) as info:
            sealed.read("data/train.csv")
        assert info.value.code == "storage.read"


def test_a_file_that_can_not_be_mapped_is_read(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    before = set(os.listdir("/proc/self/fd"))
    with opened(made) as sealed:
        monkeypatch.setattr(members.mmap, "mmap", refuse)
        with open_member(made.folder, "0001.sealed", mapped=True) as file:
            assert not isinstance(file, members.MappedFile)
        for path, content in FILES.items():
            assert sealed.read(path) == content
    assert set(os.listdir("/proc/self/fd")) <= before


def test_what_is_mapped_can_not_be_written(made: Made) -> None:
    with open_member(made.folder, "0001.sealed", mapped=True) as file:
        assert isinstance(file, members.MappedFile)
        with pytest.raises(TypeError, match="read-only"):
            file.window(0, 100)[0] = 1
