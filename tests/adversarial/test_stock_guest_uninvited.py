"""Stock guests over real connections, on forged hardware: served where owner and contract allow it, else not."""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest

from cloister.broker import RunningBroker
from cloister.contracts import Contract
from cloister.crypto import SigningKey
from cloister.sealed import check_dek
from tests.broker_world import World, introduce, nothing_granted, serving
from tests.kbs_client import client
from tests.stock_client import Chip, StockClient, amd, intel, judges

pytest_plugins = ["tests.broker_fixtures"]


@pytest.fixture(params=[amd, intel], ids=["snp", "tdx"])
def chip(request: pytest.FixtureRequest) -> Chip:
    made: Chip = request.param()
    return made


@pytest.fixture
def lab(world: World) -> Iterator[RunningBroker]:
    """The other party answers: it says that the contract is in force, and is the witness."""
    with serving(world.lab) as running:
        introduce(world.hospital, world.lab, running)
        yield running


@pytest.fixture
def hospital(world: World, lab: RunningBroker) -> Iterator[RunningBroker]:
    """Whose owner switched stock guests on."""
    del lab
    assert world.hospital.broker.core.herald.show_all() == 1  # so that the witness can confirm it at the next start
    world.hospital.guests = judges()
    world.hospital.restart()
    with serving(world.hospital) as running:
        introduce(world.lab, world.hospital, running)
        yield running


def contract_for(world: World, chip: Chip, **changes: Any) -> Contract:
    """At the processor's level, and the whole guest is the workload."""
    platform = {
        **world.contract_fields()["platform"],
        "agents": [chip.agent], "attesters": [chip.attester], "measurements": [chip.agent],
        "assurance": "cpu-tee", "witness_quorum": 1, "stock_guests": True, **changes,
    }  # fmt: skip
    if not platform["stock_guests"]:
        del platform["stock_guests"]
    return world.sign(world.contract_fields(name="stock", platform=platform))


def guest_of(world: World, chip: Chip, contract: Contract, **more: Any) -> StockClient:
    return StockClient(chip, world.make_job(contract).envelope.to_bytes().decode(), **more)


def refused(world: World, running: RunningBroker, guest: StockClient, code: str, **changed: Any) -> None:
    with nothing_granted(world.hospital):
        status, answer = guest.attest(running, **changed)
        assert (status, answer["error"]["code"]) == (status, code)
        assert status in (401, 403)
        assert world.hospital.log()[-1].details["code"] == code
        status, _ = guest.resource(running, "asset-key", world.data.digest.hex())
        assert status == 401


@pytest.mark.parametrize("version", ["0.3.0", "0.4.0"])
def test_a_guest_that_may_gets_the_key(world: World, hospital: RunningBroker, chip: Chip, version: str) -> None:
    guest = guest_of(world, chip, contract_for(world, chip), version=version)
    nonce = guest.challenge(hospital)
    assert len(base64.b64decode(nonce)) == 32
    status, answer = guest.ask(hospital, "POST", "/kbs/v0/attest", guest.attestation(nonce))
    assert status == 200, (answer, world.hospital.log()[-1])
    status, jwe = guest.resource(hospital, "asset-key", world.data.digest.hex())
    assert status == 200
    check_dek(world.data.manifest, guest.open(jwe))
    released = world.hospital.log()[-1]
    assert (released.kind, released.details["binding"]) == ("key.released", "init-data")
    assert (released.details["level"], released.details["attester"]) == ("cpu-tee", chip.attester)


def test_a_contract_that_says_nothing_of_it(world: World, hospital: RunningBroker) -> None:
    chip = amd()
    guest = guest_of(world, chip, contract_for(world, chip, stock_guests=False))
    refused(world, hospital, guest, "stock.contract")


def test_a_guest_started_for_another_contract(world: World, hospital: RunningBroker, chip: Chip) -> None:
    """The host shows init-data of the contract that allows it; the hardware was started with another one's."""
    allowed = guest_of(world, chip, contract_for(world, chip))
    started = guest_of(world, chip, world.contract)
    refused(world, hospital, started, "init-data.other", shown=allowed.init_data())
    refused(world, hospital, started, "stock.contract")


def test_a_guest_whose_host_can_debug_it(world: World, hospital: RunningBroker, chip: Chip) -> None:
    guest = guest_of(world, chip, contract_for(world, chip))
    refused(world, hospital, guest, "appraisal.level", **chip.open)


def test_a_guest_that_asks_for_a_share_of_checkpoints(world: World, hospital: RunningBroker) -> None:
    chip = amd()
    guest = guest_of(world, chip, contract_for(world, chip))
    assert guest.attest(hospital)[0] == 200
    with nothing_granted(world.hospital):
        status, answer = guest.resource(hospital, "state-share", "checkpoint")
    assert (status, answer["error"]["code"]) == (404, "resource.unknown")


def test_a_challenge_is_answered_twice(world: World, hospital: RunningBroker) -> None:
    chip = amd()
    guest = guest_of(world, chip, contract_for(world, chip))
    nonce = guest.challenge(hospital)
    body = guest.attestation(nonce)
    assert guest.ask(hospital, "POST", "/kbs/v0/attest", body)[0] == 200
    other = StockClient(chip, guest.job, key=guest.key)
    other.challenge(hospital)
    with nothing_granted(world.hospital):
        for asking, code in ((guest, "nonce.replayed"), (other, "nonce.other")):
            status, answer = asking.ask(hospital, "POST", "/kbs/v0/attest", body)
            assert (status, answer["error"]["code"]) == (401, code)


def test_an_owner_who_did_not_switch_it_on(world: World, lab: RunningBroker) -> None:
    """Not even the handshake: a client without a key of its own has nothing to ask there."""
    del lab
    chip = amd()
    guest = guest_of(world, chip, contract_for(world, chip))
    with serving(world.hospital) as running:
        with nothing_granted(world.hospital), pytest.raises((OSError, http.client.HTTPException)):
            guest.ask(running, "POST", "/kbs/v0/auth", guest.request())
        with nothing_granted(world.hospital), client(world, running, SigningKey.generate()) as keyed:
            assert keyed.code("POST", "/kbs/v0/auth", guest.request()) == (401, "kbs.stock-guest")


def test_our_own_workload_pretends_to_be_one_to_skip_the_binding(world: World, hospital: RunningBroker) -> None:
    """It has our evidence, with a launch log, and a contract that allows stock guests: its nonce would bind nothing."""
    chip = amd()
    contract = contract_for(world, chip)
    workload = world.workload(contract=contract, job=world.make_job(contract))
    pretender = StockClient(chip, workload.job.envelope.to_bytes().decode())
    with client(world, hospital, workload.signing) as ours:
        for tee, code in (("insecure", "stock.platform"), ("snp", None)):
            status, answer = ours.ask("POST", "/kbs/v0/auth", {**pretender.request(), "tee": tee})
            assert (status, answer.get("error", {}).get("code")) == (200 if code is None else 401, code)
        evidence = workload.attestation(answer["nonce"])["tee-evidence"]
        shown = {"format": "json", "body": pretender.init_data()}
        own = {
            "init-data": shown,
            "runtime-data": {"nonce": answer["nonce"], "tee-pubkey": workload.jwe.public_jwk},
            "tee-evidence": evidence,
        }
        with nothing_granted(world.hospital):
            assert ours.code("POST", "/kbs/v0/attest", own) == (401, "stock.devices")


def test_our_own_workload_needs_its_certificate_all_the_same(world: World, hospital: RunningBroker) -> None:
    """The handshake lets clients without one in now. What is bound to a key stays so."""
    keyless = StockClient(amd(), "")
    with nothing_granted(world.hospital):
        status, answer = keyless.ask(hospital, "POST", "/kbs/v0/auth", world.workload().request())
        assert (status, answer["error"]["code"]) == (401, "channel.key")
        status, answer = keyless.ask(hospital, "GET", "/cloister/v1/heads/lab")
        assert (status, answer["error"]["code"]) == (403, "channel.peer")


def test_a_guest_with_a_certificate_is_bound_to_it(world: World, hospital: RunningBroker) -> None:
    chip = amd()
    guest = guest_of(world, chip, contract_for(world, chip))
    with client(world, hospital, SigningKey.generate()) as keyed:
        _, challenge = keyed.ask("POST", "/kbs/v0/auth", guest.request())
        assert keyed.ask("POST", "/kbs/v0/attest", guest.attestation(challenge["nonce"]))[0] == 200
        guest.cookie = keyed.cookie
    with nothing_granted(world.hospital):
        status, answer = guest.resource(hospital, "asset-key", world.data.digest.hex())
        assert (status, answer["error"]["code"]) == (401, "session.absent")
    assert world.hospital.log()[-1].details["code"] == "session.stolen"


@pytest.mark.parametrize("what", ["report", "certificates", "no object"])
def test_evidence_of_another_form(world: World, hospital: RunningBroker, what: str) -> None:
    chip = amd()
    guest = guest_of(world, chip, contract_for(world, chip))
    nonce = guest.challenge(hospital)
    body = guest.attestation(nonce)
    primary = body["tee-evidence"]["primary_evidence"]
    if what == "report":
        primary["attestation_report"]["host_data"] = json.dumps(primary["attestation_report"]["host_data"])
    elif what == "certificates":
        primary["cert_chain"] = [{"cert_type": "VCEK", "data": [0] * 8192}] * 8
    else:
        body["tee-evidence"]["primary_evidence"] = []
    with nothing_granted(world.hospital):
        status, answer = guest.ask(hospital, "POST", "/kbs/v0/attest", body)
        assert status in (400, 401), answer
