"""The power goes, and the state's file loses what was not synced. The log has it, so nothing granted is forgotten."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloister.audit import AuditLog, parse_event
from cloister.broker import LIMITS
from cloister.broker import sequence as sequence_module
from cloister.broker.ledger import Ledger, reconcile
from cloister.broker.state import ENTRY, Change, State
from cloister.crypto import SigningKey
from cloister.errors import Unavailable, Untrusted
from tests.broker_world import World

pytest_plugins = ["tests.broker_fixtures"]

KEY = SigningKey(b"log key".ljust(32))
ROOT = Path(__file__).parents[2]
ORIGIN = "cloister.invalid/log/hospital"


class Home:
    """A state and a log."""

    def __init__(self, folder: Path, *, create: bool = False) -> None:
        self.folder = folder
        self.state = State.open(folder / "state.db", create=create)
        self.log = (AuditLog.create if create else AuditLog.open)(folder / "log", origin=ORIGIN, signer=KEY)
        self.ledger = Ledger(self.state, self.log, lambda: 1, actor="hospital", log_key=KEY.public, limits=LIMITS)

    def admit(self, number: int) -> None:
        """A run, as a release makes it."""
        row = {"instance": f"{number:032x}", "output": "x", "issued": 1, "entry": ENTRY}
        with self.ledger.turn():
            self.ledger.commit("key.released", target="x", details={}, changes=[Change("permits", row)])

    def tell(self, name: str) -> None:
        """A change that matters before state and log are brought together."""
        change = Change("facts", {"name": name, "value": "x"})
        with self.ledger.turn():
            self.ledger.commit("asset.sealed", target=name, details={}, changes=[change])

    def tables(self) -> dict[str, list[dict[str, object]]]:
        found = {table: self.state.rows(table) for table in ("permits", "facts", "intents", "progress")}
        found["progress"] = [row for row in found["progress"] if row["name"] != "synced"]
        return found

    def wal(self) -> int:
        return (self.folder / "state.db-wal").stat().st_size

    def lose_power(self, to: Path, wal: int) -> Home:
        """What is left: the log, which was synced, and of the state's write-ahead log so many bytes."""
        to.mkdir()
        shutil.copytree(self.folder / "log", to / "log")
        shutil.copy(self.folder / "state.db", to / "state.db")
        (to / "state.db-wal").write_bytes((self.folder / "state.db-wal").read_bytes()[:wal])
        return Home(to)

    def close(self) -> None:
        self.log.close()
        self.state.close()


@pytest.fixture
def home(folder: Path) -> Iterator[Home]:
    (folder / "home").mkdir()
    made = Home(folder / "home", create=True)
    yield made
    made.close()


def test_a_release_syncs_once_and_the_state_never(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.admit(0)
    synced: list[str] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (real(fd), synced.append(os.readlink(f"/proc/self/fd/{fd}")))[0])
    home.ledger.append_soon("attest.ok", target="x", details={})
    home.admit(1)
    assert [Path(path).name for path in synced] == ["journal"]
    assert [home.log.entry(index)[:2] for index in range(home.log.size)] == [b'{"'] * 3


def test_whatever_of_the_state_is_lost_is_made_again(home: Home, folder: Path) -> None:
    home.tell("first")
    synced = home.wal()
    for number in range(5):
        home.admit(number)
    end, whole = home.wal(), home.tables()
    assert end > synced
    for place, kept in enumerate([synced, *range(synced + 1, end, 1777), end]):
        after = home.lose_power(folder / f"after-{place}", kept)
        finished = reconcile(after.state, after.log, KEY.public)
        assert after.tables() == whole
        assert len(finished) <= 5
        assert after.log.asides == {}, "it is durable in the state by now"
        after.admit(5)
        assert [row["entry"] for row in after.state.rows("permits")] == [1, 2, 3, 4, 5, 6]
        after.close()
        again = Home(after.folder)
        assert reconcile(again.state, again.log, KEY.public) == []
        again.close()


def test_a_crash_amid_making_it_again(home: Home, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it is one step: else the part that is done would say that all is."""
    home.tell("first")
    synced = home.wal()
    for number in range(4):
        home.admit(number)
    whole, after = home.tables(), home.lose_power(folder / "after", synced)
    real, calls = State.apply_within, []

    def dies(*args: object) -> None:
        calls.append(args)
        if len(calls) == 3:
            raise Unavailable("state.unreachable", "The disk is gone.")
        real(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(State, "apply_within", staticmethod(dies))
        with pytest.raises(Unavailable):
            reconcile(after.state, after.log, KEY.public)
    assert len(reconcile(after.state, after.log, KEY.public)) == 4
    assert after.tables() == whole
    after.close()


def test_the_log_keeps_only_so_much(home: Home, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence_module, "KEPT_MOST", 4)
    synced = home.wal()
    for number in range(30):
        if len(home.log.asides) == 4:
            synced = home.wal()  # what comes next begins with a sync
        home.admit(number)
        assert 1 <= len(home.log.asides) <= 4
        if number in {0, 3, 4, 7, 29}:
            after = home.lose_power(folder / f"after-{number}", synced)
            reconcile(after.state, after.log, KEY.public)
            assert after.tables() == home.tables()
            after.close()


def test_nothing_is_forgotten_that_the_state_could_not_sync(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence_module, "KEPT_MOST", 2)
    home.admit(0)
    home.admit(1)

    def full(_: State) -> None:
        raise Unavailable("storage.full", "The disk is full.")

    size = home.log.size
    with monkeypatch.context() as patch:
        patch.setattr(State, "sync", full)
        with pytest.raises(Unavailable):
            home.admit(2)
    assert (home.log.size, sorted(home.log.asides)) == (size, [0, 1])
    home.admit(2)
    assert [row["entry"] for row in home.state.rows("permits")] == [0, 1, 2]


@pytest.mark.parametrize("code", ["state.unreachable", "state.busy"])
def test_a_sync_that_fails_is_not_tried_again(home: Home, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel forgets what it could not write: the next sync would succeed, and the log drop what the disk lacks."""
    monkeypatch.setattr(sequence_module, "KEPT_MOST", 2)
    home.admit(0)
    home.admit(1)

    def fails(_: State) -> None:
        raise Unavailable(code, "The disk is bad, or somebody else writes.")

    with monkeypatch.context() as patch:
        patch.setattr(State, "sync", fails)
        with pytest.raises(Unavailable):
            home.admit(2)
    if code == "state.busy":
        home.admit(2)  # nothing was written then
        return
    with pytest.raises(Unavailable) as refused:
        home.admit(2)
    assert (refused.value.code, sorted(home.log.asides)) == ("audit.unwritable", [0, 1])


def test_what_an_ended_process_left_is_written_anew(home: Home, folder: Path) -> None:
    """It may have ended because a sync failed. So the file itself has all of it before the log forgets."""
    home.tell("first")
    for number in range(3):
        home.admit(number)
    after = home.lose_power(folder / "after", home.wal())
    assert reconcile(after.state, after.log, KEY.public) == []
    assert after.log.asides == {}
    (folder / "file").mkdir()
    shutil.copy(after.folder / "state.db", folder / "file" / "state.db")
    alone = State.open(folder / "file" / "state.db", create=False)
    assert [row["entry"] for row in alone.rows("permits")] == [1, 2, 3]
    alone.close()
    after.close()


def test_what_a_turn_announced_in_vain_is_forgotten_although_it_went_on(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An announcement may hold a wrapped key, which must not lie around until the next start."""

    def away(*_: object, **__: object) -> None:
        raise Unavailable("vault.token", "The token can't be reached.")

    change = Change("facts", {"name": "x", "value": "x"})
    with home.ledger.turn():
        with monkeypatch.context() as patch:
            patch.setattr(AuditLog, "append", away)
            with pytest.raises(Unavailable):
                home.ledger.commit("asset.sealed", target="x", details={}, changes=[change])
        assert len(home.state.intents()) == 1
        home.ledger.commit("key.released", target="x", details={}, changes=[])
    home.admit(0)
    assert home.state.intents() == []
    assert (home.state.rows("facts"), home.state.progress().revision) == ([], 3)


def test_nothing_more_is_changed_in_a_turn_that_lost_a_step(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log has the first change and the tables don't: a second one would be decided on what is not true any more,
    and the size of the log that it leaves would hide the first for ever."""

    def full(*_: object, **__: object) -> None:
        raise Unavailable("storage.full", "The disk is full.")

    first, second = (Change("facts", {"name": name, "value": "x"}) for name in ("first", "second"))
    with home.ledger.turn():
        with monkeypatch.context() as patch:
            patch.setattr(State, "apply_within", staticmethod(full))
            with pytest.raises(Unavailable):
                home.ledger.commit("asset.sealed", target="x", details={}, changes=[first])
        with pytest.raises(Unavailable) as refused:
            home.ledger.commit("asset.sealed", target="x", details={}, changes=[second])
        assert (refused.value.code, home.log.size) == ("state.unreachable", 1)
    home.admit(0)
    assert [row["name"] for row in home.state.rows("facts")] == ["first"]
    assert [row["entry"] for row in home.state.rows("permits")] == [1]


@pytest.mark.parametrize("change", [
    lambda data: data.replace(b"permits", b"pins"), lambda data: data.replace(b"output", b"secret"),
    lambda data: data.replace(b'"revision": 3', b'"revision": 9'), lambda data: data.replace(b'"x"', b'["x"]'),
    lambda data: data.replace(b'"revision": 3', b'"revision": 3.0'), lambda data: data.replace(b'"x"', b'"\\ud800"'),
    lambda data: data.replace(b'"issued": 1', b'"issued": %d' % 2**70),
    lambda data: data.replace(b'"issued": 1', b'"issued": null'), lambda data: data.replace(b'"output": "x", ', b""),
    lambda data: data.replace(b'"issued": 1', b'"issued": true'), lambda data: data.replace(b'"row"', b'"rows"'),
    lambda _: b"not json", lambda _: b'{"revision": 3}', lambda _: b"[]", lambda _: b"[" * 100_000,
])  # fmt: skip
def test_what_the_log_keeps_was_changed(
    home: Home, folder: Path, change: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    home.tell("first")
    synced = home.wal()
    home.admit(0)
    home.admit(1)
    after = home.lose_power(folder / "after", synced)
    kept = dict(after.log.asides)
    kept[2] = change(kept[2])
    monkeypatch.setattr(AuditLog, "asides", property(lambda _: kept))
    before = after.tables()
    with pytest.raises(Untrusted) as refused:
        reconcile(after.state, after.log, KEY.public)
    assert refused.value.code in {"log.aside", "state.rollback"}
    assert after.tables() == before
    monkeypatch.undo()
    after.close()


def test_an_older_state_beside_a_log_at_rest_is_refused(world: World, folder: Path) -> None:
    """Where nothing crashed, nothing is made again: then an older copy is what it is."""
    party = world.hospital
    party.broker.close()
    shutil.copy(party.home / "state.db", folder / "older.db")
    party.start()
    world.workload().run()
    party.broker.close()
    assert not (party.home / "state.db-wal").exists()
    shutil.copy(folder / "older.db", party.home / "state.db")
    with pytest.raises(Untrusted) as refused:
        party.start()
    assert refused.value.code == "state.rollback"


def test_a_run_stays_counted_and_a_lease_stays_known(world: World, folder: Path) -> None:
    party = world.hospital
    party.restart()
    copy = folder / "copy"
    copy.mkdir()
    for path in party.home.glob("state.db*"):
        shutil.copy(path, copy / path.name)
    world.workload().run()
    tables = party.tables()
    shutil.copytree(party.home / "log", copy / "log")
    party.broker.close()
    for path in party.home.glob("state.db*"):
        path.unlink()
    for path in copy.glob("state.db*"):
        shutil.copy(path, party.home / path.name)
    shutil.rmtree(party.home / "log")
    shutil.copytree(copy / "log", party.home / "log")
    party.start()
    assert {name: rows for name, rows in party.tables().items() if rows != tables[name]} == {}
    assert party.kinds()[-2:] == ["state.recovered", "broker.started"]


def test_no_wrapped_key_is_ever_in_the_log_s_folder(world: World, folder: Path) -> None:
    """The journal is copied with the log, and outlives the shredding of an asset: a wrapped key has no place in it."""
    world.hospital.seal(folder / "late", "hospital/late", "dataset")
    world.workload().run()
    wrapped = [row["wrapped"] for row in world.hospital.tables()["assets"]]
    files = [path.read_bytes() for path in (world.hospital.home / "log").rglob("*") if path.is_file()]
    assert len(wrapped) >= 2
    assert all(wrapped)
    for text in wrapped:
        assert not any(text[20:60].encode() in data for data in files)
    assert any(b"instances" in data for data in files), "what a release changed is"


WRITER = """
import os, sys
from pathlib import Path
from cloister.broker import sequence
from cloister.broker.ledger import reconcile
from tests.adversarial.test_state_power_lost import KEY, Home

sequence.KEPT_MOST = 5  # so that the end comes amid a sync as well
home = Home(Path(sys.argv[1]))
reconcile(home.state, home.log, KEY.public)
number = len(home.state.rows("permits"))
while True:
    number += 1
    home.ledger.append_soon("attest.ok", target="x", details={})
    home.admit(number)
    if number % 7 == 0:
        home.tell(f"fact {number}")
    os.write(1, b"%d\\n" % number)
"""


def kill_repeatedly(folder: Path, times: int) -> None:
    Home(folder, create=True).close()
    delays, acknowledged = random.Random(3), 0
    for _ in range(times):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, cwd=ROOT) as writer:
            assert writer.stdout is not None
            heard = writer.stdout.readline()
            time.sleep(delays.uniform(0.0, 0.1))
            writer.kill()
            heard += writer.stdout.read()
        acknowledged = max(int(line) for line in heard[: heard.rfind(b"\n")].split(b"\n"))
        home = Home(folder)
        reconcile(home.state, home.log, KEY.public)
        kinds = [parse_event(entry).kind for entry in home.log.entries(0, home.log.size)]
        released = [index for index, kind in enumerate(kinds) if kind == "key.released"]
        assert [row["entry"] for row in home.state.rows("permits")] == released
        assert len(released) >= acknowledged
        assert all(kinds[index - 1] == "attest.ok" for index in released)
        assert len(home.state.rows("facts")) == kinds.count("asset.sealed")
        home.close()


def test_killed_again_and_again(folder: Path) -> None:
    (folder / "home").mkdir()
    kill_repeatedly(folder / "home", 4)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_100_times(folder: Path) -> None:
    (folder / "home").mkdir()
    kill_repeatedly(folder / "home", 100)
