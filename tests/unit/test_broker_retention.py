"""How long assets are kept, legal holds, shredding, and re-encryption at the owner's broker."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.broker.assets import FOREVER
from cloister.broker.retention import check_held, check_until, overdue
from cloister.contracts import Terms
from cloister.errors import CloisterError, Denied, Misuse
from cloister.sealed import check_dek
from tests.broker_world import NOW, World, nothing_granted
from tests.key_chores import deks, many

pytest_plugins = ["tests.broker_fixtures"]

NAME = "hospital/queries"
DAY = 86_400


def ending(until: int) -> Terms:
    return Terms(("CC-BY-4.0",), "confidential", ("metrics", "adapter"), until)


# Pure.


@given(st.integers(0, 2**40), st.integers(0, 2**40), st.booleans(), st.integers(0, 2**40))
def test_what_a_contract_names_is_never_kept_longer(present: int, until: int, contracted: bool, now: int) -> None:
    expected: type[CloisterError] | None = None
    if until <= now:
        expected = Misuse
    elif contracted and until > present:
        expected = Denied
    if expected is None:
        check_until(present, until, contracted=contracted, now=now)
    else:
        with pytest.raises(expected):
            check_until(present, until, contracted=contracted, now=now)


def test_what_is_overdue() -> None:
    def row(name: str, until: int, shredded: int | None = None) -> dict[str, Any]:
        return {"name": name, "keep_until": until, "shredded": shredded}

    rows = [row("a", NOW), row("b", NOW + 1), row("c", NOW, NOW), row("d", NOW - 1)]
    assert [r["name"] for r in overdue(rows, ["d"], now=NOW)] == ["a"]
    check_held("a", None)
    with pytest.raises(Denied, match="litigation"):
        check_held("a", "litigation 7")


# Dates.


def test_a_version_gets_class_and_date_from_its_manifest(world: World, folder: Path) -> None:
    world.hospital.seal(folder / "x", "hospital/x", "model", terms=ending(NOW + DAY))
    rows = {r["name"]: r for r in world.hospital.broker.core.assets.listing()}
    assert (rows["hospital/x"]["class"], rows["hospital/x"]["keep_until"]) == ("model", NOW + DAY)
    assert (rows[NAME]["class"], rows[NAME]["keep_until"]) == ("dataset", FOREVER)


def test_a_contracted_asset_is_only_kept_shorter(world: World, folder: Path) -> None:
    life = world.hospital.broker.lifecycle
    (changed,) = life.retention.retain(NAME, None, NOW + 10 * DAY)
    assert changed == {"before": FOREVER, "keep_until": NOW + 10 * DAY, "name": NAME, "version": 1}
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        life.retention.retain(NAME, 1, NOW + 11 * DAY)
    assert refused.value.code == "retention.longer"
    many(world.hospital, folder, 1)
    free = "hospital/set-0"
    life.retention.retain(free, None, NOW + DAY)
    life.retention.retain(free, None, NOW + 2 * DAY)  # nobody agreed on anything: the owner changes its mind
    assert world.hospital.kinds()[-2:] == ["asset.retained", "asset.retained"]


@pytest.mark.parametrize(
    ("name", "version", "until", "code"),
    [
        ("hospital/nothing", None, NOW + 5, "asset.unknown"),
        (NAME, 7, NOW + 5, "asset.version"),
        (NAME, None, NOW, "retention.past"),
    ],
)
def test_dates_that_are_refused(calm: World, name: str, version: int | None, until: int, code: str) -> None:
    with nothing_granted(calm.hospital), pytest.raises(Misuse) as refused:
        calm.hospital.broker.lifecycle.retention.retain(name, version, until)
    assert refused.value.code == code


# Shredding.


def test_a_shredding_tells_what_it_did_and_what_it_can_not_reach(world: World, folder: Path) -> None:
    party = world.hospital
    many(party, folder, 1)
    first = world.workload().run()
    life = party.broker.lifecycle
    told = life.shredder.shred(NAME, None, "consent withdrawn")
    life.rotation.finish()
    assert (told["leases_cut"], told["epochs"], told["name"]) == (1, [1], NAME)
    (version,) = told["versions"]
    assert (version["releases"], version["instances"], version["jobs"]) == (1, 1, [first.job.digest.hex()])
    assert version["reason"] == "consent withdrawn"
    assert any("released 1 times" in sentence for sentence in told["beyond_recall"])
    entry = next(f for f in party.log() if f.kind == "asset.shredded")
    assert (entry.target, entry.details["digests0"]) == (world.data.digest.hex(), world.data.digest.hex())
    assert (entry.details["reason"], entry.details["releases"], entry.details["versions"]) == (
        "consent withdrawn", 1, "1",
    )  # fmt: skip
    assert party.kinds().index("asset.shredded") < party.kinds().index("kek.destroyed")
    assert life.vault.epochs() == (2,)
    assert len(deks(party)) == 1
    row = next(r for r in party.tables()["assets"] if r["name"] == NAME)
    assert (row["wrapped"], row["epoch"], row["shredded"]) == (None, None, NOW)


def test_shredding_again_tells_the_same(world: World) -> None:
    life = world.hospital.broker.lifecycle
    first = life.shredder.shred(NAME, [1], "enough")
    life.rotation.finish()
    with nothing_granted(world.hospital):
        again = life.shredder.shred(NAME, [1], "other words")
    assert again["versions"] == first["versions"]
    assert (again["leases_cut"], again["epochs"]) == (0, [])


def test_the_next_version_follows_a_shredded_one(world: World, folder: Path) -> None:
    party = world.hospital
    party.broker.lifecycle.shredder.shred(NAME, None, "wrong rows")
    sealed = party.seal(folder / "next", NAME, "dataset")
    assert (sealed.manifest.version, sealed.manifest.previous) == (2, world.data.digest)
    assert sealed.manifest.asset_id == world.data.manifest.asset_id
    assert set(deks(party)) == {sealed.digest.hex()}


@pytest.mark.parametrize(
    ("name", "versions", "code"),
    [("hospital/nothing", None, "asset.unknown"), (NAME, [1, 3], "asset.version"), (NAME, [], "asset.version")],
)
def test_shredding_what_there_is_not(calm: World, name: str, versions: list[int] | None, code: str) -> None:
    with nothing_granted(calm.hospital), pytest.raises(Misuse) as refused:
        calm.hospital.broker.lifecycle.shredder.shred(name, versions, "x")
    assert refused.value.code == code


def test_many_versions_in_one_entry(world: World, folder: Path) -> None:
    party = world.hospital
    for n in range(2, 105):
        party.seal(folder / f"v{n}", NAME, "dataset")
    assert len(deks(party)) == 104
    party.broker.lifecycle.shredder.shred(NAME, None, "all of it")
    assert deks(party) == {}
    entries = [f for f in party.log() if f.kind == "asset.shredded"]
    assert len(entries) == 1
    assert (entries[0].target, len(str(entries[0].details["digests1"]))) == (NAME, 4 * 64)
    rows = party.broker.lifecycle.usage.assets()
    assert all(row.shredded == NOW for row in rows.values())


# Holds and expiry.


def test_a_hold_stops_expiry_until_it_is_lifted(world: World) -> None:
    party, clock = world.hospital, world.clock
    party.limits = replace(party.limits, expiry_notice=0.0, clock_jump=1e12)
    life = party.restart().lifecycle
    life.retention.retain(NAME, None, NOW + DAY)
    life.retention.hold(NAME, "litigation 7")
    clock.pass_seconds(2 * DAY)
    life.keeper.look()
    assert len(deks(party)) == 1
    life = party.restart().lifecycle
    life.keeper.look()
    assert life.retention.held() == {NAME: "litigation 7"}
    assert len(deks(party)) == 1
    life.retention.unhold(NAME, "settled")
    life.keeper.look()
    assert deks(party) == {}
    assert [k for k in party.kinds() if k.startswith("asset.")][-3:] == ["asset.held", "asset.unheld", "asset.expired"]
    assert life.vault.epochs() == (2,)
    with pytest.raises(Misuse) as refused:
        life.retention.unhold(NAME, "again")
    assert refused.value.code == "asset.unheld"


def test_expiry_waits_for_its_notice(world: World) -> None:
    party = world.hospital
    party.limits = replace(party.limits, expiry_notice=3600.0, clock_jump=1e12)
    life = party.restart().lifecycle
    steady = [0.0]
    life.keeper._steady = lambda: steady[0]  # type: ignore[attr-defined]
    life.retention.retain(NAME, None, NOW + DAY)
    world.clock.pass_seconds(DAY)
    for passed, alive in ((0.0, 1), (3599.0, 1), (3601.0, 0)):
        steady[0] = passed
        life.keeper.look()
        assert len(deks(party)) == alive


def test_a_clock_that_jumped_ahead_destroys_nothing(world: World) -> None:
    party = world.hospital
    party.limits = replace(party.limits, expiry_notice=0.0)
    life = party.restart().lifecycle
    life.retention.retain(NAME, None, NOW + DAY)
    world.clock.pass_seconds(3650 * DAY)  # while hardly any time has passed
    for _ in range(3):
        life.keeper.look()
    assert len(deks(party)) == 1
    assert any("nothing expires by itself" in note for note in party.broker.notes())


def test_an_asset_that_was_kept_longer_meanwhile_does_not_expire(world: World, folder: Path) -> None:
    party = world.hospital
    many(party, folder, 1, terms=ending(NOW + DAY))
    row = next(r for r in party.tables()["assets"] if r["name"] == "hospital/set-0")
    world.clock.pass_seconds(DAY)
    party.broker.lifecycle.retention.retain("hospital/set-0", None, NOW + 3 * DAY)
    assert party.broker.lifecycle.shredder.expire(row) is False
    assert row["digest"] in deks(party)


# Re-encryption.


def test_a_task_keeps_its_key_over_restarts_and_rotations(world: World, folder: Path) -> None:
    party = world.hospital
    opened = party.broker.lifecycle.tasks.open(NAME)
    assert (opened.resumed, opened.version) == (False, 2)
    check_dek(world.data.manifest, opened.source_secret_dek)
    assert opened.source_secret_dek != opened.secret_dek
    party.restart().lifecycle.rotation.rotate()
    again = party.broker.lifecycle.tasks.open(NAME)
    assert (again.resumed, again.task, again.secret_dek) == (True, opened.task, opened.secret_dek)
    assert party.kinds().count("asset.opened") == 2
    assert opened.secret_dek.hex() not in repr(opened) + str(party.tables()) + str(party.log())
    sealed = seal_with(world, folder, opened.secret_dek)
    (task,) = party.tables()["tasks"]
    assert (task["state"], task["wrapped"]) == ("done", None)
    assert deks(party)[sealed] == opened.secret_dek


def seal_with(world: World, folder: Path, dek: bytes) -> str:
    import io

    from cloister.sealed import SealIdentity, seal_object

    assets, old = world.hospital.broker.core.assets, world.data
    identity = SealIdentity(
        owner="hospital", asset_id=old.manifest.asset_id, name=NAME, version=2, asset_class="dataset", created=NOW,
        previous=old.digest,
    )  # fmt: skip
    sealed = seal_object(
        [("file.bin", io.BytesIO(b"rows"))], folder / "again", dek=dek, identity=identity,
        sign=lambda _, payload: assets.seal(payload, dek), terms=old.manifest.terms,
    )  # fmt: skip
    return sealed.digest.hex()


def test_another_next_version_ends_a_task(world: World, folder: Path) -> None:
    party = world.hospital
    opened = party.broker.lifecycle.tasks.open(NAME)
    party.seal(folder / "other", NAME, "dataset")
    assert [t["state"] for t in party.broker.lifecycle.tasks.listing()] == ["ended"]
    again = party.broker.lifecycle.tasks.open(NAME)
    assert (again.version, again.resumed, again.task != opened.task) == (3, False, True)


def test_shredding_the_source_ends_a_task_and_its_key(world: World) -> None:
    party = world.hospital
    party.broker.lifecycle.tasks.open(NAME)
    party.broker.lifecycle.shredder.shred(NAME, None, "gone")
    (task,) = party.tables()["tasks"]
    assert (task["state"], task["wrapped"]) == ("ended", None)
    with pytest.raises(Denied) as refused:
        party.broker.lifecycle.tasks.open(NAME)
    assert refused.value.code == "asset.shredded"


def test_tasks_that_are_refused(world: World) -> None:
    tasks = world.hospital.broker.lifecycle.tasks
    world.hospital.broker.lifecycle.retention.hold(NAME, "litigation 7")
    with nothing_granted(world.hospital):
        with pytest.raises(Denied) as held:
            tasks.open(NAME, shred_old=True)
        with pytest.raises(Misuse) as unknown:
            tasks.open("hospital/nothing")
        with pytest.raises(Misuse) as none:
            tasks.cancel(NAME)
    assert [e.value.code for e in (held, unknown, none)] == ["asset.held", "asset.unknown", "task.none"]
    opened = tasks.open(NAME)
    assert tasks.cancel(NAME) == opened.task
    assert world.hospital.tables()["tasks"][0]["wrapped"] is None


# The vault's roots.


def test_shredded_checkpoints(world: World) -> None:
    party = world.hospital
    before = party.broker.core.keys.checkpoint_share("hospital", b"c" * 32, b"j" * 32, "checkpoint")
    world.workload().run()
    assert party.broker.lifecycle.roots.shred_checkpoints("a checkpoint leaked") == 1
    after = party.broker.core.keys.checkpoint_share("hospital", b"c" * 32, b"j" * 32, "checkpoint")
    assert before != after
    assert [f.details["stage"] for f in party.log() if f.kind == "checkpoints.shredded"] == ["begun", "done"]
    party.restart()
    assert party.broker.core.keys.checkpoint_share("hospital", b"c" * 32, b"j" * 32, "checkpoint") == after


@pytest.mark.parametrize(("threshold", "shares"), [(1, 3), (4, 3), (2, 17)])
def test_shares_that_make_no_sense(calm: World, threshold: int, shares: int) -> None:
    with nothing_granted(calm.hospital), pytest.raises(Misuse) as refused:
        calm.hospital.broker.lifecycle.roots.split(threshold, shares)
    assert refused.value.code == "recovery.shares"


def test_shares_are_told_when_something_is_shredded(world: World) -> None:
    life = world.hospital.broker.lifecycle
    shares = life.roots.split(2, 3)
    assert len(set(shares)) == 3
    assert not any(share in str(world.hospital.log()) for share in shares)
    told = life.shredder.shred(NAME, None, "gone")
    assert any(sentence.startswith("Recovery shares were made on 2026-") for sentence in told["beyond_recall"])
    world.hospital.restart()


def test_a_lease_whose_run_can_not_be_read_is_cut_as_well(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.workload().run()
    life = world.hospital.broker.lifecycle
    monkeypatch.setattr("cloister.broker.knowledge.read_job", lambda *_: (_ for _ in ()).throw(Denied("x", "y")))
    assert life.shredder.shred(NAME, None, "gone")["leases_cut"] == 1
