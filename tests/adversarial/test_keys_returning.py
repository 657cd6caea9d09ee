"""A key comes back that was to be gone, or one goes that was to stay: by an ended task, a crash, a disk, a clock."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest

from cloister.broker.tasks import Opening
from cloister.client.reencrypt import work_name
from cloister.errors import Denied, Misuse, Unavailable
from cloister.keys import CHECKPOINT
from cloister.sealed import Manifest, Sealed, SealIdentity, seal_object
from tests.broker_party import Party
from tests.broker_world import NOW, World, nothing_granted
from tests.key_chores import deks, disk_full

pytest_plugins = ["tests.broker_fixtures"]

NAME = "hospital/queries"
DAY = 86_400


def reseal(party: Party, folder: Path, opened: Opening, **changes: object) -> Sealed:
    """What the owner's client does with the keys that it was given."""
    old = Manifest.from_payload(opened.source.payload)
    identity = SealIdentity(
        owner=party.name, asset_id=old.asset_id, name=old.name, version=opened.version, asset_class=old.asset_class,
        created=party.clock(), previous=opened.previous,
    )  # fmt: skip
    return seal_object(
        [("file.bin", io.BytesIO(b"rows"))], folder, dek=opened.secret_dek, identity=replace(identity, **changes),  # type: ignore[arg-type]
        sign=lambda _, payload: party.broker.core.assets.seal(payload, opened.secret_dek), terms=dict(old.terms),
    )  # fmt: skip


def test_the_copy_of_a_cancelled_re_encryption_is_sealed_after_all_was_shredded(world: World, folder: Path) -> None:
    party = world.hospital
    life = party.broker.lifecycle
    opened = life.tasks.open(NAME)
    life.tasks.cancel(NAME)
    life.shredder.shred(NAME, None, "erase request")
    life.rotation.finish()
    with nothing_granted(party), pytest.raises(Denied) as refused:
        reseal(party, folder / "v2", opened)
    assert refused.value.code == "task.ended"
    assert deks(party) == {}


def test_the_key_of_an_ended_re_encryption_is_sealed_under_another_name_or_version(world: World, folder: Path) -> None:
    party = world.hospital
    life = party.broker.lifecycle
    opened = life.tasks.open(NAME)
    life.shredder.shred(NAME, None, "erase request")
    life.rotation.finish()
    fresh = {"name": "hospital/other", "asset_id": b"i" * 16, "version": 1, "previous": None}
    with nothing_granted(party), pytest.raises(Denied) as refused:
        reseal(party, folder / "other", opened, **fresh)
    assert refused.value.code == "task.ended"
    assert deks(party) == {}


def test_the_key_of_a_shredded_version_comes_back_as_that_of_the_next(world: World, folder: Path) -> None:
    """An open re-encryption handed it to the owner's client; old copies of the ciphertext would open again."""
    party = world.hospital
    life = party.broker.lifecycle
    opened = life.tasks.open(NAME)
    life.shredder.shred(NAME, None, "erase request")
    life.rotation.finish()
    old = replace(opened, secret_dek=opened.source_secret_dek)
    with nothing_granted(party), pytest.raises(Denied) as refused:
        reseal(party, folder / "v2", old)
    assert refused.value.code == "asset.dek"
    other = {"name": "hospital/other", "asset_id": b"i" * 16, "version": 1, "previous": None}
    with nothing_granted(party), pytest.raises(Denied) as refused:
        reseal(party, folder / "other", old, **other)
    assert refused.value.code == "asset.dek"
    assert deks(party) == {}


def test_two_versions_are_sealed_under_one_key_so_that_shredding_one_does_not_end_it(
    world: World, folder: Path
) -> None:
    party = world.hospital
    opened = party.broker.lifecycle.tasks.open(NAME)
    again = replace(opened, secret_dek=opened.source_secret_dek)
    with nothing_granted(party), pytest.raises(Denied) as refused:
        reseal(party, folder / "v2", again)
    assert refused.value.code == "asset.dek"
    sealed = reseal(party, folder / "v3", opened)
    size = len(party.log())
    answered = party.broker.core.assets.seal(sealed.envelope.payload, opened.secret_dek)
    assert (answered.digest, len(party.log())) == (sealed.digest, size), "the same version again is no other one"


def test_a_re_encryption_is_used_to_keep_an_asset_longer(world: World, folder: Path) -> None:
    party = world.hospital
    life = party.broker.lifecycle
    life.retention.retain(NAME, None, NOW + DAY)
    reseal(party, folder / "v2", life.tasks.open(NAME))
    assert {row["version"]: row["keep_until"] for row in party.tables()["assets"]} == {1: NOW + DAY, 2: NOW + DAY}
    world.clock.pass_seconds(DAY)
    assert {row["version"] for row in life.retention.overdue(now=world.clock())} == {1, 2}


def test_two_assets_whose_names_look_alike_have_work_folders_of_their_own() -> None:
    assert work_name("st-mary/scans") != work_name("st/mary-scans")
    assert "/" not in work_name("st/mary-scans")


def test_a_share_is_fetched_while_the_destruction_of_checkpoints_waits_for_the_disk(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    party = world.hospital
    life = party.broker.lifecycle
    before = life.vault.secret(CHECKPOINT)

    with monkeypatch.context() as patch:
        patch.setattr(life.vault, "put_secret", disk_full)
        with pytest.raises(Unavailable):
            life.roots.shred_checkpoints("leaked")
        life.keeper.look()
        assert any("destruction of checkpoints is not finished" in note for note in party.broker.notes())
        workload = world.workload()
        cookie = workload.attested(party)
        workload.fetch(party, cookie, world.data.digest)
        with nothing_granted(party), pytest.raises(Denied) as refused:
            party.broker.releases.resource(cookie, party.name, "state-share", "checkpoint")
        assert refused.value.code == "checkpoints.shredding"
    life.keeper.look()
    assert life.vault.secret(CHECKPOINT) != before
    assert all(row["cut"] for row in party.tables()["instances"])
    assert party.log()[-1].details["leases_cut"] == 1
    assert not any("checkpoints" in note for note in party.broker.notes())
    after = life.vault.secret(CHECKPOINT)
    party.restart()
    assert party.broker.lifecycle.vault.secret(CHECKPOINT) == after, "a start has nothing left to strike at"


def test_a_crash_after_a_kek_died_makes_the_log_say_that_nothing_remains(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dead(BaseException):
        pass

    party = world.hospital
    life = party.broker.lifecycle
    real = life.vault.destroy_epoch

    def dies(epoch: int) -> None:
        real(epoch)
        raise Dead

    life.rotation.begin("demand")
    monkeypatch.setattr(life.vault, "destroy_epoch", dies)
    with pytest.raises(Dead):
        life.rotation.finish()
    party.restart()
    entry = [found for found in party.log() if found.kind == "kek.destroyed"][-1]
    assert entry.details["destroyed"] == 1
    assert "KEK epoch 1" in str(entry.details["remains"])
    assert "copies may remain" in str(entry.details["remains"])


def test_what_remains_is_still_told_after_a_restart(world: World) -> None:
    party = world.hospital
    life = party.broker.lifecycle
    life.shredder.shred(NAME, None, "erase request")
    life.rotation.finish()
    told = life.rotation.progress()["last"]
    assert told["remains"]
    party.restart()
    assert party.broker.lifecycle.rotation.progress()["last"] == told


def test_a_clock_that_is_wrong_from_the_start_destroys(world: World) -> None:
    party = world.hospital
    party.limits = replace(party.limits, expiry_notice=3600.0, clock_jump=600.0)
    party.restart().lifecycle.retention.retain(NAME, None, NOW + 400 * DAY)
    party.broker.close()
    world.clock.pass_seconds(5000 * DAY)
    party.start()
    for _ in range(2):  # a restart, with entries of the wrong time by now, changes nothing
        party.broker.lifecycle.rotation.rotate()
        party.restart()
        keeper, start = party.broker.lifecycle.keeper, world.clock()
        for passed in (0.0, 3601.0, 80_000.0):
            keeper._steady = lambda passed=passed: passed  # type: ignore[attr-defined,misc]
            keeper._began = (start, 0.0)  # type: ignore[attr-defined]
            with nothing_granted(party):
                keeper.look()
        assert len(deks(party)) == 1
        assert any("nothing expires by itself" in note for note in party.broker.notes())
    for passed in (86_400.0, 90_001.0):  # it has run for a day, and nobody set the clock
        keeper._steady = lambda passed=passed: passed  # type: ignore[attr-defined,misc]
        keeper.look()
    assert deks(party) == {}
    assert not party.broker.lifecycle.keeper.notes()


# An old version is made the newest.


def test_an_older_version_becomes_the_newest_only_on_the_owner_s_word(world: World, folder: Path) -> None:
    """The newest version's ciphertext is lost. What is made of the one before it is a next version, and is named."""
    party = world.hospital
    tasks = party.broker.lifecycle.tasks
    lost = party.seal(folder / "v2", NAME, "dataset", content=b"the newest rows")
    assert tasks.open(NAME).source.digest == lost.digest, "nobody asked for another one"
    opened = tasks.open(NAME, version=1)
    assert (opened.source.digest, opened.previous, opened.version) == (world.data.digest, lost.digest, 3)
    sealed = reseal(party, folder / "v3", opened)
    assert party.broker.core.assets.newest(NAME)["digest"] == sealed.digest.hex()  # type: ignore[index]
    begun = [f for f in party.log() if f.kind == "asset.reencrypting"]
    assert [(f.details["version"], f.details["source"]) for f in begun] == [(3, 2), (3, 1)]
    assert (party.log()[-1].kind, party.log()[-1].details["source"]) == ("asset.sealed", 1)
    assert tasks.open(NAME).source.digest == sealed.digest


def test_an_older_version_is_sealed_as_if_the_newer_one_did_not_exist(world: World, folder: Path) -> None:
    party = world.hospital
    party.seal(folder / "v2", NAME, "dataset", content=b"the newest rows")
    opened = party.broker.lifecycle.tasks.open(NAME, version=1)
    with nothing_granted(party), pytest.raises(Denied) as refused:
        reseal(party, folder / "v3", opened, previous=world.data.digest)
    assert refused.value.code == "asset.version"


def test_a_re_encryption_of_an_older_version_ends_when_a_newer_one_is_sealed(world: World, folder: Path) -> None:
    party = world.hospital
    party.seal(folder / "v2", NAME, "dataset", content=b"rows 2")
    opened = party.broker.lifecycle.tasks.open(NAME, version=1)
    party.seal(folder / "v3", NAME, "dataset", content=b"rows 3")
    with nothing_granted(party), pytest.raises(Denied):
        reseal(party, folder / "v3-again", opened)
    with nothing_granted(party), pytest.raises(Denied) as refused:
        reseal(party, folder / "v4", opened, version=4, previous=bytes.fromhex(party.tables()["assets"][-1]["digest"]))
    assert refused.value.code in ("task.ended", "asset.version")


def test_what_was_shredded_comes_back_by_its_number(world: World, folder: Path) -> None:
    party = world.hospital
    life = party.broker.lifecycle
    party.seal(folder / "v2", NAME, "dataset", content=b"rows 2")
    life.shredder.shred(NAME, [1], "erase request")
    life.rotation.finish()
    with nothing_granted(party), pytest.raises(Denied) as refused:
        life.tasks.open(NAME, version=1)
    assert refused.value.code == "asset.shredded"
    with nothing_granted(party), pytest.raises(Misuse) as unknown:
        life.tasks.open(NAME, version=9)
    assert unknown.value.code == "asset.version"


def test_an_older_version_that_is_re_encrypted_is_kept_no_longer_than_it_was_to_be(world: World, folder: Path) -> None:
    party = world.hospital
    party.broker.lifecycle.retention.retain(NAME, 1, NOW + DAY)
    party.seal(folder / "v2", NAME, "dataset", content=b"rows 2")
    reseal(party, folder / "v3", party.broker.lifecycle.tasks.open(NAME, version=1))
    (row,) = (row for row in party.tables()["assets"] if row["version"] == 3)
    assert row["keep_until"] == NOW + DAY
