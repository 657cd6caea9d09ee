"""Stores without a network: the local folder, and fsspec's file systems on disk and in memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from cloister.errors import Misuse, Unavailable, Untrusted
from cloister.sealed import check_ciphertext
from cloister.sealed.stores import BlockCache, CachedStore, LocalStore, Store, open_store
from tests.sealing import FILES, Made, make, opened

NOBODY = b"\x07" * 32


@pytest.fixture(params=["local", "file", "memory", "cached"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "local":
        yield LocalStore(tmp_path / "store")
        return
    fsspec.filesystem("memory").store.clear()
    url = f"memory://{tmp_path.name}" if request.param == "memory" else f"file://{tmp_path}/store"
    with open_store(url) as made:
        yield CachedStore(made, BlockCache(tmp_path / "cache", 16 << 20)) if request.param == "cached" else made


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return make(tmp_path / "object")


def test_an_object_comes_back_as_it_was(store: Store, made: Made, tmp_path: Path) -> None:
    digest = made.sealed.digest
    assert not store.has(digest)
    assert list(store.digests()) == []
    for _ in range(2):  # the second time changes nothing
        store.put(made.folder, digest)
        store.put(made.folder, digest, recheck=True)
    assert (store.has(digest), list(store.digests())) == (True, [digest])
    with opened(store.source(digest), made) as sealed:
        assert {path: sealed.read(path) for path in sealed.paths()} == FILES
        sealed.check_roots()
        sealed.require_complete()
    store.fetch(digest, tmp_path / "back")
    assert check_ciphertext(tmp_path / "back").name == made.sealed.manifest.name
    with pytest.raises(Misuse) as caught:
        store.fetch(digest, tmp_path / "back")
    assert caught.value.code == "sealed.exists"


def test_taking_uses_the_folder_up(store: Store, made: Made, tmp_path: Path) -> None:
    shutil.copytree(made.folder, tmp_path / "again")
    store.take(made.folder, made.sealed.digest)
    assert not made.folder.exists()
    store.take(tmp_path / "again", made.sealed.digest)
    assert not (tmp_path / "again").exists()
    assert list(store.digests()) == [made.sealed.digest]


def test_deleting_and_what_is_missing(store: Store, made: Made, tmp_path: Path) -> None:
    digest = made.sealed.digest
    store.delete(digest)
    store.put(made.folder, digest)
    store.delete(digest)
    store.delete(digest)
    assert (store.has(digest), list(store.digests())) == (False, [])
    for absent in (digest, NOBODY):
        with pytest.raises(Untrusted) as caught:
            store.source(absent).envelope()
        assert caught.value.code == "sealed.incomplete"
        with pytest.raises(Untrusted):
            store.fetch(absent, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_another_object_than_the_digest_names_is_not_taken(store: Store, made: Made) -> None:
    for taken in (store.put, store.take):
        with pytest.raises(Untrusted) as caught:
            taken(made.folder, NOBODY)
        assert caught.value.code == "sealed.digest"
    assert list(store.digests()) == []
    assert made.folder.exists()


@pytest.mark.parametrize("name", ["0000.sealed", "0001.sealed"])
def test_a_damaged_file_is_not_taken(store: Store, made: Made, name: str) -> None:
    data = bytearray((made.folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (made.folder / name).write_bytes(data)
    with pytest.raises(Untrusted) as caught:
        store.put(made.folder, made.sealed.digest)
    assert caught.value.code == "sealed.root"
    assert (store.has(made.sealed.digest), list(store.digests())) == (False, [])


@pytest.mark.parametrize("digest", [b"", b"x" * 31, "a" * 64, b"../" + b"x" * 29 + b"y"])
def test_only_digests_name_objects(store: Store, digest: bytes, made: Made) -> None:
    for use in (store.has, store.source, store.delete, lambda d: store.put(made.folder, d)):
        if len(digest) == 32 and isinstance(digest, bytes):
            assert not store.has(digest)  # it becomes hex: no path is in it
        else:
            with pytest.raises(Misuse) as caught:
                use(digest)
            assert caught.value.code == "store.digest"


def test_a_put_goes_on_and_believes_no_size(tmp_path: Path, made: Made) -> None:
    """What an earlier put left: one file whole, one of the right size but wrong, one too short; no manifest."""
    place = tmp_path / "store" / made.sealed.digest.hex()
    place.mkdir(parents=True)
    sizes = {p.name: p.stat().st_size for p in made.folder.glob("*.sealed")}
    shutil.copy(made.folder / "0000.sealed", place)
    (place / "0001.sealed").write_bytes(os.urandom(sizes["0001.sealed"]))
    (place / "0003.sealed").write_bytes(b"short")
    whole = (place / "0000.sealed").stat().st_mtime_ns
    with open_store(f"file://{tmp_path}/store") as store:
        assert not store.has(made.sealed.digest)
        assert list(store.digests()) == []
        store.put(made.folder, made.sealed.digest)
    check_ciphertext(place)
    assert (place / "0000.sealed").stat().st_mtime_ns == whole, "what was right was not sent again"


def spoil(folder: Path, digest: bytes, name: str) -> None:
    """Flip a bit of a stored file, wherever the store keeps it."""
    for fs, path in (
        (fsspec.filesystem("file"), f"{folder}/store/{digest.hex()}/{name}"),
        (fsspec.filesystem("memory"), f"/{folder.name}/{digest.hex()}/{name}"),
    ):
        if fs.exists(path):
            data = bytearray(fs.cat_file(path))
            data[100] ^= 1
            fs.pipe_file(path, bytes(data))
            return
    pytest.fail("the stored file is not where it should be")


def test_a_recheck_mends_what_was_spoiled(store: Store, made: Made, tmp_path: Path) -> None:
    store.put(made.folder, made.sealed.digest)
    spoil(tmp_path, made.sealed.digest, "0001.sealed")
    with pytest.raises(Untrusted) as caught:
        store.fetch(made.sealed.digest, tmp_path / "back")
    assert caught.value.code == "sealed.root"
    assert not (tmp_path / "back").exists()
    store.put(made.folder, made.sealed.digest, recheck=True)
    store.fetch(made.sealed.digest, tmp_path / "back")


def test_a_sweep_takes_leftovers_only(tmp_path: Path, made: Made) -> None:
    root = tmp_path / "store"
    with open_store(f"file://{root}") as store:
        store.put(made.folder, made.sealed.digest)
        half, foreign = root / NOBODY.hex(), root / "notes"
        for folder in (half, foreign):
            folder.mkdir()
            (folder / "0000.sealed").write_bytes(b"x")
        (root / "README").write_text("theirs")
        assert store.sweep(before=1_000_000_000) == 0, "what is new may be a put that is going on"
        assert store.sweep(before=4_000_000_000) == 1
        assert not (half / "0000.sealed").exists()
        assert (foreign / "0000.sealed").exists()
        assert (root / "README").exists()
        assert store.has(made.sealed.digest)


def test_a_killed_put_leaves_nothing_under_the_name(tmp_path: Path, made: Made) -> None:
    program = (
        "import os, sys; from pathlib import Path; from cloister.sealed.stores import LocalStore, transfer\n"
        "transfer.check_ciphertext = lambda folder: os.kill(os.getpid(), 9)\n"
        "LocalStore(Path(sys.argv[1])).put(Path(sys.argv[2]), bytes.fromhex(sys.argv[3]))\n"
    )
    root, digest = tmp_path / "store", made.sealed.digest
    done = subprocess.run([sys.executable, "-c", program, str(root), str(made.folder), digest.hex()], timeout=60)
    assert done.returncode == -9
    store = LocalStore(root)
    assert (store.has(digest), list(store.digests()), len(list(root.iterdir()))) == (False, [], 1)
    assert store.sweep(before=1_000_000_000) == 0
    assert store.sweep(before=4_000_000_000) == 1
    assert list(root.iterdir()) == []
    store.put(made.folder, digest)
    check_ciphertext(store.path(digest))


def test_a_full_disk_leaves_nothing(tmp_path: Path, made: Made) -> None:
    """A bound on file sizes stands in for the disk: the same error path as ENOSPC."""
    program = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from cloister.errors import CloisterError; from cloister.sealed.stores import LocalStore, open_store\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "store = LocalStore(Path(sys.argv[1])) if sys.argv[4] == 'local' else open_store('file://' + sys.argv[1])\n"
        "try: store.put(Path(sys.argv[2]), bytes.fromhex(sys.argv[3]))\n"
        "except CloisterError as error: print(error.kind, error.code)\n"
    )
    for kind in ("local", "file"):
        root, digest = tmp_path / kind, made.sealed.digest
        command = [sys.executable, "-c", program, str(root), str(made.folder), digest.hex(), kind]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.stdout.split(), done.returncode) == (["unavailable", "store.full"], 0), done.stderr
        with open_store(f"file://{root}") as store:
            assert not store.has(digest)
            store.put(made.folder, digest)  # with room again, it goes on
        check_ciphertext(root / digest.hex())


def test_a_root_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Unavailable) as caught:
        LocalStore(tmp_path / "file" / "store")
    assert caught.value.code == "store.disk"
    assert str(tmp_path) not in caught.value.message
