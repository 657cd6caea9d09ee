"""A party that is registered, but not party to a contract, tries to see or touch what is agreed there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.client import ControlClient
from cloister.contracts import Contract, revocation_envelope
from cloister.crypto import Envelope
from cloister.errors import CloisterError, Denied, Misuse, Untrusted
from tests.control_world import World, running_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with running_world(tmp_path) as made:
        yield made


def agreed_and_running(world: World) -> tuple[Contract, Envelope, str]:
    contract = world.agreed()
    job = world.job(contract)
    world.client(world.hospital).submit(job)
    world.node_post("/v1/node/claim", {})
    manifest, record = world.node_release(job, contract)
    world.node_put(f"/v1/jobs/{job.digest.hex()}/release", record)
    return contract, job, manifest


def refused(code: str, call: Callable[[], Any]) -> None:
    with pytest.raises(Misuse) as caught:
        call()
    assert caught.value.code == code


def test_an_outsider_sees_nothing_of_a_contract_and_its_jobs(world: World) -> None:
    contract, job, manifest = agreed_and_running(world)
    bank = world.client(world.bank)
    name, digest = contract.digest.hex(), job.digest.hex()
    refused("contract.unknown", lambda: bank.contract("intents"))
    refused("contract.unknown", lambda: bank.contract(name))
    refused("job.unknown", lambda: bank.job(digest))
    refused("job.unknown", lambda: bank.events(digest, 0))
    refused("job.unknown", lambda: bank.release(digest))
    refused("output.unknown", lambda: bank.output("hospital/adapter"))
    refused("object.unknown", lambda: bank.manifest(manifest))
    refused("object.unknown", lambda: bank.manifest(contract.assets[0].digest.hex()))
    assert (bank.contracts(), bank.jobs(), bank.assets()) == ([], [], [])


def test_what_may_not_be_seen_and_what_is_not_there_look_the_same(world: World) -> None:
    _, job, _ = agreed_and_running(world)
    bank = world.client(world.bank)
    answers = []
    for digest in (job.digest.hex(), "ab" * 32):
        with pytest.raises(Misuse) as caught:
            bank.job(digest)
        answers.append(caught.value.to_wire())
    assert answers[0] == answers[1]


def test_an_outsider_changes_nothing(world: World) -> None:
    contract, job, _ = agreed_and_running(world)
    bank, hospital = world.client(world.bank), world.client(world.hospital)
    before = hospital.job(job.digest.hex()), hospital.contract("intents")
    refused("job.unknown", lambda: bank.cancel(job.digest.hex()))
    word = revocation_envelope(contract.digest, "bank", world.bank.status, now=1, reason="spite")
    refused("contract.unknown", lambda: bank.report_revocation(contract.digest.hex(), word))
    with pytest.raises(Denied) as caught:
        bank.offer(contract.envelope)
    assert caught.value.code == "contract.party"
    refused("contract.unknown", lambda: bank.submit(world.job(contract, world.bank)))
    assert (hospital.job(job.digest.hex()), hospital.contract("intents")) == before


def test_a_forged_revocation_by_a_party_is_refused(world: World) -> None:
    contract, _, _ = agreed_and_running(world)
    hospital = world.client(world.hospital)
    forged = revocation_envelope(contract.digest, "lab", world.hospital.status, now=1, reason="not the lab's")
    with pytest.raises(Untrusted) as caught:
        hospital.report_revocation(contract.digest.hex(), forged)
    assert caught.value.code == "dsse.unsigned"
    assert hospital.contract("intents")["state"] == "contract.in-force"


def test_a_mere_proposal_opens_no_sight_of_an_asset(world: World) -> None:
    """Naming somebody's asset in a contract that its owner never signed must not show the ciphertext."""
    assets = world.store_assets()
    bank = world.client(world.bank)
    proposal = world.contract(assets, world.hospital, world.lab, world.bank)
    bank.offer(proposal.envelope.signed_by(world.bank.signing))
    refused("object.unknown", lambda: bank.manifest(assets["hospital/queries"].hex()))
    assert bank.assets() == []
    world.client(world.hospital).offer(proposal.envelope.signed_by(world.hospital.signing))
    assert [a["name"] for a in bank.assets()] == ["hospital/queries"], "the hospital has agreed, the lab has not"


def test_a_party_submits_only_what_it_signed_itself(world: World) -> None:
    contract = world.agreed()
    job = world.job(contract, world.hospital)
    with pytest.raises(Denied) as caught:
        world.client(world.lab).submit(job)
    assert caught.value.code == "job.submitter"
    forged = Envelope(job.payload_type, job.payload).signed_by(world.lab.signing)
    with pytest.raises(Untrusted) as unsigned:
        world.client(world.hospital).submit(forged)
    assert unsigned.value.code == "dsse.unsigned"
    assert world.client(world.hospital).jobs() == []


def submit_refused(world: World, client: ControlClient, contract: Contract, code: str) -> None:
    with pytest.raises(CloisterError) as caught:
        client.submit(world.job(contract))
    assert (type(caught.value), caught.value.code) == (Denied, code)
    assert client.jobs() == []


def test_a_job_under_an_unsigned_contract_gets_the_brokers_refusal(world: World) -> None:
    contract = world.contract(world.store_assets())
    hospital = world.client(world.hospital)
    hospital.offer(contract.envelope.signed_by(world.hospital.signing))
    submit_refused(world, hospital, contract, "contract.unsigned")


def test_a_job_under_a_revoked_contract_gets_the_brokers_refusal(world: World) -> None:
    contract = world.agreed()
    word = revocation_envelope(contract.digest, "lab", world.lab.status, now=1, reason="enough")
    world.client(world.lab).report_revocation(contract.digest.hex(), word)
    submit_refused(world, world.client(world.hospital), contract, "contract.revoked")


def test_a_job_under_an_expired_contract_gets_the_brokers_refusal(world: World) -> None:
    contract = world.agreed(not_before=1, expires=1000)
    submit_refused(world, world.client(world.hospital), contract, "contract.expired")


def test_a_job_beyond_the_budget_gets_the_brokers_refusal(world: World) -> None:
    contract = world.agreed(runs=1)
    hospital = world.client(world.hospital)
    hospital.submit(world.job(contract, salt=1))
    with pytest.raises(Denied) as caught:
        hospital.submit(world.job(contract, salt=2))
    assert caught.value.code == "budget.runs"


def test_a_contract_with_other_keys_than_the_directorys_is_refused(world: World) -> None:
    from tests.control_world import Party

    impostor = Party("lab")
    contract = world.contract(world.store_assets(), world.hospital, impostor)
    with pytest.raises(Untrusted) as caught:
        world.client(world.hospital).offer(contract.envelope)
    assert caught.value.code == "contract.keys"
    assert world.client(world.hospital).contracts() == []
