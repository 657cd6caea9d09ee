"""An asset is under a legal hold. Expiry, its own owner, a re-encryption and an old database try to destroy it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloister.contracts import Terms
from cloister.errors import Denied, Malformed, Unavailable, Untrusted
from cloister.keys import CHECKPOINT
from tests.broker_party import TERMS
from tests.broker_world import NOW, World, nothing_granted
from tests.key_chores import copy_state, deks, disk_full

pytest_plugins = ["tests.broker_fixtures"]

NAME = "hospital/queries"
DAY = 86_400


def hold(world: World) -> None:
    world.hospital.broker.lifecycle.retention.hold(NAME, "litigation 7")


def test_a_held_asset_is_shredded_by_its_owner(world: World) -> None:
    hold(world)
    before, life = deks(world.hospital), world.hospital.broker.lifecycle
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        life.shredder.shred(NAME, None, "quick, before anybody asks")
    assert refused.value.code == "asset.held"
    assert "litigation 7" in refused.value.message
    entry = world.hospital.log()[-1]
    assert (entry.kind, entry.outcome, entry.details["code"]) == ("asset.shredded", "failure", "asset.held")
    assert deks(world.hospital) == before
    assert life.vault.epochs() == (1,)
    assert not life.rotation.pending


def test_a_held_asset_is_shredded_by_expiry(world: World, folder: Path) -> None:
    party = world.hospital
    party.limits = replace(party.limits, expiry_notice=0.0, clock_jump=1e12)
    party.restart()
    hold(world)
    ends = Terms(("CC-BY-4.0",), "confidential", ("metrics", "adapter"), NOW + DAY)
    party.seal(folder / "next", NAME, "dataset", terms=ends)  # a hold is on the name: what comes later is held, too
    before = deks(party)
    world.clock.pass_seconds(2 * DAY)
    with nothing_granted(party):
        for _ in range(3):
            party.broker.lifecycle.keeper.look()
    assert deks(party) == before
    assert len(before) == 2


def test_a_held_asset_expires_in_the_moment_in_which_it_is_put_under_the_hold(world: World) -> None:
    """The keeper saw it overdue; the hold came before its turn."""
    party = world.hospital
    life = party.broker.lifecycle
    life.retention.retain(NAME, None, NOW + DAY)
    world.clock.pass_seconds(2 * DAY)
    (row,) = life.retention.overdue(now=world.clock())
    hold(world)
    with nothing_granted(party):
        assert life.shredder.expire(row) is False
    assert len(deks(party)) == 1


def test_a_hold_does_not_lengthen_what_jobs_may_do(world: World, folder: Path) -> None:
    party = world.hospital
    workload = world.workload()
    cookie = workload.attested(party)
    hold(world)
    party.broker.lifecycle.retention.retain(NAME, None, NOW + 20)
    world.clock.pass_seconds(20)
    with nothing_granted(party), pytest.raises(Denied) as refused:
        workload.fetch(party, cookie, world.data.digest)
    assert refused.value.code == "asset.retention"
    assert len(deks(party)) == 1, "kept, and given to nobody"


def test_a_hold_is_forgotten_with_an_old_database(world: World, folder: Path) -> None:
    import shutil

    party = world.hospital
    copy = copy_state(party.home, folder / "copy")
    hold(world)
    party.broker.close()
    for path in copy.parent.iterdir():
        shutil.copy(path, party.home / path.name)
    with pytest.raises(Untrusted) as refused:
        party.start()
    assert refused.value.code == "state.rollback"


def test_a_re_encryption_is_used_to_get_around_a_hold(world: World) -> None:
    hold(world)
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        world.hospital.broker.lifecycle.tasks.open(NAME, shred_old=True)
    assert refused.value.code == "asset.held"


def test_checkpoints_of_runs_with_held_data_are_shredded(world: World) -> None:
    """They are evidence, too: what was made of the held data."""
    party, life = world.hospital, world.hospital.broker.lifecycle
    world.workload().run()
    hold(world)
    before = life.vault.secret(CHECKPOINT)
    with nothing_granted(party), pytest.raises(Denied) as refused:
        life.roots.shred_checkpoints("quick, before anybody asks")
    assert (refused.value.code, refused.value.details["assets"]) == ("asset.held", NAME)
    assert "litigation 7" in refused.value.message
    entry = party.log()[-1]
    assert (entry.kind, entry.outcome, entry.details["code"]) == ("checkpoints.shredded", "failure", "asset.held")
    assert life.vault.secret(CHECKPOINT) == before
    assert not any(row["cut"] for row in party.tables()["instances"])
    life.retention.unhold(NAME, "settled")
    assert life.roots.shred_checkpoints("a checkpoint leaked") == 1
    assert life.vault.secret(CHECKPOINT) != before


def test_checkpoints_of_a_run_that_can_not_be_read_are_taken_for_held(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = world.hospital.broker.lifecycle
    world.workload().run()
    hold(world)

    def unreadable(*_: object) -> None:
        raise Malformed("job.form", "It is not a job.")

    monkeypatch.setattr("cloister.broker.knowledge.read_job", unreadable)
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        life.roots.shred_checkpoints("quick")
    assert refused.value.code == "asset.held"


def test_a_hold_on_what_no_run_used_keeps_no_checkpoints(world: World, folder: Path) -> None:
    party = world.hospital
    world.workload().run()
    party.seal(folder / "other", "hospital/other", "dataset")
    party.broker.lifecycle.retention.hold("hospital/other", "litigation 8")
    assert party.broker.lifecycle.roots.shred_checkpoints("a checkpoint leaked") == 1


def test_a_hold_comes_while_the_destruction_of_checkpoints_waits_for_the_disk(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    party, life = world.hospital, world.hospital.broker.lifecycle
    world.workload().run()
    before = life.vault.secret(CHECKPOINT)

    with monkeypatch.context() as patch:
        patch.setattr(life.vault, "put_secret", disk_full)
        with pytest.raises(Unavailable):
            life.roots.shred_checkpoints("leaked")
    hold(world)
    life.keeper.look()
    assert life.vault.secret(CHECKPOINT) == before
    assert any("litigation 7" in note and "no share" in note for note in party.broker.notes())
    life.retention.unhold(NAME, "settled")
    life.keeper.look()
    assert life.vault.secret(CHECKPOINT) != before
    assert party.broker.notes() == party.broker.warnings


@pytest.mark.parametrize("again", ["keeper", "command"])
def test_a_hold_comes_after_the_secret_of_checkpoints_is_gone(
    world: World, monkeypatch: pytest.MonkeyPatch, again: str
) -> None:
    """Only the log's word of it was missing. Nobody says that anything was kept."""
    party, life = world.hospital, world.hospital.broker.lifecycle
    world.workload().run()
    before, real = life.vault.secret(CHECKPOINT), life.roots._commit

    def full(kind: str, details: Any, changes: Any) -> None:
        if details.get("stage") == "done":
            raise Unavailable("storage.full", "The disk is full; free space, then try again.")
        real(kind, details, changes)

    with monkeypatch.context() as patch:
        patch.setattr(life.roots, "_commit", full)
        with pytest.raises(Unavailable):
            life.roots.shred_checkpoints("leaked")
    gone = life.vault.secret(CHECKPOINT)
    assert gone != before
    hold(world)
    if again == "command":
        life.roots.shred_checkpoints("leaked")
    life.keeper.look()
    assert life.vault.secret(CHECKPOINT) == gone, "destroyed once is enough"
    done = party.log()[-1]
    assert (done.kind, done.details["stage"], done.details["held_later"]) == ("checkpoints.shredded", "done", NAME)
    notes = [note for note in party.broker.notes() if note not in party.broker.warnings]
    assert len(notes) == 1
    assert "are destroyed as well" in notes[0]


def run_with_own_model(world: World, folder: Path) -> str:
    """A run that uses the held data together with a model of the same owner; the model's name."""
    party, name = world.hospital, "hospital/minilm"
    own = party.seal(folder / "m", name, "model")
    fields = world.contract_fields(name="own", serial=1)
    terms = {"digest": own.digest.hex(), "name": name, "owner": party.name, "terms": TERMS.document(), "use": "base"}
    fields["assets"][1] = terms
    contract = world.sign(fields)
    job = world.make_job(contract, base=name)
    workload = world.workload(contract=contract, job=job)
    workload.fetch(party, workload.attested(party), job.data)
    return name


def test_a_model_is_shredded_that_a_run_used_together_with_held_data(world: World, folder: Path) -> None:
    """Without its key no broker lets that run go on from its checkpoint."""
    party, life = world.hospital, world.hospital.broker.lifecycle
    name = run_with_own_model(world, folder)
    hold(world)
    before = deks(party)
    with nothing_granted(party), pytest.raises(Denied) as refused:
        life.shredder.shred(name, None, "it is not under the hold")
    assert (refused.value.code, refused.value.details["assets"]) == ("asset.held", NAME)
    entry = party.log()[-1]
    assert (entry.kind, entry.outcome, entry.details["code"]) == ("asset.shredded", "failure", "asset.held")
    assert deks(party) == before
    life.retention.unhold(NAME, "settled")
    life.shredder.shred(name, None, "no longer needed")
    assert len(deks(party)) == len(before) - 1


def test_a_model_expires_that_a_run_used_together_with_held_data(world: World, folder: Path) -> None:
    party, life = world.hospital, world.hospital.broker.lifecycle
    name = run_with_own_model(world, folder)
    life.retention.retain(name, None, NOW + DAY)
    hold(world)
    world.clock.pass_seconds(2 * DAY)
    (row,) = life.retention.overdue(now=world.clock())
    with nothing_granted(party):
        assert life.shredder.expire(row) is False
    life.retention.unhold(NAME, "settled")
    assert life.shredder.expire(row) is True


def test_a_hold_keeps_no_asset_that_no_run_used_with_it(world: World, folder: Path) -> None:
    party, life = world.hospital, world.hospital.broker.lifecycle
    run_with_own_model(world, folder)
    party.seal(folder / "other", "hospital/other", "dataset")
    hold(world)
    life.shredder.shred("hospital/other", None, "no run ever used it")
    assert all(row["shredded"] for row in party.tables()["assets"] if row["name"] == "hospital/other")
