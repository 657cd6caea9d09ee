"""KEK epochs: new one, rewrap in batches, old ones die; on demand, on a schedule, after a crash, twice at once."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.broker.rotation import fact
from cloister.broker.schedule import due
from cloister.errors import Denied, Misuse, Unavailable, Untrusted
from tests.broker_world import NOW, Party, World
from tests.key_chores import deks, many

pytest_plugins = ["tests.broker_fixtures"]

DAY = 86_400


def test_a_rotation_wraps_all_anew_in_batches_and_destroys_the_old(world: World, folder: Path) -> None:
    party = world.hospital
    party.broker.close()
    party.limits = replace(party.limits, rewrap_batch=3)
    party.start()
    many(party, folder, 6)
    before, life = deks(party), party.broker.lifecycle
    life.rotation.rotate()
    assert life.vault.epochs() == (2,)
    assert deks(party) == before
    assert len(before) == 7
    events = [f for f in party.log() if f.kind.startswith("kek.")]
    assert [f.kind for f in events] == ["kek.rotation", *["kek.rewrapped"] * 3, "kek.rotation", "kek.destroyed"]
    assert [f.details["count"] for f in events[1:4]] == [3, 3, 1]
    assert [f.details["done"] for f in events[1:4]] == [3, 6, 7]
    assert (events[-1].details["destroyed"], events[-1].details["rewrapped"]) == (1, 7)
    progress = life.rotation.progress()
    assert (progress["pending"], progress["running"], progress["error"]) == (False, False, None)
    assert progress["last"]["remains"], "a file's copies are out of reach, and that is said"
    party.restart()
    assert deks(party) == before


def test_a_rotation_in_pieces_is_gone_on_with(world: World, folder: Path) -> None:
    party = world.hospital
    many(party, folder, 4)
    before = deks(party)
    party.broker.close()
    party.limits = replace(party.limits, rewrap_batch=2, start_rewraps=2)
    rotation = party.start().lifecycle.rotation
    assert rotation.begin("demand") is True
    assert rotation.begin("demand") is False, "the second joins"
    assert rotation.finish(most=2) is False
    assert rotation.pending
    assert rotation.progress()["epochs"] == [1, 2]
    assert deks(party) == before, "half-way every key opens"
    rotation = party.restart().lifecycle.rotation
    assert rotation.pending, "a start does only so much before it serves"
    assert rotation.finish() is True
    assert rotation.progress()["epochs"] == [2]
    assert deks(party) == before
    assert [f.details.get("stage") for f in party.log() if f.kind == "kek.rotation"] == [None, "destroying"]


def test_old_epochs_are_swept_at_start(world: World) -> None:
    world.hospital.broker.lifecycle.vault.rotate_kek()  # by whatever, without a word in the log
    before = deks(world.hospital)
    life = world.hospital.restart().lifecycle
    assert life.vault.epochs() == (2,)
    assert deks(world.hospital) == before
    assert [f.details["reason"] for f in world.hospital.log() if f.kind == "kek.destroyed"] == ["sweep"]


def test_what_is_sealed_meanwhile_is_under_the_new_one(world: World, folder: Path) -> None:
    party = world.hospital
    rotation = party.broker.lifecycle.rotation
    rotation.begin("demand")
    rotation.finish(most=0)
    many(party, folder, 1)
    assert {row["epoch"] for row in party.tables()["assets"]} == {1, 2}
    rotation.finish()
    assert {row["epoch"] for row in party.tables()["assets"]} == {2}
    assert len(deks(party)) == 2


def test_two_rotations_at_once(world: World, folder: Path) -> None:
    many(world.hospital, folder, 5)
    rotation = world.hospital.broker.lifecycle.rotation
    threads = [threading.Thread(target=rotation.rotate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not rotation.pending
    events = [f.kind for f in world.hospital.log() if f.kind in ("kek.rotation", "kek.destroyed")]
    assert events == ["kek.rotation", "kek.rotation", "kek.destroyed"] * (len(events) // 3)
    assert len(deks(world.hospital)) == 6
    assert rotation.progress()["epochs"] == [1 + len(events) // 3]


def test_a_second_thread_does_not_wait(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    rotation, vault = world.hospital.broker.lifecycle.rotation, world.hospital.broker.lifecycle.vault
    entered, go = threading.Event(), threading.Event()
    real = vault.rotate_kek

    def slow() -> int:
        entered.set()
        assert go.wait(30)
        return real()

    monkeypatch.setattr(vault, "rotate_kek", slow)
    thread = threading.Thread(target=rotation.rotate)
    thread.start()
    assert entered.wait(30)
    assert rotation.progress()["running"] is True
    assert rotation.finish() is False
    assert rotation.begin("demand") is False
    go.set()
    thread.join()
    assert rotation.progress()["running"] is False


def test_whoever_reads_that_it_is_over_reads_what_it_left(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    rotation = world.hospital.broker.lifecycle.rotation
    rotation.begin("demand")

    def ending_just_then(ledger: Any, name: str) -> Any:
        found = fact(ledger, name)
        if name in ("rotation", "destroyed"):
            monkeypatch.undo()
            rotation.rotate()
        return found

    # The keeper's thread ends the rotation right after the first of the two facts was read.
    monkeypatch.setattr("cloister.broker.rotation.fact", ending_just_then)
    progress = rotation.progress()
    assert progress["pending"] or progress["last"] is not None
    assert rotation.progress()["pending"] is False


def test_an_unreachable_vault_is_said_and_tried_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    life = world.hospital.broker.lifecycle
    before = deks(world.hospital)

    def away(*_: object) -> Any:
        raise Unavailable("token.absent", "The token is not there; put it in.")

    monkeypatch.setattr(life.vault, "rewrap", away)
    life.rotation.begin("demand")
    life.keeper.look()
    assert life.rotation.progress()["error"] == "The token is not there; put it in."
    assert any("The token is not there" in note for note in world.hospital.broker.notes())
    assert life.rotation.progress()["epochs"] == [1, 2], "nothing is destroyed while something needs it"
    monkeypatch.undo()
    life.keeper.look()
    assert world.hospital.broker.notes() == world.hospital.broker.warnings
    assert life.rotation.progress()["epochs"] == [2]
    assert deks(world.hospital) == before


def test_a_key_whose_epoch_is_gone_does_not_hold_up_the_others(world: World, folder: Path) -> None:
    party = world.hospital
    many(party, folder, 1)
    life = party.broker.lifecycle
    kept = deks(party)
    lost = world.data.digest.hex()
    row = next(r for r in party.tables()["assets"] if r["digest"] == lost)
    life.vault.rotate_kek()
    with party.broker.core.ledger.turn():
        from cloister.broker.state import Change
        from cloister.broker.wrapped import rewrapped

        rows = [r for r in party.tables()["assets"] if r["digest"] != lost]
        changes: list[Change] = [rewrapped(life.vault, "assets", r) for r in rows]
        party.broker.core.ledger.commit("kek.rewrapped", target="hospital", details={}, changes=changes)
    life.vault.destroy_epoch(1)  # by somebody who didn't ask
    assert row["epoch"] == 1
    life.rotation.rotate()
    last = life.rotation.progress()["last"]
    assert last["lost"] == ["hospital/queries version 1"]
    assert life.vault.epochs() == (3,)
    with pytest.raises(Denied) as refused:
        party.broker.core.assets.unwrap_secret_dek(world.data.digest)
    assert refused.value.code == "wrap.epoch"
    assert deks(party, skip={lost}) == {digest: dek for digest, dek in kept.items() if digest != lost}


def test_a_changed_wrapped_key_stops_the_destruction(world: World, folder: Path) -> None:
    """It might be mended from a copy of the state, as long as the old KEK lives."""
    party = world.hospital
    life = party.broker.lifecycle
    (row,) = party.tables()["assets"]
    document = json.loads(row["wrapped"])
    document["box"] = document["box"][:-4] + ("AAAA" if document["box"][-4:] != "AAAA" else "BBBB")
    with party.broker.core.ledger.turn():
        from cloister.broker.state import Change
        from cloister.crypto import canonical_json

        spoilt = {**row, "wrapped": canonical_json(document).decode()}
        party.broker.core.ledger.commit("kek.rewrapped", target="x", details={}, changes=[Change("assets", spoilt)])
    with pytest.raises(Untrusted) as refused:
        life.rotation.rotate()
    assert refused.value.code == "wrap.changed"
    assert "hospital/queries version 1" in refused.value.message
    assert life.vault.epochs() == (1, 2)
    life.shredder.shred("hospital/queries", [1], "its key is spoilt")
    life.rotation.rotate()
    assert life.vault.epochs() == (3,)


# The schedule.


@pytest.mark.parametrize(
    ("passed", "rotate", "said"),
    [(0, False, None), (DAY - 1, False, None), (DAY, True, None), (2 * DAY - 1, True, None),
     (2 * DAY, True, "2 intervals"), (3650 * DAY, True, "One rotation"), (-1, False, "before the last rotation")],
)  # fmt: skip
def test_when_a_rotation_is_due(passed: int, rotate: bool, said: str | None) -> None:
    found = due(DAY, NOW, now=NOW + passed)
    assert found.rotate is rotate
    assert (found.note is None) if said is None else (said in (found.note or ""))


@given(st.integers(DAY, 3660 * DAY), st.integers(0, 10**10), st.integers(0, 10**10))
def test_never_twice_for_one_interval(every: int, last: int, now: int) -> None:
    """After a rotation the next one is a whole interval away, whatever the clock did before."""
    if due(every, last, now=now).rotate:
        assert now - last >= every
        assert not due(every, now, now=now + every - 1).rotate


def scheduled(party: Party, every: int = 90 * DAY) -> Any:
    return party.broker.lifecycle.schedule.set(every)


def test_a_schedule_is_followed(world: World) -> None:
    party = world.hospital
    answer = scheduled(party)
    assert answer == {"every": 90 * DAY, "last": NOW, "next": NOW + 90 * DAY}
    keeper = party.broker.lifecycle.keeper
    keeper.look()
    assert party.kinds()[-1] == "kek.scheduled"
    world.clock.pass_seconds(90 * DAY)
    keeper.look()
    keeper.look()
    assert party.kinds().count("kek.destroyed") == 1
    assert party.broker.lifecycle.schedule.document()["last"] == NOW + 90 * DAY
    assert party.restart().lifecycle.schedule.document()["every"] == 90 * DAY
    party.broker.lifecycle.schedule.set(None)
    world.clock.pass_seconds(900 * DAY)
    party.broker.lifecycle.keeper.look()
    assert party.kinds().count("kek.destroyed") == 1


def test_a_clock_that_jumped_ahead_brings_one_rotation_and_that_is_said(world: World) -> None:
    party = world.hospital
    scheduled(party)
    world.clock.pass_seconds(3650 * DAY)
    for _ in range(3):
        party.broker.lifecycle.keeper.look()
    assert party.kinds().count("kek.destroyed") == 1
    assert any("40 intervals" in note for note in party.broker.notes())


def test_a_clock_that_went_back_brings_none_and_that_is_said(world: World) -> None:
    party = world.hospital
    scheduled(party)
    world.clock.now = NOW - 1000 * DAY
    party.restart()
    party.broker.lifecycle.keeper.look()
    assert "kek.destroyed" not in party.kinds()
    assert any("before the last rotation" in note for note in party.broker.notes())
    party.broker.lifecycle.rotation.rotate()  # by hand: then it counts from here
    party.broker.lifecycle.keeper.look()
    assert not any("before the last rotation" in note for note in party.broker.notes())


@pytest.mark.parametrize("every", [0, DAY - 1, 3661 * DAY])
def test_schedules_that_are_none(calm: World, every: int) -> None:
    with pytest.raises(Misuse) as refused:
        calm.hospital.broker.lifecycle.schedule.set(every)
    assert refused.value.code == "schedule.every"
    assert fact(calm.hospital.broker.core.ledger, "schedule") is None


def test_a_bug_does_not_end_the_keepers_thread(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    life = world.hospital.broker.lifecycle

    def bug(*_: object) -> Any:
        raise RuntimeError("quotes a secret")

    monkeypatch.setattr(life.vault, "rewrap", bug)
    life.rotation.begin("demand")
    life.keeper.look()
    (note,) = (n for n in world.hospital.broker.notes() if n.startswith("Keys"))
    assert "(RuntimeError) stopped the rotation" in note
    assert "secret" not in note
    monkeypatch.undo()
    life.keeper.look()
    assert not life.rotation.pending


def test_the_keepers_thread_does_it(world: World) -> None:
    import time

    life = world.hospital.broker.lifecycle
    life.rotation.begin("demand")
    life.keeper.wake()
    deadline = time.monotonic() + 30
    while life.rotation.pending:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert life.vault.epochs() == (2,)
    life.keeper.stop()
    life.keeper.start()
    assert life.rotation.begin("demand")  # nobody does it any more
    assert life.rotation.pending


def test_a_kek_that_a_device_lost(world: World, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The vault's file names it, the device has it no more: all else is wrapped anew, and what is lost is named."""
    party = world.hospital
    many(party, folder, 2)
    life = party.broker.lifecycle
    real = life.vault.unwrap

    def unwrap(wrapped: Any, digest: bytes) -> bytes:
        if digest == world.data.digest:
            raise Denied("wrap.gone", "The device does not hold that KEK any more.")
        return real(wrapped, digest)

    monkeypatch.setattr(life.vault, "unwrap", unwrap)
    life.rotation.rotate()
    last = life.rotation.progress()["last"]
    assert (last["lost"], last["rewrapped"]) == (["hospital/queries version 1"], 2)
    assert life.vault.epochs() == (2,)


@pytest.mark.parametrize("code", ["wrap.kek", "wrap.algorithm"])
def test_a_wrapped_key_that_this_vault_did_not_make(world: World, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    life = world.hospital.broker.lifecycle

    def refuses(*_: object) -> bytes:
        raise Denied(code, "No.")

    monkeypatch.setattr(life.vault, "unwrap", refuses)
    with pytest.raises(Untrusted) as refused:
        life.rotation.rotate()
    assert refused.value.code == "wrap.changed"
    assert life.vault.epochs() == (1, 2)


def test_a_credential_that_a_device_refuses_is_told_as_it_is(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    life = world.hospital.broker.lifecycle

    def refuses(*_: object) -> bytes:
        raise Denied("pkcs11.pin", "The PIN is wrong.")

    monkeypatch.setattr(life.vault, "unwrap", refuses)
    with pytest.raises(Denied) as refused:
        life.rotation.rotate()
    assert refused.value.code == "pkcs11.pin"
    assert life.vault.epochs() == (1, 2)


def test_keys_are_read_all_the_while(world: World, folder: Path) -> None:
    """A release reads a row, and the KEK dies before it unwraps: it reads again, and nobody is refused."""
    party = world.hospital
    digests = [*many(party, folder, 3), world.data.digest]
    life, assets = party.broker.lifecycle, party.broker.core.assets
    task = life.tasks.open("hospital/queries")
    expected = {digest: assets.unwrap_secret_dek(digest) for digest in digests}
    stop, wrong = threading.Event(), list[object]()

    def read() -> None:
        while not stop.is_set():
            try:
                for digest, dek in expected.items():
                    if assets.unwrap_secret_dek(digest) != dek:
                        wrong.append(digest)
                if life.tasks._unwrap_secret(task.task) != task.secret_dek:
                    wrong.append("task")
            except Exception as error:  # a thread has no caller
                wrong.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(15):
        life.rotation.rotate()
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("table", ["assets", "tasks"])
def test_a_row_that_is_wrapped_anew_between_reading_and_unwrapping(
    world: World, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    life, assets = world.hospital.broker.lifecycle, world.hospital.broker.core.assets
    opened = life.tasks.open("hospital/queries")
    real, calls = life.vault.unwrap, [0]

    def late(wrapped: Any, context: bytes) -> bytes:
        calls[0] += 1
        if calls[0] == 1:
            life.rotation.rotate()
        return real(wrapped, context)

    with monkeypatch.context() as patch:
        patch.setattr(life.vault, "unwrap", late)
        if table == "assets":
            assert assets.unwrap_secret_dek(world.data.digest) == opened.source_secret_dek
        else:
            assert life.tasks._unwrap_secret(opened.task) == opened.secret_dek
    life.tasks.cancel("hospital/queries")
    with pytest.raises(Denied) as refused:
        life.tasks._unwrap_secret(opened.task)
    assert refused.value.code == "task.ended"
    with pytest.raises(Misuse) as refused_too:
        life.tasks._unwrap_secret("00" * 16)
    assert refused_too.value.code == "task.none"
