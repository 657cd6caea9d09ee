"""The cache of ciphertext on disk: bounded, checked on read, shared by processes, and never in the way."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import Misuse, Untrusted
from cloister.sealed.ports import ObjectSource
from cloister.sealed.stores import BlockCache, CachedStore, LocalStore
from tests.sealing import FILES, Made, make, opened

MIB = 1 << 20
DIGEST, OTHER = b"\x01" * 32, b"\x02" * 32
BLOCK = os.urandom(MIB)
NAME = "0000.sealed"


@pytest.fixture
def cache(tmp_path: Path) -> BlockCache:
    return BlockCache(tmp_path / "cache", 16 * MIB)


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "blocks").iterdir())


def test_a_block_comes_back(cache: BlockCache, tmp_path: Path) -> None:
    assert cache.get(DIGEST, NAME, 0) is None
    cache.add(DIGEST, NAME, 0, BLOCK)
    assert cache.get(DIGEST, NAME, 0) == BLOCK
    assert BlockCache(tmp_path / "cache", 16 * MIB).get(DIGEST, NAME, 0) == BLOCK, "also for the next process"
    assert (cache.counts.hits, cache.counts.misses, cache.counts.damaged) == (1, 1, 0)
    assert (tmp_path / "cache").stat().st_mode & 0o077 == 0
    assert (tmp_path / "cache" / "key").stat().st_mode & 0o077 == 0


def test_the_bound_holds_and_the_oldest_goes(cache: BlockCache, tmp_path: Path) -> None:
    for number in range(40):
        cache.add(DIGEST, NAME, number, BLOCK)
        os.utime(files(tmp_path)[-1], ns=(0, number)) if number < 3 else None
        assert sum(p.stat().st_size for p in files(tmp_path)) <= 16 * MIB
        cache.get(DIGEST, NAME, 3)  # this one is in use
    assert cache.get(DIGEST, NAME, 39) == BLOCK
    assert cache.get(DIGEST, NAME, 3) == BLOCK
    assert cache.get(DIGEST, NAME, 0) is None
    assert cache.used() <= 16 * MIB


def test_a_smaller_bound_is_kept_from_the_start(cache: BlockCache, tmp_path: Path) -> None:
    big = BlockCache(tmp_path / "cache", 64 * MIB)
    for number in range(40):
        big.add(DIGEST, NAME, number, BLOCK)
    assert big.used() > 16 * MIB
    assert BlockCache(tmp_path / "cache", 16 * MIB).used() <= 16 * MIB


@given(position=st.integers(0, 4095 + 32), bit=st.integers(0, 7))
def test_every_flipped_bit_is_noticed(position: int, bit: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("cache")
    cache = BlockCache(folder / "cache", 16 * MIB)
    cache.add(DIGEST, NAME, 0, BLOCK[:4096])
    (path,) = files(folder)
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)
    assert cache.get(DIGEST, NAME, 0) is None
    assert cache.counts.damaged == 1
    assert files(folder) == [], "it is gone, so the right one can take its place"


@pytest.mark.parametrize("size", [0, 1, 31, 32, 1000, MIB + 31])
def test_a_torn_block_is_noticed(cache: BlockCache, tmp_path: Path, size: int) -> None:
    cache.add(DIGEST, NAME, 0, BLOCK)
    os.truncate(files(tmp_path)[0], size)
    assert cache.get(DIGEST, NAME, 0) is None


def test_blocks_that_change_places_are_noticed(cache: BlockCache, tmp_path: Path) -> None:
    for digest, name, number in ((DIGEST, NAME, 0), (DIGEST, NAME, 1), (DIGEST, "0001.sealed", 0), (OTHER, NAME, 0)):
        cache.add(digest, name, number, os.urandom(1000))
    first, *others = files(tmp_path)
    kept = first.read_bytes()
    for other in others:
        first.write_bytes(other.read_bytes())
        assert cache.get(DIGEST, NAME, 0) is None
        first.write_bytes(kept)
    assert cache.get(DIGEST, NAME, 0) is not None


def test_links_pipes_and_giants_are_no_blocks(cache: BlockCache, tmp_path: Path) -> None:
    cache.add(DIGEST, NAME, 0, BLOCK)
    place = files(tmp_path)[0]
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    assert cache.get(DIGEST, NAME, 0) is None
    place.unlink()
    os.mkfifo(place)
    assert cache.get(DIGEST, NAME, 0) is None
    place.unlink()
    place.touch()
    os.truncate(place, 1 << 40)
    assert cache.get(DIGEST, NAME, 0) is None


def test_a_lost_key_costs_the_cache_only(cache: BlockCache, tmp_path: Path) -> None:
    cache.add(DIGEST, NAME, 0, BLOCK)
    (tmp_path / "cache" / "key").write_bytes(b"short")
    anew = BlockCache(tmp_path / "cache", 16 * MIB)
    assert anew.get(DIGEST, NAME, 0) is None
    anew.add(DIGEST, NAME, 0, BLOCK)
    assert anew.get(DIGEST, NAME, 0) == BLOCK


@pytest.mark.parametrize("count", [b"", b"xx", b"\xff" * 8, b"\0" * 9])
def test_a_spoiled_count_is_set_right(cache: BlockCache, tmp_path: Path, count: bytes) -> None:
    cache.add(DIGEST, NAME, 0, BLOCK)
    (tmp_path / "cache" / "size").write_bytes(count)
    cache.add(DIGEST, NAME, 1, BLOCK)
    assert cache.get(DIGEST, NAME, 1) == BLOCK
    for number in range(40):
        cache.add(DIGEST, NAME, number, BLOCK)
        assert cache.used() <= 16 * MIB


def test_what_a_killed_writer_left_goes(cache: BlockCache, tmp_path: Path) -> None:
    cache.add(DIGEST, NAME, 0, BLOCK)
    (tmp_path / "cache" / "blocks" / ".0123456789abcdef").write_bytes(BLOCK)
    (tmp_path / "cache" / "blocks" / "stranger").symlink_to("/etc/hostname")
    BlockCache(tmp_path / "cache", 16 * MIB)
    assert [p.name for p in files(tmp_path)] == [f"{DIGEST.hex()}.{NAME}.00000000"]
    assert Path("/etc/hostname").exists()


def test_a_folder_that_others_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to("open")
    for name in ("open", "link"):
        with pytest.raises(Misuse) as caught:
            BlockCache(tmp_path / name, 16 * MIB)
        assert caught.value.code == "cache.folder"
    with pytest.raises(Misuse) as caught:
        BlockCache(tmp_path / "cache", MIB)
    assert caught.value.code == "cache.bound"


def test_two_processes_and_threads_share_one_bound(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from cloister.sealed.stores import BlockCache\n"
        "cache = BlockCache(Path(sys.argv[1]), 16 << 20)\n"
        "for n in range(60):\n"
        "    cache.add(b'p' * 32, '0000.sealed', n, bytes([n]) * (1 << 20))\n"
        "    got = cache.get(b'q' * 32, '0000.sealed', n)\n"
        "    assert got is None or got == bytes([n]) * (1 << 20)\n"
        "print(cache.counts.damaged)\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "cache")], stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    cache = BlockCache(tmp_path / "cache", 16 * MIB)
    most: list[int] = []

    def fill() -> None:
        for number in range(30):
            cache.add(b"q" * 32, NAME, number, bytes([number]) * MIB)
            most.append(cache.used())

    threads = [threading.Thread(target=fill) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [p.communicate(timeout=240)[0].strip() for p in processes] == [b"0", b"0"]
    assert [p.returncode for p in processes] == [0, 0]
    assert max(most) <= 16 * MIB
    assert cache.counts.damaged == 0
    assert cache.counts.refused == 0


def test_a_full_disk_is_no_error(tmp_path: Path) -> None:
    program = (
        "import resource, signal, sys; from pathlib import Path; from cloister.sealed.stores import BlockCache\n"
        "cache = BlockCache(Path(sys.argv[1]), 16 << 20)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "cache.add(b'p' * 32, '0000.sealed', 0, bytes(1 << 20))\n"
        "print(cache.counts.refused, cache.get(b'p' * 32, '0000.sealed', 0), cache.used())\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["1", "None", "0"], done.stderr


# --- in front of a store -----------------------------------------------------------------------------------------


class Counting:
    """A store's source that counts what is asked of it."""

    def __init__(self, store: LocalStore) -> None:
        self.store, self.opened, self.gone = store, 0, False

    def source(self, digest: bytes) -> ObjectSource:
        behind = self.store.source(digest)
        outer = self

        class Source:
            def envelope(self) -> bytes:
                outer.opened += 1
                return behind.envelope()

            def open(self, name: str, size: int) -> object:
                if outer.gone:
                    raise Untrusted("test.gone", "The store is away.")
                outer.opened += 1
                return behind.open(name, size)

        return Source()  # type: ignore[return-value]

    def __getattr__(self, name: str) -> object:
        return getattr(self.store, name)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return make(tmp_path / "object")


@pytest.fixture
def behind(tmp_path: Path, made: Made) -> Counting:
    store = LocalStore(tmp_path / "store")
    store.put(made.folder, made.sealed.digest)
    return Counting(store)


def read_all(store: CachedStore, made: Made) -> None:
    with opened(store.source(made.sealed.digest), made) as sealed:
        assert {path: sealed.read(path) for path in sealed.paths()} == FILES
        sealed.check_roots()
        sealed.require_complete()


def test_what_was_read_once_needs_the_store_no_more(cache: BlockCache, behind: Counting, made: Made) -> None:
    store = CachedStore(behind, cache)  # type: ignore[arg-type]
    read_all(store, made)
    behind.gone, behind.opened = True, 0
    read_all(store, made)
    assert behind.opened == 0


def test_a_poisoned_cache_is_noticed_and_filled_anew(
    cache: BlockCache, behind: Counting, made: Made, tmp_path: Path
) -> None:
    store = CachedStore(behind, cache)  # type: ignore[arg-type]
    read_all(store, made)
    blocks = files(tmp_path)
    for path in blocks:
        data = bytearray(path.read_bytes())
        data[-1] ^= 0x80
        path.write_bytes(data)
    read_all(store, made)
    assert cache.counts.damaged == len(blocks)
    before = behind.opened
    read_all(store, made)
    assert (cache.counts.damaged, behind.opened) == (len(blocks), before), "what was damaged was fetched once, and kept"


def test_a_forged_tag_gets_no_further_than_the_reader(
    cache: BlockCache, behind: Counting, made: Made, tmp_path: Path
) -> None:
    """Whoever can read the cache's key can make the cache believe a block; the object's own checks don't."""
    store = CachedStore(behind, cache)  # type: ignore[arg-type]
    read_all(store, made)
    name = f"000{list(FILES).index('data/train.csv')}.sealed"
    block = bytes(cache.get(made.sealed.digest, name, 1) or b"")
    cache.add(made.sealed.digest, name, 1, block[:-1] + bytes([block[-1] ^ 1]))
    with opened(store.source(made.sealed.digest), made) as sealed, pytest.raises(Untrusted):
        sealed.read("data/train.csv")
    store.forget(made.sealed.digest)
    read_all(store, made)


def test_an_object_larger_than_the_cache_is_read_all_the_same(tmp_path: Path, cache: BlockCache) -> None:
    big = {"big.bin": os.urandom(20 * MIB)}
    made = make(tmp_path / "big", big)
    behind = LocalStore(tmp_path / "store")
    behind.put(made.folder, made.sealed.digest)
    store = CachedStore(behind, cache)
    for _ in range(2):
        with opened(store.source(made.sealed.digest), made) as sealed:
            assert sealed.read("big.bin") == big["big.bin"]
        assert cache.used() <= 16 * MIB


def test_a_stores_mistake_does_not_stay_in_the_cache(
    cache: BlockCache, behind: Counting, made: Made, tmp_path: Path
) -> None:
    """Cached while the store was damaged, mended since: fetching finds the way back by itself."""
    place = tmp_path / "store" / made.sealed.digest.hex() / "0001.sealed"
    right = place.read_bytes()
    place.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    store = CachedStore(behind, cache)  # type: ignore[arg-type]
    with pytest.raises(Untrusted):
        store.fetch(made.sealed.digest, tmp_path / "back")
    place.write_bytes(right)
    store.fetch(made.sealed.digest, tmp_path / "back")
    assert (tmp_path / "back" / "0001.sealed").read_bytes() == right
