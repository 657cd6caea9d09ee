"""A store that lies: cut, swapped, rolled back, or poisoned. It can withhold an object, never pass another off."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.errors import CloisterError, Malformed, Untrusted
from cloister.sealed.stores import BlockCache, CachedStore, FsspecStore
from tests.s3_server import S3Server, proxied, s3_server
from tests.sealing import FILES, OTHER_KEY, Made, make, opened

MIB = 1 << 20
CSV = f"000{list(FILES).index('data/train.csv')}.sealed"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return tmp_path.name


@pytest.fixture
def store(server: S3Server, prefix: str) -> Iterator[FsspecStore]:
    with server.store(prefix) as made:
        yield made


@pytest.fixture
def made(tmp_path: Path, store: FsspecStore) -> Made:
    made = make(tmp_path / "object")
    store.put(made.folder, made.sealed.digest)
    return made


def read_all(store: FsspecStore | CachedStore, made: Made) -> None:
    with opened(store.source(made.sealed.digest), made) as sealed:
        for path in sealed.paths():
            assert sealed.read(path) == made.files[path]
        sealed.check_roots()
        sealed.require_complete()


def refuse(store: FsspecStore | CachedStore, made: Made, dest: Path) -> set[str]:
    """Reading and fetching both fail; returns the codes. Nothing is left at ``dest``."""
    with pytest.raises(Untrusted) as caught:
        read_all(store, made)
    codes = {caught.value.code}
    with pytest.raises((Untrusted, Malformed)) as fetched:
        store.fetch(made.sealed.digest, dest)
    codes.add(fetched.value.code)
    assert not dest.exists()
    assert [p for p in dest.parent.iterdir() if p.name.endswith(".partial")] == []
    return codes


@pytest.mark.parametrize("cut", [1, 16, MIB, 2 * MIB + 100])
def test_a_truncated_member(
    server: S3Server, prefix: str, store: FsspecStore, made: Made, tmp_path: Path, cut: int
) -> None:
    place = server.path(prefix, made.sealed.digest, CSV)
    os.truncate(place, place.stat().st_size - cut)
    server.changed()
    assert refuse(store, made, tmp_path / "back") == {"sealed.size"}


def test_a_member_that_shrinks_after_it_was_listed(
    server: S3Server, prefix: str, store: FsspecStore, made: Made
) -> None:
    place = server.path(prefix, made.sealed.digest, CSV)
    with opened(store.source(made.sealed.digest), made) as sealed:
        os.truncate(place, 1000)
        server.changed()
        with pytest.raises(Untrusted) as caught:
            sealed.read("data/train.csv")
        assert caught.value.code == "sealed.size"
        place.unlink()
        server.changed()
        with pytest.raises(Untrusted) as caught:
            sealed.read("data/train.csv")
        assert caught.value.code == "sealed.incomplete"


def test_an_extended_member(server: S3Server, prefix: str, store: FsspecStore, made: Made, tmp_path: Path) -> None:
    with server.path(prefix, made.sealed.digest, CSV).open("ab") as file:
        file.write(b"more")
    server.changed()
    assert refuse(store, made, tmp_path / "back") == {"sealed.size"}


def test_members_swapped_between_objects(
    server: S3Server, prefix: str, store: FsspecStore, made: Made, tmp_path: Path
) -> None:
    """Same owner, same key, same sizes: another version's file in this version's place."""
    other = make(tmp_path / "other", version=2, previous=made.sealed.digest)
    store.put(other.folder, other.sealed.digest)
    mine, theirs = (server.path(prefix, o.sealed.digest, CSV) for o in (made, other))
    assert mine.stat().st_size == theirs.stat().st_size
    shutil.copy(theirs, mine)
    server.changed()
    codes = refuse(store, made, tmp_path / "back")
    assert "sealed.root" in codes
    store.put(made.folder, made.sealed.digest, recheck=True)
    store.fetch(made.sealed.digest, tmp_path / "back")


def test_an_older_version_presented_as_the_newest(
    server: S3Server, prefix: str, store: FsspecStore, made: Made, tmp_path: Path
) -> None:
    """The reader names the digest that the owner's broker holds as the newest. A store that keeps version 1 under
    version 2's name, whole and rightly signed, is refused by that digest, through a cache as well."""
    newest = make(tmp_path / "newer", version=2, previous=made.sealed.digest)
    store.put(newest.folder, newest.sealed.digest)
    target = server.path(prefix, newest.sealed.digest)
    shutil.rmtree(target)
    shutil.copytree(server.path(prefix, made.sealed.digest), target)
    server.changed()
    cached = CachedStore(store, BlockCache(tmp_path / "cache", 64 * MIB))
    for source in (store, cached):
        assert refuse(source, newest, tmp_path / "back") == {"sealed.digest"}
    with opened(store.source(made.sealed.digest), made) as sealed:  # as what it is, the old version can be read
        assert sealed.manifest.version == 1
    store.put(newest.folder, newest.sealed.digest)  # and its owner's next put mends the store
    with opened(cached.source(newest.sealed.digest), newest) as sealed:
        assert sealed.manifest.version == 2, "the lie did not stay in the cache"


def test_a_manifest_of_somebody_else(
    server: S3Server, prefix: str, store: FsspecStore, made: Made, tmp_path: Path
) -> None:
    forged = make(tmp_path / "forged", key=OTHER_KEY)
    place = server.path(prefix, made.sealed.digest, "manifest.json")
    place.write_bytes((forged.folder / "manifest.json").read_bytes())
    server.changed()
    assert refuse(store, made, tmp_path / "back") == {"sealed.digest"}


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 100])
def test_a_manifest_that_is_none(
    server: S3Server, prefix: str, store: FsspecStore, made: Made, tmp_path: Path, content: bytes
) -> None:
    server.path(prefix, made.sealed.digest, "manifest.json").write_bytes(content)
    server.changed()
    with pytest.raises(Malformed):
        opened(store.source(made.sealed.digest), made)
    with pytest.raises(Malformed):
        store.fetch(made.sealed.digest, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_giant_manifest_is_not_swallowed(server: S3Server, prefix: str, made: Made) -> None:
    os.truncate(server.path(prefix, made.sealed.digest, "manifest.json"), 200 * MIB)
    server.changed()
    with proxied(server) as proxy, server.store(prefix, endpoint=proxy.endpoint) as store:
        with pytest.raises(CloisterError):
            opened(store.source(made.sealed.digest), made)
        assert proxy.received < 20 * MIB


def test_a_poisoned_cache_on_a_shared_disk(store: FsspecStore, made: Made, tmp_path: Path) -> None:
    """Somebody who can write to the cache's blocks puts another object's blocks there."""
    cache = BlockCache(tmp_path / "cache", 64 * MIB)
    cached = CachedStore(store, cache)
    cached.fetch(made.sealed.digest, tmp_path / "first")
    blocks = sorted((tmp_path / "cache" / "blocks").iterdir())
    contents = [path.read_bytes() for path in blocks]
    for path, data in zip(blocks, contents[1:] + contents[:1], strict=True):
        path.write_bytes(data)
    cached.fetch(made.sealed.digest, tmp_path / "second")
    assert cache.counts.damaged == len(blocks)
    for name in ("manifest.json", CSV):
        assert (tmp_path / "second" / name).read_bytes() == (made.folder / name).read_bytes()
