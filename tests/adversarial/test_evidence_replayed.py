"""Replayed and borrowed evidence, with a real software TPM: every one of the bindings, one at a time."""

import dataclasses
import os
from types import SimpleNamespace

import pytest

from cloister.attestation import (
    Binding,
    Evidence,
    ReferenceValues,
    appraise,
    check_nonce,
    make_nonce,
    report_data,
)
from cloister.attestation.registry import verifiers
from cloister.crypto import HpkePrivateKey, JweKey, SigningKey
from cloister.errors import CloisterError, Denied, Untrusted
from cloister.node.attester import TpmAttester

AGENT, MEASUREMENT = b"a" * 32, b"m" * 32


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    with TpmAttester.software(tmp_path_factory.mktemp("tpm") / "state", AGENT) as attester:
        yield attester


class Workload:
    """One running sandbox with its own keys, and the broker's view of it."""

    def __init__(self, node, contract=b"c" * 32, job=b"j" * 32, measurement=MEASUREMENT):
        self.node = node
        self.tee_pubkey = JweKey().public_jwk
        self.binding = Binding(
            purpose="release",
            broker_pin=os.urandom(32),
            contract=contract,
            job=job,
            instance=os.urandom(16),
            hpke_public=HpkePrivateKey.generate().public,
            signing_public=SigningKey.generate().public,
            lease_sequence=0,
        )
        node.extend_launch(self.binding.instance, measurement, contract, job)

    def challenge(self):
        return make_nonce(self.binding.ctx(), os.urandom(32))

    def evidence(self, nonce):
        return Evidence.from_wire(self.node.evidence(self.binding.instance, nonce, self.tee_pubkey))


def reference(node):
    return ReferenceValues(
        frozenset({MEASUREMENT.hex()}), frozenset({AGENT.hex()}), frozenset({node.attester_id}), {}, "none"
    )


def broker(node, binding, nonce, tee_pubkey, evidence):
    """What a broker does with an attestation, in its order. Raises, or returns the claims."""
    check_nonce(nonce, binding.ctx())
    verifier = verifiers(allow_insecure=False, production=True)[evidence.tee]
    claims = verifier.verify(evidence, report_data(nonce, tee_pubkey, evidence.additional), now=0)
    appraise(claims, reference(node), instance=binding.instance, contract=binding.contract, job=binding.job)
    return claims


def refused(code, kind, *arguments):
    with pytest.raises(CloisterError) as caught:
        broker(*arguments)
    assert (type(caught.value), caught.value.code) == (kind, code)


@pytest.fixture
def honest(node):
    workload = Workload(node)
    nonce = workload.challenge()
    return SimpleNamespace(workload=workload, nonce=nonce, evidence=workload.evidence(nonce))


def test_honest_evidence_is_accepted(node, honest):
    workload = honest.workload
    claims = broker(node, workload.binding, honest.nonce, workload.tee_pubkey, honest.evidence)
    assert claims.level == "none"
    assert claims.attester == node.attester_id
    assert "software TPM" in claims.hardware


def test_old_evidence_for_a_new_challenge(node, honest):
    workload = honest.workload
    refused("tpm.report", Untrusted, node, workload.binding, workload.challenge(), workload.tee_pubkey, honest.evidence)


def test_evidence_borrowed_for_another_workload_key(node, honest):
    """A man in the middle forwards real evidence and names his own key to receive the secrets."""
    refused("tpm.report", Untrusted, node, honest.workload.binding, honest.nonce, JweKey().public_jwk, honest.evidence)


@pytest.mark.parametrize(
    "change",
    [
        {"purpose": "resume"},
        {"broker_pin": b"x" * 32},
        {"contract": b"x" * 32},
        {"job": b"x" * 32},
        {"instance": b"x" * 16},
        {"hpke_public": bytes(1216)},
        {"signing_public": b"x" * 32},
        {"lease_sequence": 1},
    ],
    ids=lambda c: next(iter(c)),
)
def test_challenge_made_for_something_else(node, honest, change):
    """The broker's own view differs in one field: the nonce gives it away before any evidence is read."""
    other = dataclasses.replace(honest.workload.binding, **change)
    refused("binding.nonce", Untrusted, node, other, honest.nonce, honest.workload.tee_pubkey, honest.evidence)


def borrowed(node, victim, thief):
    """The thief answers the challenge that it got, with evidence of its own sandbox."""
    nonce = victim.challenge()
    evidence = Evidence.from_wire(node.evidence(thief.binding.instance, nonce, victim.tee_pubkey))
    return node, victim.binding, nonce, victim.tee_pubkey, evidence


def test_evidence_of_another_instance(node):
    refused("appraisal.instance", Untrusted, *borrowed(node, Workload(node), Workload(node)))


@pytest.mark.parametrize(
    ("thief", "code", "kind"),
    [
        ({"contract": b"o" * 32}, "appraisal.contract", Untrusted),
        ({"job": b"o" * 32}, "appraisal.job", Untrusted),
        ({"measurement": b"o" * 32}, "appraisal.measurement", Denied),
    ],
)
def test_instance_that_was_launched_for_something_else(node, thief, code, kind):
    """The broker is told another contract, job or image than the one that the node launched under this id."""
    victim = Workload(node, **thief)
    victim.binding = dataclasses.replace(victim.binding, contract=b"c" * 32, job=b"j" * 32)
    nonce = victim.challenge()
    refused(code, kind, node, victim.binding, nonce, victim.tee_pubkey, victim.evidence(nonce))


def test_workload_sends_an_event_log_of_its_own(node, honest):
    """The log that the node signed is the only one that counts: another sandbox's can't be put in its place."""
    other = Workload(node, measurement=b"z" * 32)
    foreign = other.evidence(other.challenge()).additional
    mixed = dataclasses.replace(honest.evidence, additional=foreign)
    refused("tpm.report", Untrusted, node, honest.workload.binding, honest.nonce, honest.workload.tee_pubkey, mixed)


def test_evidence_for_an_instance_that_never_ran_or_has_ended(node):
    workload = Workload(node)
    nonce = workload.challenge()
    before = workload.evidence(nonce)
    node.retire(workload.binding.instance)
    for instance in (workload.binding.instance, os.urandom(16)):
        with pytest.raises(Denied) as caught:
            node.evidence(instance, nonce, workload.tee_pubkey)
        assert caught.value.code == "attester.instance"
    # And an id that was used once can't be launched again as something else.
    with pytest.raises(Denied) as caught:
        node.extend_launch(workload.binding.instance, b"z" * 32, b"c" * 32, b"j" * 32)
    assert caught.value.code == "attester.instance-used"
    another = Workload(node)
    after = another.evidence(another.challenge())
    assert after.primary["pcrs"]["15"] != before.primary["pcrs"]["15"]  # by one launch, not by the refused one
    assert after.additional.count('"kind":"launch"') == before.additional.count('"kind":"launch"') + 1


def test_evidence_of_an_attester_that_the_contract_does_not_name(node, tmp_path):
    """A whole other node, honest in itself, with a TPM that nobody named."""
    with TpmAttester.software(tmp_path / "rogue", AGENT) as rogue:
        workload = Workload(rogue)
        nonce = workload.challenge()
        evidence = workload.evidence(nonce)
    refused("appraisal.attester", Denied, node, workload.binding, nonce, workload.tee_pubkey, evidence)


def test_evidence_of_an_agent_that_the_contract_does_not_name(node, tmp_path):
    with TpmAttester.software(tmp_path / "rogue", b"r" * 32) as rogue:
        workload = Workload(rogue)
        nonce = workload.challenge()
        evidence = workload.evidence(nonce)
    refused("appraisal.agent", Denied, node, workload.binding, nonce, workload.tee_pubkey, evidence)
