"""A platform that one owner's own policy refuses, or a machine that the contract does not name, asks for keys all the
same: before the policy was tightened, after it, in a session of before, on another chip."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from cloister.attestation import Claims, Evidence, verify_token
from cloister.attestation.models import Device
from cloister.attestation.policy import DEFAULT_POLICY, PolicyDenied
from cloister.broker.errors_http import public_error
from cloister.crypto import canonical_json
from cloister.errors import CloisterError, Denied, Malformed
from tests.broker_world import LEASE, Party, Workload, World, nothing_granted

pytest_plugins = ["tests.broker_fixtures"]

CHIP, OTHER_CHIP = "ab" * 64, "cd" * 64
CPU = Device("cpu0", "snp", CHIP, {"launch": "11" * 48}, {"debug": False, "product": "genoa", "tcb.snp": 22})


class Machine:
    """Judges evidence as the development verifier does, and says that it came from this hardware."""

    tee = "insecure"

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.said: dict[str, Any] = {"level": "cpu-tee", "devices": (CPU,)}

    def verify(self, evidence: Evidence, report: bytes, *, now: int) -> Claims:
        return replace(self._inner.verify(evidence, report, now=now), **self.said)


@pytest.fixture
def machine(world: World) -> Machine:
    made = Machine(world.hospital.judges["insecure"])
    for party in world.parties.values():
        party.judges = {"insecure": made}
        party.restart()
    return made


def policy(*rules: dict[str, Any], **changes: Any) -> bytes:
    body = {"default": True, "least_level": "none", "name": "tests", "platforms": {"snp": list(rules)}}
    return canonical_json({**body, "type": "appraisal-policy/v1", **changes})


FLOOR = {"about": "fact tcb.snp", "at_least": 23}


def set_policy(party: Party, *rules: dict[str, Any], **changes: Any) -> None:
    party.broker.policies.set(policy(*rules, **changes))


def refused(party: Party, workload: Workload, *args: Any) -> CloisterError:
    with nothing_granted(party), pytest.raises(Denied) as caught:
        workload.attested(party, *args)
    return caught.value


def test_a_refused_platform_gets_no_key_and_only_the_owner_learns_why(world: World, machine: Machine) -> None:
    set_policy(world.hospital, FLOOR)
    error = refused(world.hospital, world.workload())
    assert isinstance(error, PolicyDenied)
    assert error.code == "policy.rule"
    entry = world.hospital.log()[-1]
    assert (entry.kind, entry.outcome) == ("attest.refused", "failure")
    assert entry.details["policy_rule"] == "fact tcb.snp: at_least 23"
    assert (entry.details["policy_device"], entry.details["policy_found"]) == ("cpu0 (snp)", "22")
    for attested in (True, False):
        answer = public_error(error, attested=attested).body.decode()
        assert "tcb" not in answer
        assert json.loads(answer)["error"]["details"] == {}


def test_a_policy_is_one_owners_and_nobody_elses(world: World, machine: Machine) -> None:
    set_policy(world.hospital, FLOOR)
    workload = world.workload()
    refused(world.hospital, workload)
    workload.fetch(world.lab, workload.attested(world.lab), world.base.digest)
    assert world.lab.broker.policies.current() == DEFAULT_POLICY


def test_a_tightened_policy_ends_a_running_job_at_its_next_renewal(world: World, machine: Machine) -> None:
    workload = world.workload().run()
    world.clock.pass_seconds(LEASE // 2)
    cookie = workload.attested(world.hospital, "renew", 1)
    set_policy(world.hospital, FLOOR)
    with nothing_granted(world.hospital), pytest.raises(PolicyDenied):
        world.hospital.broker.leases.renew(cookie)  # attested before, asked after
    assert world.hospital.log()[-1].details["policy_found"] == "22"
    refused(world.hospital, workload, "renew", 1)
    world.lab.broker.leases.renew(workload.attested(world.lab, "renew", 1))  # the other owner's key goes on


def test_a_session_of_before_fetches_a_key_after(world: World, machine: Machine) -> None:
    workload = world.workload()
    cookie = workload.attested(world.hospital)
    workload.fetch(world.hospital, cookie, world.data.digest)  # and the stored answer is not handed out again
    set_policy(world.hospital, FLOOR)
    with nothing_granted(world.hospital), pytest.raises(PolicyDenied):
        workload.fetch(world.hospital, cookie, world.data.digest)


def test_a_lax_policy_does_not_loosen_a_contract(world: World, machine: Machine) -> None:
    set_policy(world.hospital, default=False)
    assert refused(world.hospital, world.workload(measurement=b"\x99" * 32)).code == "appraisal.measurement"


def test_debug_evidence_under_the_built_in_policy(world: World, machine: Machine) -> None:
    machine.said["devices"] = (replace(CPU, facts={**CPU.facts, "debug": True}),)
    assert refused(world.hospital, world.workload()).code == "policy.rule"


def test_evidence_that_names_no_device(world: World, machine: Machine) -> None:
    machine.said["devices"] = ()
    assert refused(world.hospital, world.workload()).code == "policy.devices"


def test_a_policy_is_logged_and_outlives_a_restart(world: World, machine: Machine) -> None:
    set_policy(world.hospital, FLOOR)
    set_policy(world.hospital, FLOOR)  # the same again is no event
    digest = world.hospital.broker.policies.current().digest
    (entry,) = [facts for facts in world.hospital.log() if facts.kind == "policy.set"]
    assert entry.details["digest"] == digest
    assert entry.details["previous"] == DEFAULT_POLICY.digest
    world.hospital.restart()
    assert world.hospital.broker.policies.current().digest == digest
    refused(world.hospital, world.workload())


def test_bytes_that_are_no_policy_change_nothing(world: World) -> None:
    for data in (b"", b"{}", policy(FLOOR) + b" ", policy({"about": "fact x"})):
        with nothing_granted(world.hospital), pytest.raises(Malformed):
            world.hospital.broker.policies.set(data)


def test_the_result_names_the_policy_and_the_devices(world: World, machine: Machine) -> None:
    set_policy(world.hospital, {"about": "identity", "one_of": [CHIP]})
    workload = world.workload()
    cookie, challenge = world.hospital.broker.releases.challenge(workload.request())
    token = world.hospital.broker.releases.attest(cookie, workload.attestation(challenge["nonce"]))
    key = world.contract.parties["hospital"].receipt
    found = verify_token(token, key, now=world.clock())["submods"]["cpu0"]
    digest = world.hospital.broker.policies.current().digest
    assert found["ear.appraisal-policy-id"] == f"urn:cloister:policy:{digest}"
    assert found["ear.veraison.annotated-evidence"]["device"]["identity"] == CHIP
    (entry,) = [facts for facts in world.hospital.log() if facts.kind == "attest.ok"]
    assert entry.details["policy"] == digest


# Devices and tenancy that the contract names: every broker checks them.


def pinned(world: World, **platform: Any) -> Workload:
    fields = {**world.contract_fields()["platform"], **platform}
    contract = world.sign(world.contract_fields(serial=2, platform=fields))
    return world.workload(contract=contract, job=world.make_job(contract))


def test_another_machine_than_the_contract_names(world: World, machine: Machine) -> None:
    workload = pinned(world, devices={"snp": [CHIP]})
    for identity in (OTHER_CHIP, ""):
        machine.said["devices"] = (replace(CPU, identity=identity),)
        for party in world.parties.values():
            assert refused(party, workload).code == "appraisal.device"
    machine.said["devices"] = (CPU,)
    workload.fetch(world.hospital, workload.attested(world.hospital), world.data.digest)


def test_a_running_job_moves_to_another_machine(world: World, machine: Machine) -> None:
    workload = pinned(world, devices={"snp": [CHIP]}).run()
    machine.said["devices"] = (replace(CPU, identity=OTHER_CHIP),)
    assert refused(world.hospital, workload, "renew", 1).code == "appraisal.device"


def test_a_gpu_that_nobody_agreed_on_is_beside_the_named_ones(world: World, machine: Machine) -> None:
    facts: dict[str, Any] = {"measurements_match": True, "confidential": True, "debug": False}
    machine.said["devices"] = (
        CPU,
        Device("gpu0", "nvidia", "01", {}, facts),
        Device("gpu1", "nvidia", "02", {}, facts),
    )
    assert refused(world.hospital, pinned(world, devices={"nvidia": ["01"]})).code == "appraisal.device"


def test_others_run_beside_a_contract_that_wants_to_be_alone(world: World, machine: Machine) -> None:
    workload = pinned(world, tenancy="exclusive")
    assert refused(world.hospital, workload).code == "appraisal.tenancy"
    machine.said["tenancy"] = "exclusive"
    workload.fetch(world.hospital, workload.attested(world.hospital), world.data.digest)
