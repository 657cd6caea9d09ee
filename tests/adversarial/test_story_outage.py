"""The lab's broker falls silent, dies, and is given an older memory: nothing goes on without it, nothing is lost."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from cloister.client import operations
from tests.e2e.operator import broker_pid, frozen, kill_broker, workload_pid
from tests.e2e.story import Story, refused, until
from tests.e2e.story import story as story

_DATABASE = ("state.db", "state.db-wal", "state.db-shm")


@pytest.fixture(autouse=True)
def lab_is_back(story: Story) -> Iterator[None]:
    """Whatever a test does to the lab's broker, it runs again afterwards."""
    yield
    if story.home.parties()["lab"]["state"] != "running":
        story.unlock("lab")


def _memory(story: Story, party: str) -> dict[str, Any]:
    """What a party would miss."""
    agent = story.home.agent(party)
    status = agent.status()
    return {
        "assets": agent.assets(),
        "fingerprint": agent.card.fingerprint,
        "pins": {name: card.fingerprint for name, (card, _) in agent.pins().items()},
        "revision": status["revision"],
    }


def test_silence_ends_a_run_within_its_lease_and_nothing_is_lost(story: Story) -> None:
    agreement = story.agree(lease_seconds=15)
    run = story.long_run(agreement, checkpoint_steps=20)
    until("a checkpoint", lambda: run.recorded("lab"))
    with frozen(broker_pid(story, "lab")):
        # The broker still takes connections, as its kernel does that: it is silent, and not away.
        assert run.ended() in [("revoked", code) for code in ("lease.expired", "broker.unreachable", "tls.handshake")]
        assert workload_pid(story) is None
        assert not (run.folder / "out" / "release.json").exists()
        # The other party goes on by itself.
        assert story.in_force("hospital", agreement)
        assert story.seal(story.table, "hospital/meanwhile").version >= 1
    before = _memory(story, "lab")
    kill_broker(story, "lab")
    assert refused(lambda: story.home.agent("lab")) == ("Unavailable", "party.locked")
    story.unlock("lab")
    after = _memory(story, "lab")
    assert {**after, "revision": 0} == {**before, "revision": 0}
    assert after["revision"] >= before["revision"]
    operations.verify_log(story.home, "lab")
    again = story.submit(agreement)
    assert again.ended() == ("succeeded", None)


def test_a_broker_that_is_away_at_the_launch(story: Story) -> None:
    agreement = story.agree()
    kill_broker(story, "lab")
    run = story.submit(agreement)
    assert run.ended() == ("failed", "node.broker")
    assert "lab" in story.home.control("hospital").job(run.digest)["error"]["message"]
    assert not [e for e in story.log("hospital", "key.released") if e["job"] == run.digest]


def test_a_broker_that_is_away_at_submission(story: Story) -> None:
    agreement = story.agree()
    kill_broker(story, "hospital")
    try:
        assert refused(lambda: story.submit(agreement)) == ("Unavailable", "party.locked")
    finally:
        story.unlock("hospital")
    assert story.home.control("hospital").contract(agreement.contract.name)["state"] == "contract.in-force"


def test_a_wrong_passphrase_opens_nothing(story: Story) -> None:
    before = _memory(story, "lab")
    kill_broker(story, "lab")
    wrong = lambda: operations.unlock(story.home, "lab", "pass-that-is-wrong")  # noqa: E731
    assert refused(wrong) == ("Denied", "vault.passphrase")
    assert story.home.parties()["lab"]["state"] == "locked"
    story.unlock("lab")
    assert _memory(story, "lab") == before


def _stop(story: Story, party: str) -> None:
    os.kill(broker_pid(story, party), signal.SIGTERM)
    story.forget(party)
    until("the broker's end", lambda: story.home.parties()[party]["state"] == "locked")


def _copy(source: Path, to: Path) -> None:
    """With owners: the broker's user must still be able to read its own files."""
    shutil.copytree(source, to, ignore=shutil.ignore_patterns("run"))
    for path in (source, *source.rglob("*")):
        place = to / path.relative_to(source)
        if place.exists():
            info = path.lstat()
            os.chown(place, info.st_uid, info.st_gid)


@contextmanager
def _older(story: Story, names: tuple[str, ...] | None) -> Iterator[None]:
    """The lab's broker stands still, with ``names`` of its folder (None: all of it) as they were before a contract was
    signed and revoked; afterwards with what is right."""
    home, old, new = story.home.path / "parties" / "lab", story.folder / "old", story.folder / "new"
    _stop(story, "lab")
    _copy(home, old)
    story.unlock("lab")
    agreement = story.agree()
    operations.revoke_contract(story.home, agreement, "lab", "to be forgotten")
    size = story.home.agent("lab").audit_head()["size"]
    _seen_by_the_hospital(story, size)
    _stop(story, "lab")
    _copy(home, new)
    try:
        _put(old, home, names)
        yield
    finally:
        _put(new, home, names)
        shutil.rmtree(old)
        shutil.rmtree(new)
    story.unlock("lab")
    assert not story.in_force("lab", agreement)


def _seen_by_the_hospital(story: Story, size: int) -> None:
    database = story.home.path / "parties" / "hospital" / "state.db"  # over the network, only the lab's broker may ask

    def seen() -> bool:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as state:
            row = state.execute("SELECT note FROM heads WHERE party = 'lab'").fetchone()
        return row is not None and int(row[0].splitlines()[1]) >= size

    until("the head to be shown to a peer", seen)


def _put(source: Path, home: Path, names: tuple[str, ...] | None) -> None:
    for path in home.iterdir():
        if path.name != "run" and (names is None or path.name in names):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in source.iterdir():
        if names is None or path.name in names:
            target = home / path.name
            if path.is_dir():
                _copy(path, target)
            else:
                shutil.copy2(path, target)
                os.chown(target, path.lstat().st_uid, path.lstat().st_gid)


def test_an_older_state_is_put_back(story: Story) -> None:
    """To forget a revocation. The log knows better; with the right state everything is as it was."""
    with _older(story, _DATABASE):
        assert refused(lambda: story.unlock("lab")) == ("Untrusted", "state.rollback")
        assert story.home.parties()["lab"]["state"] == "locked"
    operations.verify_log(story.home, "lab")


def test_state_and_log_are_put_back_together(story: Story) -> None:
    """Nothing in the folder contradicts anything in it. The peer remembers."""
    with _older(story, None):
        assert refused(lambda: story.unlock("lab")) == ("Untrusted", "state.rollback")
        assert story.home.parties()["lab"]["state"] == "locked"
    operations.verify_log(story.home, "lab")


def test_the_state_is_emptied(story: Story) -> None:
    """As if the party had just been made."""
    home = story.home.path / "parties" / "lab"
    before = _memory(story, "lab")
    _stop(story, "lab")
    database = home / "state.db"
    kept = database.read_bytes()
    info = database.stat()
    connection = sqlite3.connect(database)
    for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        connection.execute(f'DELETE FROM "{table}"')
    connection.commit()
    connection.close()
    try:
        kind, _ = refused(lambda: story.unlock("lab"))
        assert kind == "Untrusted"
    finally:
        for name in _DATABASE:
            (home / name).unlink(missing_ok=True)
        database.write_bytes(kept)
        os.chown(database, info.st_uid, info.st_gid)
    story.unlock("lab")
    assert _memory(story, "lab") == before
