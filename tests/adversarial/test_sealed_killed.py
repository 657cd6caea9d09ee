"""``kill -9`` at random moments, bytes and steps while objects are sealed. After each, whatever has a name is whole by
the word of the independent checker and opens to what was sealed; what was finished is there; plaintext is nowhere."""

from __future__ import annotations

import io
import json
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cloister.crypto import Envelope, sha256
from cloister.errors import CloisterError
from cloister.sealed import MANIFEST_TYPE, Manifest, check_ciphertext, open_sealed, read_envelope, seal_object
from cloister.sealed.resume import ResumableSeal, SourceFile
from tests.deaths import Death, Nursery, Say, fast_place, nursery_of, random_death
from tests.sealing import MIB, OWNER_KEY, identity, signer

CANARY = b"a row that only its owner may see "
SIZES = (0, 1, 33, 5_000, MIB - 56, MIB - 55, 2 * MIB + 12_345, 5 * MIB)
NAMES = ("visits", "odd[1]*name")
MANY, SOME = 210, 9  # kills of the writer, in the slow suite and in the other
MANY_RESUMED = 60


def contents(seed: int) -> dict[str, bytes]:
    """Files that only their seed decides; they repeat the canary."""
    chance = random.Random(seed)
    row = CANARY + b"%06d" % seed
    sizes = [chance.choice(SIZES) for _ in range(chance.randint(2, 5))]
    return {f"part-{n}.csv": (row * (size // len(row) + 1))[:size] for n, size in enumerate(sizes)}


def dek_of(seed: int) -> bytes:
    return sha256(b"a data key for the test, number %d" % seed)


def seed_of(manifest: Manifest) -> int:
    return int(manifest.terms["seed"])


def whole(folder: Path) -> Manifest:
    """Everything that can be asked of an object that is visible."""
    manifest = check_ciphertext(folder, signer_keys=[OWNER_KEY.public])
    seed, digest = seed_of(manifest), read_envelope(folder).digest
    with open_sealed(
        folder, dek=dek_of(seed), expected_digest=digest, signer_keys=[OWNER_KEY.public], owner="hospital"
    ) as sealed:
        assert {path: sealed.read(path) for path in sealed.paths()} == contents(seed)
        sealed.check_roots()
        sealed.require_complete()
    return manifest


def no_plaintext(place: Path) -> int:
    """The canary is nowhere below; returns how many bytes were looked through."""
    looked = 0
    for path in place.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert CANARY[:16] not in data, path.name
            looked += len(data)
    return looked


# -- the writer --------------------------------------------------------------------------------------------------------


def seal_for_ever(say: Say, folder: Path, seed: int) -> None:
    """New versions over old: version n goes where n - 2 was, so the last one stays beside it."""
    chance = random.Random(seed)
    while True:
        name = chance.choice(NAMES)
        versions = [Manifest.from_payload(read_envelope(p).payload).version for p in places(folder, name) if p.exists()]
        version = max(versions, default=0) + 1
        dest = places(folder, name)[version % 2]
        if dest.exists():
            say("removing", dest.name)
            os.rename(dest, folder / f".{dest.name}.{os.urandom(8).hex()}.partial")
        content = chance.randrange(1_000_000)
        say("sealing", dest.name, content)
        made = seal_object(
            [(path, io.BytesIO(data)) for path, data in contents(content).items()],
            dest,
            dek=dek_of(content),
            identity=identity(version=version),
            sign=lambda kind, payload, name=dest.name: sign_when_swept(folder, name, kind, payload),
            terms={"seed": content},
        )
        say("sealed", dest.name, made.digest.hex())


def places(folder: Path, name: str) -> list[Path]:
    return [folder / f"{name}-{slot}" for slot in range(2)]


def partial_folders(folder: Path, name: str) -> list[Path]:
    return [p for p in folder.iterdir() if p.name.startswith(f".{name}.") and p.name.endswith(".partial")]


def sign_when_swept(folder: Path, name: str, kind: str, payload: bytes) -> Envelope:
    """By now, the writer has removed what was left of earlier ones under this name."""
    assert len(partial_folders(folder, name)) == 1
    return Envelope(kind, payload).signed_by(OWNER_KEY)


class Shelf:
    """What the victims said about each place; what is found there must fit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.there: dict[str, str | None] = {}
        self.said: dict[str, list[Any]] = {}
        self.stages: dict[str, int] = {}
        self.sealed = self.looked = 0

    def hear(self, lines: list[list[Any]]) -> None:
        self.said.clear()
        for line in lines:
            self.said[line[1]] = line
            if line[0] == "sealed":
                self.there[line[1]] = line[2]
                self.sealed += 1

    def check(self) -> None:
        names = {path.name for path in self.folder.iterdir() if not path.name.startswith(".")}
        assert names <= {place.name for name in NAMES for place in places(self.folder, name)}
        for name in names | set(self.there):
            self._check(name, self.folder / name)
        self.looked += no_plaintext(self.folder)
        partial = [p for p in self.folder.iterdir() if p.name.startswith(".")]
        assert all(p.name.endswith(".partial") for p in partial)
        found = (
            {"nothing left"}
            if not partial
            else {"manifest" if (p / "manifest.json").exists() else "part" for p in partial}
        )
        for stage in found:
            self.stages[stage] = self.stages.get(stage, 0) + 1

    def _check(self, name: str, place: Path) -> None:
        last = self.said.get(name, ["sealed"])[0]
        before = self.there.get(name)
        if not place.exists():
            assert before is None or last in ("removing", "sealing"), "a finished object is lost"
            self.there[name] = None
            return
        manifest, digest = whole(place), read_envelope(place).digest.hex()
        if digest != before:
            assert last == "sealing", "neither the old version nor the new one"
            assert seed_of(manifest) == self.said[name][2]
        self.there[name] = digest


def kill_the_writer(nursery: Nursery, folder: Path, kills: int) -> Shelf:
    shelf, chance = Shelf(folder), random.Random(41)
    for number in range(kills):
        death = random_death(chance, number, seconds=0.03, size=24 * MIB, steps=110)
        shelf.hear(nursery.life("seal_for_ever", folder, number, death))
        shelf.check()
    for name in NAMES:
        for dest in places(folder, name):  # the next writer sweeps, also what a kill left of a removal
            if dest.exists():
                os.rename(dest, folder / f".{dest.name}.{os.urandom(8).hex()}.partial")
            files = [(path, io.BytesIO(data)) for path, data in contents(7).items()]
            seal_object(files, dest, dek=dek_of(7), identity=identity(), sign=signer(), terms={"seed": 7})
            whole(dest)
    assert sorted(os.listdir(folder)) == sorted(p.name for name in NAMES for p in places(folder, name))
    return shelf


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with nursery_of("tests.adversarial.test_sealed_killed") as ready:
        yield ready


@pytest.fixture
def folder() -> Iterator[Path]:
    with fast_place() as place:
        yield place


def test_a_writer_killed_some_times(nursery: Nursery, folder: Path) -> None:
    assert kill_the_writer(nursery, folder, SOME).looked > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_writer_killed_at_random_200_times(nursery: Nursery, folder: Path) -> None:
    shelf = kill_the_writer(nursery, folder, MANY)
    assert shelf.sealed > MANY, "the victims did live long enough to do something"
    assert min(shelf.stages[stage] for stage in ("nothing left", "part", "manifest")) >= 3, shelf.stages


# -- sealing that goes on ----------------------------------------------------------------------------------------------


def resume_for_ever(say: Say, folder: Path, seed: int) -> None:
    """As re-encryption does it: what the broker signed is only published, anything else is finished first."""
    while True:
        goal = len([p for p in (folder / "done").iterdir() if not p.name.startswith(".")])
        dest, work = folder / "done" / f"{goal:04d}", folder / "done" / f".{goal:04d}"
        say("begun", goal)
        with ResumableSeal(work) as seal:
            payload = seal.draft()
            if payload is None or not signed(folder, payload).exists():
                payload = seal.write(
                    [source(say, goal, path, data) for path, data in contents(goal).items()],
                    dek=dek_of(goal),
                    identity=identity(),
                    terms={"seed": goal},
                    progress=lambda _: None,
                )
                signed(folder, payload).touch()
            seal.publish(Envelope(MANIFEST_TYPE, payload).signed_by(OWNER_KEY), dest)
        say("published", goal)


def signed(folder: Path, payload: bytes) -> Path:
    return folder / "broker" / sha256(payload).hex()


def source(say: Say, goal: int, path: str, data: bytes) -> SourceFile:
    @contextmanager
    def opened() -> Iterator[io.BytesIO]:
        say("opened", goal, path)
        yield io.BytesIO(data)

    return SourceFile(path, len(data), opened)


class Desk:
    """The work folder and what came of it, over all lives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.finished: set[tuple[int, str]] = set()
        self.streams: dict[bytes, bytes] = {}
        self.kept = self.published = 0

    def check(self, lines: list[list[Any]]) -> None:
        again = {(line[1], line[2]) for line in lines if line[0] == "opened"}
        assert not again & self.finished, "a finished file was made again"
        self.kept += len(self.finished)
        done = sorted(p for p in (self.folder / "done").iterdir() if not p.name.startswith("."))
        assert len(done) >= self.published + sum(line[0] == "published" for line in lines), "a published object is lost"
        for number, place in enumerate(done):
            if number >= self.published:
                assert (place.name, seed_of(whole(place))) == (f"{number:04d}", number)
                no_plaintext(place)
                self.streams.clear()
        self.published = len(done)
        work = self.folder / "done" / f".{self.published:04d}"
        no_plaintext(work)
        self._look_at_work(work)

    def _look_at_work(self, work: Path) -> None:
        self.finished.clear()
        for path in work.glob("*") if work.exists() else ():
            data = path.read_bytes()
            if path.suffix in (".sealed", ".part") and len(data) >= 40:
                self._salt(data)
            elif path.name == "finished.jsonl":
                records = [json.loads(line) for line in data.splitlines(keepends=True) if line.endswith(b"\n")]
                self.finished |= {(self.published, record["path"]) for record in records}

    def _salt(self, data: bytes) -> None:
        """One salt is one AES key: it may only ever have encrypted one text, of which this shows more or less."""
        before = self.streams.get(data[:40], b"")
        assert data.startswith(before) or before.startswith(data), "a key encrypted twice"
        self.streams[data[:40]] = max(data, before, key=len)


def kill_the_resumed(nursery: Nursery, folder: Path, kills: int) -> Desk:
    desk, chance = Desk(folder), random.Random(43)
    for name in ("done", "broker"):
        (folder / name).mkdir()
    for number in range(kills):
        death = random_death(chance, number, seconds=0.02, size=12 * MIB, steps=60)
        desk.check(nursery.life("resume_for_ever", folder, number, death))
    return desk


def test_a_resumable_seal_killed_some_times(nursery: Nursery, folder: Path) -> None:
    desk = kill_the_resumed(nursery, folder, SOME)
    assert desk.streams


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_resumable_seal_killed_at_random(nursery: Nursery, folder: Path) -> None:
    desk = kill_the_resumed(nursery, folder, MANY_RESUMED)
    assert desk.published > 10
    assert desk.kept > 20, "hardly any life went on from another's work"


# -- the checks themselves ---------------------------------------------------------------------------------------------


def test_the_checks_of_these_tests_find_what_they_look_for(folder: Path) -> None:
    shelf, dest = Shelf(folder), folder / "visits-0"
    files = [(path, io.BytesIO(data)) for path, data in contents(3).items()]
    made = seal_object(files, dest, dek=dek_of(3), identity=identity(), sign=signer(), terms={"seed": 3})
    shelf.hear([["sealing", "visits-0", 3], ["sealed", "visits-0", made.digest.hex()]])
    shelf.check()
    part = dest / "0000.sealed"
    good = part.read_bytes()
    part.write_bytes(good[:-1])
    with pytest.raises(CloisterError):
        shelf.check()
    part.write_bytes(good)
    (folder / ".visits-0.x.partial").mkdir()
    (folder / ".visits-0.x.partial" / "0000.sealed").write_bytes(b"\x28" + CANARY)
    with pytest.raises(AssertionError, match=r"0000\.sealed"):
        shelf.check()
    (folder / ".visits-0.x.partial" / "0000.sealed").unlink()
    shelf.hear([])
    dest.rename(folder / ".visits-0.y.partial")
    with pytest.raises(AssertionError, match="lost"):
        shelf.check()


def test_a_victim_that_fails_is_not_taken_for_a_killed_one(nursery: Nursery, folder: Path) -> None:
    never = Death(lines=1 << 30)
    with pytest.raises(AssertionError, match="FileNotFoundError"):  # nobody made its folders
        nursery.life("resume_for_ever", folder, 0, never)
