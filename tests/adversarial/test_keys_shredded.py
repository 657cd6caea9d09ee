"""An asset was shredded. Somebody has a copy of what was before: ciphertext, database, vault; or a running job."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from cloister.errors import Denied, Unavailable, Untrusted
from cloister.keys import open_vault
from cloister.sealed import open_sealed
from tests.broker_party import PASSPHRASE
from tests.broker_world import LEASE, World, nothing_granted
from tests.key_chores import Killed, copy_state, deks, many, openable

pytest_plugins = ["tests.broker_fixtures"]

NAME = "hospital/queries"
SECRET_REASON = "patient 4711 objected"


def shred(world: World, versions: list[int] | None = None) -> None:
    life = world.hospital.broker.lifecycle
    life.shredder.shred(NAME, versions, SECRET_REASON)
    life.rotation.finish()


def test_an_old_copy_of_the_database_opens_nothing_that_was_shredded(world: World, folder: Path) -> None:
    party = world.hospital
    others = {digest.hex() for digest in many(party, folder, 3)}
    party.broker.lifecycle.tasks.open(NAME)
    copy = copy_state(party.home, folder / "copy")
    vault = party.broker.lifecycle.vault
    assert set(openable(copy, vault)) >= {*others, world.data.digest.hex()}, "before, the copy opens with this vault"
    shred(world)
    assert openable(copy, vault) == {}, "nor anything else that was wrapped under the KEK of that time"
    assert set(deks(party)) == others
    party.broker.close()
    reopened = open_vault(party.home / "vault.json", PASSPHRASE)
    assert openable(copy, reopened) == {}
    reopened.close()
    party.start()


def test_the_database_itself_forgets_the_wrapped_key(world: World, folder: Path) -> None:
    """Not even sealed under a KEK that is gone."""
    (row,) = (r for r in world.hospital.tables()["assets"] if r["name"] == NAME)
    box = row["wrapped"].split('"box":"')[1].split('"')[0].encode()
    assert box in b"".join(p.read_bytes() for p in world.hospital.home.glob("state.db*"))
    shred(world)
    world.hospital.broker.close()
    assert box not in b"".join(p.read_bytes() for p in world.hospital.home.glob("state.db*"))
    world.hospital.start()


def test_an_old_copy_of_the_ciphertext_does_not_open(world: World, folder: Path, template: World) -> None:
    ciphertext = template.folder / "data"
    party = world.hospital
    dek = party.broker.core.assets.unwrap_secret_dek(world.data.digest)
    keys = [party.broker.card.keys.signing]
    open_sealed(ciphertext, dek=dek, expected_digest=world.data.digest, signer_keys=keys).close()
    shred(world)
    for _ in range(2):
        with nothing_granted(party), pytest.raises(Denied) as refused:
            party.broker.core.assets.unwrap_secret_dek(world.data.digest)
        assert refused.value.code == "asset.shredded"
        party.restart()


def test_the_old_vault_is_put_back_to_revive_a_shredded_key(world: World, folder: Path) -> None:
    party = world.hospital
    shutil.copy(party.home / "vault.json", folder / "vault.json")
    state = copy_state(party.home, folder / "copy")
    shred(world)
    party.broker.close()
    newest = (party.home / "vault.json").read_bytes()
    shutil.copy(folder / "vault.json", party.home / "vault.json")
    with pytest.raises(Untrusted) as refused:
        party.start()
    assert refused.value.code == "vault.rollback"
    # With the database of that time as well, the log tells.
    (party.home / "vault.json").write_bytes(newest)
    for path in state.parent.iterdir():
        shutil.copy(path, party.home / path.name)
    with pytest.raises(Untrusted) as refused:
        party.start()
    assert refused.value.code == "state.rollback"


def test_a_vault_from_the_middle_of_the_shredding_is_refused(world: World, folder: Path) -> None:
    """Both KEKs were in it for a moment."""
    party = world.hospital
    vault = party.broker.lifecycle.vault
    real, copies = vault.destroy_epoch, []

    def copying(epoch: int) -> str | None:
        copies.append((party.home / "vault.json").read_bytes())
        return real(epoch)

    vault.destroy_epoch = copying  # type: ignore[method-assign]
    shred(world)
    party.broker.close()
    (party.home / "vault.json").write_bytes(copies[0])
    with pytest.raises(Untrusted) as refused:
        party.start()
    assert refused.value.code == "vault.rollback"


def test_a_vault_from_the_middle_and_a_crash_before_the_state_knew_better(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log has the destruction, the tables not yet: the vault is judged by what they say after they were mended."""
    party = world.hospital
    vault, state = party.broker.lifecycle.vault, party.broker.core.ledger.state
    real, copies = vault.destroy_epoch, []

    def dead(*_: object, **__: object) -> None:
        raise Killed

    def last_act(epoch: int) -> str | None:
        copies.append((party.home / "vault.json").read_bytes())
        monkeypatch.setattr(state, "apply", dead)
        return real(epoch)

    monkeypatch.setattr(vault, "destroy_epoch", last_act)
    with pytest.raises(Killed):
        shred(world)
    assert party.kinds()[-1] == "kek.destroyed"
    party.broker.close()
    newest = (party.home / "vault.json").read_bytes()
    (party.home / "vault.json").write_bytes(copies[0])
    for _ in range(2):
        with pytest.raises(Untrusted) as refused:
            party.start()
        assert refused.value.code == "vault.rollback"
    (party.home / "vault.json").write_bytes(newest)
    assert not party.start().lifecycle.rotation.pending


def test_a_running_job_that_holds_the_key_stops_within_a_lease(world: World) -> None:
    running = world.workload().run()
    cookie = running.attested(world.hospital, "renew", 1)
    shred(world)
    with nothing_granted(world.hospital, world.lab):
        for attempt in (
            lambda: world.hospital.broker.leases.renew(cookie),
            lambda: running.attested(world.hospital, "renew", 1),
            lambda: world.hospital.broker.leases.checkpoint(running.record(1)),
        ):
            with pytest.raises(Denied) as refused:
                attempt()
            assert refused.value.code in ("asset.shredded", "lease.cut")
    instance = world.hospital.broker.core.knowledge.instance(running.instance)
    assert instance is not None
    assert instance.cut
    assert instance.lease.expires <= world.clock() + LEASE


def test_a_clock_that_is_set_back_revives_a_lease_over_a_shredded_key(world: World) -> None:
    """The lease had ended when its asset was shredded, so nothing was cut. Shredding again ends it for good."""
    running = world.workload().run()
    world.clock.pass_seconds(LEASE)
    shred(world)
    world.clock.pass_seconds(-LEASE)
    world.hospital.restart()
    assert world.hospital.broker.leases.checkpoint(running.record(1)), "the lease runs again"
    told = world.hospital.broker.lifecycle.shredder.shred(NAME, None, SECRET_REASON)
    assert (told["leases_cut"], told["epochs"]) == (1, [])
    entry = world.hospital.log()[-1]
    assert (entry.kind, entry.details["leases_cut"], entry.details["versions"]) == ("asset.shredded", 1, "")
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        world.hospital.broker.leases.checkpoint(running.record(2))
    assert refused.value.code == "lease.cut"
    size = world.hospital.broker.core.ledger.log.size
    assert world.hospital.broker.lifecycle.shredder.shred(NAME, None, SECRET_REASON)["leases_cut"] == 0
    assert world.hospital.broker.core.ledger.log.size == size
    assert not world.hospital.broker.lifecycle.rotation.pending


def test_a_session_that_attested_before_gets_no_key_after(world: World) -> None:
    late, early = world.workload(), world.workload()
    cookie = late.attested(world.hospital)
    stored = early.attested(world.hospital)
    early.fetch(world.hospital, stored, world.data.digest)
    shred(world)
    for workload, session in ((late, cookie), (early, stored)):
        with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
            workload.fetch(world.hospital, session, world.data.digest)
        assert refused.value.code in ("asset.shredded", "lease.cut")


def test_no_part_of_a_key_goes_to_a_job_whose_asset_is_shredded(world: World) -> None:
    """Not the checkpoint share either: with it alone an instance would have a lease, and with a lease a permit."""
    workload = world.workload()
    cookie = workload.attested(world.hospital)
    shred(world)
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        world.hospital.broker.releases.resource(cookie, "hospital", "state-share", "checkpoint")
    assert refused.value.code == "asset.shredded"
    assert world.hospital.broker.core.knowledge.instance(workload.instance) is None


def test_the_reason_stays_with_the_owner(world: World) -> None:
    workload = world.workload()
    request = workload.request()
    shred(world)
    with TestClient(world.hospital.broker.public_app(), base_url="https://broker") as public:
        answer = public.post("/kbs/v0/auth", json=request)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "asset.shredded"
    assert "patient" not in answer.text
    assert answer.json()["detail"] == "The broker refused; its owner's log says why."
    entry = world.hospital.log()[-1]
    assert (entry.kind, entry.details["shredded_because"]) == ("attest.refused", SECRET_REASON)
    (row,) = world.hospital.broker.core.assets.listing()
    assert row["reason"] == SECRET_REASON


def test_the_version_before_does_not_become_the_newest_again(world: World, folder: Path) -> None:
    world.hospital.seal(folder / "second", NAME, "dataset")
    shred(world, [2])
    with pytest.raises(Denied) as refused:
        world.workload().run()
    assert refused.value.code == "asset.old"
    assert set(deks(world.hospital)) == {world.data.digest.hex()}


def test_no_contract_is_signed_over_a_shredded_asset(world: World) -> None:
    shred(world)
    envelope = world.unsigned(world.contract_fields(serial=2))
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        world.hospital.broker.agreements.sign(envelope)
    assert refused.value.code == "asset.shredded"


def test_the_lab_is_not_touched_by_what_the_hospital_shreds(world: World, folder: Path) -> None:
    before = deks(world.lab)
    shred(world)
    assert deks(world.lab) == before
    assert world.lab.broker.lifecycle.vault.epochs() == (1,)


def test_an_owner_ends_its_assets_use_earlier_than_the_contract(world: World) -> None:
    """The contract says for ever; one party alone may tighten that."""
    workload = world.workload()
    cookie = workload.attested(world.hospital)
    world.hospital.broker.lifecycle.retention.retain(NAME, None, world.clock() + 20)
    world.clock.pass_seconds(20)
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        workload.fetch(world.hospital, cookie, world.data.digest)
    assert refused.value.code == "asset.retention"


def test_a_table_of_holds_that_is_gone_is_refused(world: World) -> None:
    """A hold must not be lifted by taking its table away: the state is refused, not mended."""
    world.hospital.broker.lifecycle.retention.hold(NAME, "litigation 7")
    world.hospital.broker.close()
    with sqlite3.connect(world.hospital.home / "state.db") as database:
        database.execute("DROP TABLE holds")
    database.close()
    life = world.hospital.start().lifecycle
    for attempt in (life.retention.held, lambda: life.shredder.shred(NAME, None, "now it can be done")):
        with pytest.raises(Unavailable) as refused:
            attempt()
        assert refused.value.code == "state.unreachable"
    assert world.hospital.broker.core.assets.unwrap_secret_dek(world.data.digest)


def test_a_shredded_key_is_handed_over_again(world: World) -> None:
    """By a client, or a thief with the owner's socket, who kept the data key: the broker does not take it back."""
    party = world.hospital
    dek = party.broker.core.assets.unwrap_secret_dek(world.data.digest)
    shred(world)
    with nothing_granted(party), pytest.raises(Denied) as refused:
        party.broker.core.assets.seal(world.data.envelope.payload, dek)
    assert refused.value.code == "asset.shredded"
