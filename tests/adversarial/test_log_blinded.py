"""A stranger makes noise, so that the refusals that the owner should see are only counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cloister.contracts import CONTRACT_TYPE, Contract, PartyKeys, contract_document, make_card, read_contract
from cloister.crypto import SigningKey, random_bytes, sign_document
from cloister.errors import CloisterError
from tests.broker_world import HPKE, NOW, Party, Workload, World, nothing_granted

pytest_plugins = ["tests.broker_fixtures"]

NOISE = 40


def noise(party: Party, body: Any) -> int:
    """How many of many bad requests are logged."""
    before = len(party.log())
    for _ in range(NOISE):
        with pytest.raises(CloisterError):
            party.broker.releases.challenge(body)
    return len(party.log()) - before


def changed_workload_is_logged(world: World) -> None:
    changed = world.workload(measurement=b"\xee" * 32)
    with nothing_granted(world.hospital), pytest.raises(CloisterError):
        changed.attested(world.hospital)
    last = world.hospital.log()[-1]
    assert (last.kind, last.details["code"]) == ("attest.refused", "appraisal.measurement")
    assert last.details["instance"] == changed.instance.hex()


def test_rubbish_hides_a_changed_workload(world: World) -> None:
    assert noise(world.hospital, {}) == world.hospital.limits.stranger_refusals
    changed_workload_is_logged(world)


def strangers_contract(world: World) -> Contract:
    """Signed by somebody whom nobody pinned, in the name of both parties."""
    key = SigningKey.generate()
    keys = PartyKeys(key.public, random_bytes(32), random_bytes(32), random_bytes(32), HPKE.public)
    cards = {name: make_card(name, keys, (key,), serial=1, issued=NOW) for name in world.parties}
    return read_contract(sign_document(CONTRACT_TYPE, contract_document(world.contract_fields(), cards), key))


def test_invented_contracts_hide_a_changed_workload(world: World) -> None:
    contract = strangers_contract(world)
    request = world.workload().request(contract=contract.envelope.to_bytes().decode())
    assert noise(world.hospital, request) == world.hospital.limits.stranger_refusals
    unsigned = world.contract.envelope
    stripped = type(unsigned)(unsigned.payload_type, unsigned.payload, ())
    # The real terms without the signatures: in the same bucket, which is full.
    assert noise(world.hospital, world.workload().request(contract=stripped.to_bytes().decode())) == 0
    changed_workload_is_logged(world)


def test_knocking_with_a_real_contract_hides_a_changed_workload(world: World) -> None:
    """The operator has the contract. It can fill the bucket of those who only knock, not of those who attest."""
    assert noise(world.hospital, world.workload().request(statements=[])) == world.hospital.limits.refusals_per_minute
    changed_workload_is_logged(world)


def test_refusals_about_one_contract_hide_those_about_another(world: World) -> None:
    other = world.sign(world.contract_fields(name="other"))
    job = world.make_job(other)
    noise(world.hospital, Workload(world, contract=other, job=job).request(statements=[]))
    before = len(world.hospital.log())
    with pytest.raises(CloisterError):
        world.hospital.broker.releases.challenge(world.workload().request(statements=[]))
    assert len(world.hospital.log()) == before + 1
    assert world.hospital.log()[-1].details["contract"] == world.contract.digest.hex()


def test_unsigned_outputs_hide_a_refused_permit(world: World, folder: Path) -> None:
    workload = world.workload().run()
    forger = Workload(world, instance=workload.instance)
    forged = forger.output(folder / "forged")
    before = len(world.hospital.log())
    for _ in range(NOISE):
        with pytest.raises(CloisterError):
            world.hospital.broker.permits.permit(forged.envelope)
    assert len(world.hospital.log()) == before + world.hospital.limits.stranger_refusals
    real = workload.output(folder / "real", form="weights")
    with nothing_granted(world.hospital), pytest.raises(CloisterError):
        world.hospital.broker.permits.permit(real.envelope)
    assert world.hospital.log()[-1].details["code"] == "output.form"


def test_noise_hides_a_refused_renewal_and_a_refused_key(world: World) -> None:
    workload = world.workload().run()
    renewal = workload.attested(world.hospital, "renew", 1)
    late = world.workload().attested(world.hospital)
    noise(world.hospital, {})
    noise(world.hospital, workload.request(statements=[]))
    world.hospital.broker.agreements.revoke(world.contract.digest, "no longer wanted")
    with nothing_granted(world.hospital):
        with pytest.raises(CloisterError):
            world.hospital.broker.leases.renew(renewal)
        assert world.hospital.log()[-1].kind == "lease.refused"
        with pytest.raises(CloisterError):
            workload.fetch(world.hospital, late, world.data.digest)
        assert world.hospital.log()[-1].kind == "key.refused"
