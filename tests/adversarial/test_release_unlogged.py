"""No key without its log entry, none twice, and no half-done release after a crash at any point."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NoReturn

import pytest

from cloister.broker.state import State
from cloister.errors import Unavailable, Untrusted
from tests.broker_world import Workload, World

pytest_plugins = ["tests.broker_fixtures"]


class Killed(BaseException):
    """Stands for a process that ends here: nothing catches it."""


def kill(*_: Any, **__: Any) -> NoReturn:
    raise Killed


def begun(world: World) -> tuple[Workload, str]:
    workload = world.workload()
    return workload, workload.attested(world.hospital)


def test_the_log_cannot_be_written(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    workload, cookie = begun(world)
    before, revision = world.hospital.tables(), world.hospital.revision()
    kinds = world.hospital.kinds()
    unwrapped: list[bytes] = []
    monkeypatch.setattr(world.hospital.broker.core.assets, "unwrap_secret_dek", unwrapped.append)
    real = os.fsync

    def full(fd: int) -> None:
        if "journal" in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(28, "No space left on device")
        real(fd)

    monkeypatch.setattr(os, "fsync", full)
    for _ in range(2):  # and it stays so, until the log is opened again
        with pytest.raises(Unavailable) as refused:
            workload.fetch(world.hospital, cookie, world.data.digest)
        assert refused.value.code == "audit.unwritable"
    assert unwrapped == []
    assert (world.hospital.tables(), world.hospital.revision()) == (before, revision)
    assert world.hospital.kinds() == kinds
    monkeypatch.undo()


def test_a_retry_gets_the_identical_answer(world: World) -> None:
    workload, cookie = begun(world)
    first = workload.fetch(world.hospital, cookie, world.data.digest)
    size, tables = len(world.hospital.log()), world.hospital.tables()
    assert workload.fetch(world.hospital, cookie, world.data.digest) == first
    assert (len(world.hospital.log()), world.hospital.tables()) == (size, tables)
    assert world.hospital.kinds().count("key.released") == 1


def crash_before_the_log(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.hospital.broker.core.ledger.log, "append", kill)


def crash_after_the_log(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(State, "apply", kill)


def crash_before_the_key(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.hospital.broker.core.assets, "unwrap_secret_dek", kill)


@pytest.mark.parametrize(
    ("crash", "logged"), [(crash_before_the_log, 0), (crash_after_the_log, 1), (crash_before_the_key, 1)]
)
def test_a_crash_inside_a_release(
    world: World, monkeypatch: pytest.MonkeyPatch, crash: Callable[..., None], logged: int
) -> None:
    workload, cookie = begun(world)
    crash(world, monkeypatch)
    with pytest.raises(Killed):
        workload.fetch(world.hospital, cookie, world.data.digest)
    monkeypatch.undo()
    world.hospital.restart()
    # What the log has is finished, what it lacks never happened, and nothing is left in between.
    assert world.hospital.kinds().count("key.released") == logged
    assert len(world.hospital.tables()["jobs"]) == logged
    assert world.hospital.broker.core.ledger.state.intents() == []
    assert world.hospital.kinds().count("state.recovered") == (crash is crash_after_the_log)
    # The old session is gone; a new one goes on, and the run counts once.
    again = world.workload()
    key, _ = again.open(
        again.fetch(world.hospital, again.attested(world.hospital), world.data.digest), world.data.digest
    )
    assert len(key) == 32
    assert world.hospital.kinds().count("key.released") == logged + 1
    assert len(world.hospital.tables()["jobs"]) == 1


def test_the_state_fails_after_the_log_and_the_process_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk for the database alone: the next turn finishes what the log has before it decides anything."""
    workload, cookie = begun(world)

    def unreachable(*_: Any, **__: Any) -> NoReturn:
        raise Unavailable("state.unreachable", "The broker's state can't be written.")

    monkeypatch.setattr(State, "apply", unreachable)
    with pytest.raises(Unavailable):
        workload.fetch(world.hospital, cookie, world.data.digest)
    assert world.hospital.tables()["jobs"] == []
    monkeypatch.undo()
    workload.fetch(world.hospital, cookie, world.data.digest)
    assert len(world.hospital.tables()["jobs"]) == 1
    assert world.hospital.kinds().count("key.released") == 2


def test_a_receipt_that_does_not_prove_the_entry(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log's own code is not believed either: its proof is checked before the key is touched."""
    workload, cookie = begun(world)
    log = world.hospital.broker.core.ledger.log
    real = log.append
    monkeypatch.setattr(
        log,
        "append",
        lambda entry, **more: (real(entry, **more), log.receipt(0))[1].__class__(
            b"another entry", 0, log.receipt(0).proof, log.head()
        ),
    )
    unwrapped: list[bytes] = []
    monkeypatch.setattr(world.hospital.broker.core.assets, "unwrap_secret_dek", unwrapped.append)
    with pytest.raises(Untrusted) as refused:
        workload.fetch(world.hospital, cookie, world.data.digest)
    assert refused.value.code == "merkle.inclusion"
    assert unwrapped == []
    with pytest.raises(Unavailable):
        workload.fetch(world.hospital, cookie, world.data.digest)


def test_the_key_goes_out_only_after_the_log_has_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    workload, cookie = begun(world)
    assets = world.hospital.broker.core.assets
    real = assets.unwrap_secret_dek
    seen: list[list[str]] = []

    def watched(digest: bytes) -> bytes:
        seen.append(world.hospital.kinds())
        return real(digest)

    monkeypatch.setattr(assets, "unwrap_secret_dek", watched)
    workload.fetch(world.hospital, cookie, world.data.digest)
    assert [kinds[-1] for kinds in seen] == ["key.released"]
