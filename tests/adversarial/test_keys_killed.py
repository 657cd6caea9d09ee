"""The broker dies amid a rotation, a shredding, an expiry: at every durable step, and with SIGKILL anywhere.

Afterwards nothing is lost that was not shredded, and nothing opens that was, from any copy of the database.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloister.audit import check_log
from cloister.broker import Limits
from cloister.errors import CloisterError
from cloister.keys import CHECKPOINT, open_vault
from tests.broker_party import NOW, PASSPHRASE, FakeClock, Party, insecure_judges
from tests.key_chores import Killed, copy_state, deks, dies_at, many, openable

pytest_plugins = ["tests.broker_fixtures"]

NAME = "hospital/set-0"
DAY = 86_400
QUICK = Limits(heads_interval=3600.0, rewrap_batch=2, expiry_notice=0.0, clock_jump=1e12)


def party_in(home: Path, now: int = NOW) -> Party:
    clock = FakeClock()
    clock.now = now
    return Party("hospital", home, clock, insecure_judges(), QUICK)


@pytest.fixture(scope="module")
def home(fast_folder: Path) -> Iterator[Path]:
    """A hospital with four assets, the first of which ends tomorrow."""
    place = Path(tempfile.mkdtemp(dir=fast_folder))
    party = party_in(place / "home")
    many(party, place, 4)
    party.broker.lifecycle.retention.retain(NAME, None, NOW + DAY)
    party.broker.lifecycle.tasks.open("hospital/set-1")
    party.broker.close()
    yield place / "home"
    shutil.rmtree(place)


def rotate(party: Party) -> None:
    party.broker.lifecycle.rotation.rotate()


def shred(party: Party) -> None:
    party.broker.lifecycle.shredder.shred(NAME, None, "withdrawn")
    party.broker.lifecycle.rotation.finish()


def expire(party: Party) -> None:
    party.clock.now = NOW + 2 * DAY
    party.broker.lifecycle.keeper.look()


def rotate_then_shred(party: Party) -> None:
    """Half-way through one rotation: what is shredded may be under the new KEK already."""
    party.broker.lifecycle.rotation.begin("demand")
    party.broker.lifecycle.rotation.finish(most=2)
    shred(party)


DEADLY = {"rotate": rotate, "shred": shred, "expire": expire, "rotate_then_shred": rotate_then_shred}


def die_along(home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, chore: str, numbers: Iterator[int]) -> int:
    """Die at each of these steps, until the chore has fewer; how many deaths that were."""
    for died, number in enumerate(numbers):
        place = folder / str(number)
        shutil.copytree(home, place)
        party = party_in(place)
        before = deks(party)
        copy = copy_state(place, folder / f"copy-{number}")
        (doomed,) = (r["digest"] for r in party.tables()["assets"] if r["name"] == NAME)
        alive = dies(party, number, DEADLY[chore], monkeypatch)
        party.clock.now = NOW
        party.restart()
        fatal = chore != "rotate"
        check_after(party, before, doomed, copy, may_be_gone=fatal, must_be_gone=alive and fatal)
        party.broker.close()
        shutil.rmtree(place)
        if alive:
            return died
    raise AssertionError("it never got through")


@pytest.mark.parametrize("chore", sorted(DEADLY))
def test_dying_at_many_steps(home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, chore: str) -> None:
    offset = 1 + sorted(DEADLY).index(chore)  # together the chores meet before and after of all kinds of steps
    assert die_along(home, folder, monkeypatch, chore, itertools.count(offset, 5)) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("chore", sorted(DEADLY))
def test_dying_at_every_step(home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, chore: str) -> None:
    assert die_along(home, folder, monkeypatch, chore, itertools.count(1)) >= 20


def dies(party: Party, number: int, chore: Callable[[Party], None], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether it survived."""
    with dies_at(number, monkeypatch):
        try:
            chore(party)
        except Killed:
            return False
    return True


def check_after(
    party: Party, before: dict[str, bytes], doomed: str, copy: Path, *, may_be_gone: bool, must_be_gone: bool
) -> None:
    life, now = party.broker.lifecycle, deks(party)
    assert not life.rotation.pending, "a start finishes what was begun"
    assert len(life.vault.epochs()) == 1
    assert {d: k for d, k in before.items() if d != doomed} == {d: k for d, k in now.items() if d != doomed}
    logged = {str(f.details.get("digests0")) for f in party.log() if f.kind in ("asset.shredded", "asset.expired")}
    assert (doomed in now) is (doomed not in logged), "gone exactly if the log says so"
    if doomed in now:
        assert not must_be_gone
        assert now[doomed] == before[doomed]
    else:
        assert may_be_gone
        assert openable(copy, life.vault) == {}
        assert doomed not in openable(copy_state(party.home, copy.parent / f"{copy.parent.name}-after"), life.vault)
    assert party.broker.lifecycle.tasks.open("hospital/set-1").resumed, "the task's key was wrapped anew, too"
    assert party.broker.notes() == party.broker.warnings


def test_dying_while_checkpoints_are_shredded(home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in itertools.count(1):
        place = folder / str(number)
        shutil.copytree(home, place)
        party = party_in(place)
        before = party.broker.core.keys.checkpoint_share("hospital", b"c" * 32, b"j" * 32, "checkpoint")
        alive = dies(party, number, lambda p: p.broker.lifecycle.roots.shred_checkpoints("leaked"), monkeypatch)
        party.restart()
        after = party.broker.core.keys.checkpoint_share("hospital", b"c" * 32, b"j" * 32, "checkpoint")
        begun = [f for f in party.log() if f.kind == "checkpoints.shredded"]
        assert (after != before) is bool(begun), "destroyed exactly if the log says so"
        infos = party.broker.lifecycle.vault.keys()
        replaced = [info.epoch for info in infos if info.name == CHECKPOINT]
        assert replaced == [2 if begun else 1], "and not twice"
        assert not begun or begun[-1].details["stage"] == "done"
        party.broker.close()
        shutil.rmtree(place)
        if alive:
            return


def test_dying_while_the_vault_gets_a_new_master_key(home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in itertools.count(1):
        place = folder / str(number)
        shutil.copytree(home, place)
        party = party_in(place)
        before, copy = deks(party), (place / "vault.json").read_bytes()
        alive = dies(party, number, lambda p: p.broker.lifecycle.roots.rekey(PASSPHRASE), monkeypatch)
        changed = (place / "vault.json").read_bytes() != copy
        party.restart()
        stages = [f.details["stage"] for f in party.log() if f.kind == "vault.rekeyed"]
        assert stages in ([], ["begun"], ["begun", "done"])
        assert stages or not changed, "never changed without a word in the log"
        assert deks(party) == before
        noted = any("give 'cloister key rekey' again" in note for note in party.broker.notes())
        assert noted is (stages == ["begun"]), "what nobody can tell is said"
        party.broker.lifecycle.roots.rekey(PASSPHRASE)
        party.broker.lifecycle.keeper.look()
        assert party.broker.notes() == party.broker.warnings
        party.broker.close()
        (place / "vault.json").write_bytes(copy)
        with pytest.raises(CloisterError) as refused:
            party.start()
        assert refused.value.code == "vault.rollback", "the file from before is refused"
        shutil.rmtree(place)
        if alive:
            return


def test_a_vault_that_can_not_be_written(home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full, not dead: it is said, nothing is lost, and goes on when there is room."""
    shutil.copytree(home, folder / "home")
    party = party_in(folder / "home")
    before = deks(party)
    from cloister.errors import Unavailable

    def full(*_: object) -> None:
        raise Unavailable("storage.full", "The disk is full; free space, then try again.")

    with monkeypatch.context() as patch:
        patch.setattr("cloister.keys.vault.replace_file", full)
        with pytest.raises(CloisterError) as refused:
            shred(party)
        assert refused.value.code == "storage.full"
        party.broker.lifecycle.keeper.look()
        assert any("disk is full" in note for note in party.broker.notes())
    assert party.broker.lifecycle.rotation.pending
    party.broker.lifecycle.keeper.look()
    assert not party.broker.lifecycle.rotation.pending
    assert len(deks(party)) == len(before) - 1
    party.broker.close()


# SIGKILL, anywhere.

VICTIM = """
import json, os, sys, random
from pathlib import Path
from cloister.broker import Broker, Limits, Settings
from cloister.contracts import Terms
from cloister.crypto import random_bytes
from cloister.sealed import FileEntry, Manifest, dek_commitment

home, seed = Path(sys.argv[1]), int(sys.argv[2])
limits = Limits(heads_interval=3600.0, rewrap_batch=3, start_rewraps=5)
broker = Broker.start(Settings(home, limits=limits), b"correct horse battery", judges={})
chance, assets, life = random.Random(seed), broker.core.assets, broker.lifecycle
terms = {"terms": Terms(("MIT",)).document()}

def say(**fact):
    os.write(1, json.dumps(fact).encode() + b"\\n")

def seal(name):
    following, dek = assets.next(name), random_bytes(32)
    previous = following["previous"]
    version, asset = following["version"], bytes.fromhex(following["asset_id"])
    manifest = Manifest(
        owner="hospital", asset_id=asset, name=name, version=version, asset_class="dataset", created=1,
        previous=None if previous is None else bytes.fromhex(previous), terms=terms,
        dek_commit=dek_commitment(dek, asset, version), files=(FileEntry("a", 1, 57, bytes(32)),),
    )
    say(sealed=assets.seal(manifest.to_payload(), dek).digest.hex(), dek=dek.hex(), name=name, version=version)

def shred(name):
    alive = [r["version"] for r in assets.versions(name) if r["shredded"] is None]
    if alive:
        version = chance.choice(alive)
        digest = next(r["digest"] for r in assets.versions(name) if r["version"] == version)
        say(shredding=digest)
        life.shredder.shred(name, [version], "test")
        life.rotation.finish()
        say(shredded=digest)

life.keeper.start()
say(ready=True)
while True:
    name = f"hospital/set-{chance.randrange(12)}"
    newest = assets.newest(name)
    chores = [lambda: seal(name), lambda: seal(name), life.rotation.rotate, lambda: shred(name)]
    if newest and not newest["shredded"]:
        chores.append(lambda: life.tasks.open(name))
    chance.choice(chores)()
"""


class Record:
    """What the victims acknowledged, over all their lives."""

    def __init__(self) -> None:
        self.sealed: dict[str, bytes] = {}
        self.shredding: set[str] = set()
        self.shredded: set[str] = set()

    def hear(self, line: bytes) -> None:
        fact = json.loads(line)
        if "sealed" in fact:
            self.sealed[fact["sealed"]] = bytes.fromhex(fact["dek"])
        self.shredding |= {fact["shredding"]} if "shredding" in fact else set()
        self.shredded |= {fact["shredded"]} if "shredded" in fact else set()


def kill_once(home: Path, record: Record, seed: int, lines: int, delay: float) -> None:
    """One life: it says what it does, and ends ``delay`` seconds after that many lines, or while it starts."""
    with subprocess.Popen(
        [sys.executable, "-c", VICTIM, str(home), str(seed)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as victim:
        assert victim.stdout is not None
        assert victim.stderr is not None
        os.set_blocking(victim.stdout.fileno(), False)
        heard, deadline, killing = b"", time.monotonic() + 240, float("inf")
        if seed % 10 == 0:
            killing = time.monotonic() + 0.5 + delay  # about when it opens the home and finishes what was left
        while time.monotonic() < killing:
            heard += victim.stdout.read() or b""
            if victim.poll() is not None:
                raise AssertionError(victim.stderr.read().decode())
            assert time.monotonic() < deadline
            if heard.count(b"\n") >= lines and killing == float("inf"):
                killing = time.monotonic() + delay
            time.sleep(0.001)
        victim.kill()
        victim.wait()
        os.set_blocking(victim.stdout.fileno(), True)
        heard += victim.stdout.read()
    for line in heard[: heard.rfind(b"\n") + 1].splitlines():
        record.hear(line)


def check_home(home: Path, record: Record, copies: list[Path]) -> None:
    """Open it once so that it finishes what was begun; then look with nothing but the vault and SQLite."""
    party = party_in(home)
    broker, name = party.broker, party.broker.card.log_origin
    now, key = deks(party), broker.core.keys.receipt.public
    assert not broker.lifecycle.rotation.pending or broker.lifecycle.rotation.finish()
    gone = {r["digest"] for r in party.tables()["assets"] if r["shredded"] is not None}
    broker.close()
    check_log(home / "log", name, key)
    for digest, dek in record.sealed.items():
        if digest not in record.shredding:
            assert now.get(digest) == dek, "an acknowledged key was lost"
        assert (digest in gone) is (digest not in now)
    assert record.shredded <= gone
    with_vault = open_vault(home / "vault.json", PASSPHRASE)
    for copy in copies:
        opened = openable(copy, with_vault)
        assert not set(opened) & gone, "what was shredded opens from an old copy of the database"
    with_vault.close()


def kill_repeatedly(home: Path, times: int) -> Record:
    party_in(home).broker.close()
    record, copies, chance = Record(), [], random.Random(11)
    for number in range(times):
        # By what was said, not by the clock alone: a busy machine gets as far as an idle one.
        kill_once(home, record, number, chance.randrange(1, 9), chance.uniform(0.0, 0.03))
        copies.append(copy_state(home, home.parent / "copies" / str(number)))
        copies = copies[-40:]
        if number % 20 == 19:
            check_home(home, record, copies)
    check_home(home, record, copies)
    return record


def test_a_broker_killed_some_times(folder: Path) -> None:
    assert kill_repeatedly(folder / "home", 6).sealed


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_broker_killed_200_times_loses_nothing_and_revives_nothing(folder: Path) -> None:
    record = kill_repeatedly(folder / "home", 220)
    assert min(len(record.sealed), len(record.shredding)) > 50, "the victims did live long enough to do something"
    assert len(record.shredded) > 10
