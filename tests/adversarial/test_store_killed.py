"""``kill -9`` at random moments while objects go into a store and out of it: a local folder, and S3 in a real server,
whose client dies or which dies itself. What a store shows is whole; what it took is there; a sweep removes the rest."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import Unavailable
from cloister.sealed import check_ciphertext, read_envelope
from cloister.sealed.stores import FsspecStore, LocalStore, S3Credentials, Store, open_store
from cloister.sealed.stores import s3 as s3_module
from tests.deaths import Death, Nursery, Say, fast_place, nursery_of, random_death
from tests.patience import until
from tests.s3_server import BUCKET, HASTY, S3Server, s3_server
from tests.sealing import MIB, OWNER_KEY, Made, make, opened

LOCAL_KILLS, S3_KILLS, SERVER_KILLS, SOME = 80, 45, 12, 6
LATER = 60  # seconds; what a sweep may remove was written before now and that
Objects = dict[bytes, Made]


def prepare(folder: Path, sizes: list[list[int]]) -> Objects:
    """Versions of one asset, in folders that are named by their digests; the second half of them is much like the
    first, so that whatever is mixed up is noticed only by its content."""
    objects: Objects = {}
    for version, lengths in enumerate(sizes, 1):
        files = {f"f{n}": os.urandom(length) for n, length in enumerate(lengths)}
        made = make(folder / "draft", files, version=version)
        place = folder / made.sealed.digest.hex()
        made.folder.rename(place)
        objects[made.sealed.digest] = Made(place, made.sealed, made.dek, files)
    return objects


def work(say: Say, folder: Path, seed: int, store: Store) -> None:
    """Puts, puts again, takes and removes objects, until it is killed."""
    chance, digests = random.Random(seed), sorted(p.name for p in (folder / "made").iterdir())
    shutil.rmtree(folder / "outbox", ignore_errors=True)
    while True:
        name = chance.choice(digests)
        digest, place = bytes.fromhex(name), folder / "made" / name
        how = chance.choice(["put", "put", "recheck", "take", "delete"])
        say("deleting" if how == "delete" else "putting", name)
        if how == "delete":
            store.delete(digest)
        elif how == "take":
            shutil.copytree(place, folder / "outbox" / name, dirs_exist_ok=True)
            store.take(folder / "outbox" / name, digest)
        else:
            store.put(place, digest, recheck=how == "recheck")
        say("deleted" if how == "delete" else "put", name)


def local_for_ever(say: Say, folder: Path, seed: int) -> None:
    work(say, folder, seed, LocalStore(folder / "store"))


def s3_for_ever(say: Say, folder: Path, seed: int) -> None:
    """Every second one kills itself right before or after a random request, as if a step of a folder."""
    credentials = S3Credentials.from_file(folder / "credentials.json")
    last, count, real = seed % 37, itertools.count(1), s3_module.S3Bucket.ask

    def ask(self: Any, method: str, **named: Any) -> Any:
        number = next(count)
        if 2 * number - 1 == last:
            os.kill(os.getpid(), signal.SIGKILL)
        done = real(self, method, **named)
        if 2 * number == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    if seed % 2:
        s3_module.S3Bucket.ask = ask  # type: ignore[method-assign]
    work(say, folder, seed, open_store(f"s3://{BUCKET}/p", credentials=credentials, patience=HASTY))


class Ledger:
    """What was said of each object: whether it must be there, must not, or may."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self.must: dict[bytes, bool | None] = dict.fromkeys(objects, False)
        self.puts = self.broken = 0

    def hear(self, lines: list[list[Any]]) -> None:
        for what, name in lines:
            self.must[bytes.fromhex(name)] = {"put": True, "deleted": False}.get(what)
            self.puts += what == "put"
        self.broken += bool(lines) and lines[-1][0] in ("putting", "deleting")

    def check(self, store: Store, look: Callable[[bytes, Made], object]) -> None:
        shown = set(store.digests())
        assert shown <= set(self.objects)
        for digest, must in self.must.items():
            assert must is None or (digest in shown) is must, "lost" if must else "still there"
            assert store.has(digest) is (digest in shown)
            if digest in shown:
                look(digest, self.objects[digest])
            if must is None:
                # A put that was under way in vain was never promised; one that is there stays.
                self.must[digest] = digest in shown


def read_whole(store: Store, made: Made) -> None:
    with opened(store.source(made.sealed.digest), made) as sealed:
        assert {path: sealed.read(path) for path in sealed.paths()} == made.files
        sealed.check_roots()
        sealed.require_complete()


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with nursery_of("tests.adversarial.test_store_killed") as ready:
        yield ready


@pytest.fixture
def folder() -> Iterator[Path]:
    with fast_place() as place:
        (place / "made").mkdir()
        yield place


# -- a local folder ----------------------------------------------------------------------------------------------------


def kill_local(nursery: Nursery, folder: Path, kills: int) -> Ledger:
    objects = prepare(folder / "made", [[0, 5 * MIB], [0, 5 * MIB], [1000, 2 * MIB, 0], [1000, 2 * MIB, 0], [1]])
    ledger, chance = Ledger(objects), random.Random(3)
    store = LocalStore(folder / "store")

    def look(digest: bytes, made: Made) -> None:
        check_ciphertext(store.path(digest), signer_keys=[OWNER_KEY.public])
        assert read_envelope(store.path(digest)).digest == digest
        read_whole(store, made)

    for number in range(kills):
        death = random_death(chance, number, seconds=0.02, size=20 * MIB, steps=70)
        ledger.hear(nursery.life("local_for_ever", folder, number, death))
        ledger.check(store, look)
        if number % 4 == 3:
            store.sweep(before=int(time.time()) + LATER)
            assert {p.name for p in (folder / "store").iterdir()} == {d.hex() for d in store.digests()}
    return ledger


def test_a_process_killed_over_a_local_store_some_times(nursery: Nursery, folder: Path) -> None:
    assert kill_local(nursery, folder, SOME).broken


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_process_killed_over_a_local_store_at_random(nursery: Nursery, folder: Path) -> None:
    ledger = kill_local(nursery, folder, LOCAL_KILLS)
    assert ledger.puts > LOCAL_KILLS
    assert ledger.broken > LOCAL_KILLS // 2


# -- S3 ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[S3Server]:
    with s3_server(tmp_path) as running:
        yield running


def some_objects(folder: Path) -> Objects:
    """Two of them go up in parts."""
    return prepare(folder / "made", [[0, 20 * MIB], [0, 20 * MIB], [1000, 2 * MIB], [1000, 2 * MIB], [1]])


def at_rest(store: FsspecStore) -> None:
    """The server may still be at what a client asked for before it died: until what lies there holds still."""
    seen: list[object] = []

    def still() -> bool:
        time.sleep(0.3)
        seen.append(sorted((folder, name, repr(found)) for folder, name, found in store._bucket.everything()))
        return len(seen) > 1 and seen[-1] == seen[-2]

    until("the server to rest", still)


def check_bucket(ledger: Ledger, server: S3Server, store: FsspecStore, folder: Path, *, sweep: bool) -> None:
    def look(digest: bytes, made: Made) -> None:
        place = folder / "back"
        store.fetch(digest, place)
        check_ciphertext(place, signer_keys=[OWNER_KEY.public])
        assert read_envelope(place).digest == digest
        shutil.rmtree(place)
        if digest.hex() < "8":  # a share of them by ranges as well
            read_whole(store, made)

    ledger.check(store, look)
    if sweep:
        store.sweep(before=int(time.time()) + LATER)
        server.changed()
        found = {f for f, _, _ in store._bucket.everything()}
        assert found == {d.hex() for d in store.digests()}, "members without a manifest were left"


def kill_clients(nursery: Nursery, server: S3Server, folder: Path, kills: int) -> Ledger:
    ledger, chance = Ledger(some_objects(folder)), random.Random(5)
    (folder / "credentials.json").write_text(server.credentials().reveal_json())
    (folder / "credentials.json").chmod(0o600)
    with server.store() as store:
        for number in range(kills):
            death = Death(lines=chance.randrange(1, 8), seconds=chance.uniform(0, 0.15))
            ledger.hear(nursery.life("s3_for_ever", folder, number, death))
            at_rest(store)
            check_bucket(ledger, server, store, folder, sweep=number % 5 == 4)
    return ledger


def test_a_client_of_s3_killed_some_times(nursery: Nursery, server: S3Server, folder: Path) -> None:
    assert kill_clients(nursery, server, folder, 5).broken


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_client_of_s3_killed_at_random(nursery: Nursery, server: S3Server, folder: Path) -> None:
    ledger = kill_clients(nursery, server, folder, S3_KILLS)
    assert ledger.puts > 20
    assert ledger.broken > S3_KILLS // 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_server_of_s3_killed_at_random(server: S3Server, folder: Path) -> None:
    """The other end dies under one put after the other; what was promised before stays, what broke off goes on."""
    objects, chance = some_objects(folder), random.Random(6)
    said: list[str] = []
    ledger = Ledger(objects)
    longest = 0.0  # seconds of a put that nobody disturbs, on this machine now
    with server.store() as store:
        for digest, made in sorted(objects.items()):
            start = time.monotonic()
            store.put(made.folder, digest)
            ledger.hear([["put", digest.hex()]])
            longest = max(longest, time.monotonic() - start)
    for number in range(SERVER_KILLS):
        digest, made = chance.choice(sorted(objects.items()))
        with server.store() as store:
            store.delete(digest)
            ledger.hear([["deleted", digest.hex()]])
            killer = threading.Timer(chance.uniform(0, 0.8 * longest), server.kill)
            killer.start()
            try:
                store.put(made.folder, digest)
                ledger.hear([["put", digest.hex()]])
            except Unavailable as error:
                said.append(error.message)
                ledger.hear([["putting", digest.hex()]])
            killer.join()
        server.start()
        with server.store() as store:
            check_bucket(ledger, server, store, folder, sweep=number % 4 == 3)
            store.put(made.folder, digest)
            ledger.hear([["put", digest.hex()]])
            check_bucket(ledger, server, store, folder, sweep=False)
    assert len(said) > 2
    assert all("again" in message for message in said)
