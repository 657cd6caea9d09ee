"""The operator asks for a key without having proved anything, or with somebody else's proof."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cloister.contracts import Job
from cloister.crypto import JweKey, SigningKey, random_bytes
from cloister.errors import CloisterError, Denied, Malformed, Untrusted
from tests.broker_world import HPKE, Workload, World, insecure_attester, nothing_granted

pytest_plugins = ["tests.broker_fixtures"]


def challenge(world: World, workload: Workload, **changes: Any) -> tuple[str, str]:
    cookie, answer = world.hospital.broker.releases.challenge(workload.request(**changes))
    return cookie, answer["nonce"]


@pytest.mark.parametrize("cookie", [None, "", "x", "A" * 43])
def test_a_key_is_asked_for_without_a_session(world: World, cookie: str | None) -> None:
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        world.hospital.broker.releases.resource(cookie, "hospital", "asset-key", world.data.digest.hex())
    assert refused.value.code == "session.absent"


def test_a_key_is_asked_for_without_evidence(world: World) -> None:
    workload = world.workload()
    cookie, _ = challenge(world, workload)
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        workload.fetch(world.hospital, cookie, world.data.digest)
    assert refused.value.code == "session.unattested"


def test_the_token_is_shown_instead_of_the_cookie(world: World) -> None:
    workload = world.workload()
    cookie, nonce = challenge(world, workload)
    token = world.hospital.broker.releases.attest(cookie, workload.attestation(nonce))
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        workload.fetch(world.hospital, token, world.data.digest)
    assert refused.value.code == "session.absent"


def test_a_challenge_is_answered_twice(world: World) -> None:
    workload = world.workload()
    cookie, nonce = challenge(world, workload)
    body = workload.attestation(nonce)
    world.hospital.broker.releases.attest(cookie, body)
    size = len(world.hospital.log())
    with nothing_granted(world.hospital), pytest.raises(Untrusted) as refused:
        world.hospital.broker.releases.attest(cookie, body)
    assert refused.value.code == "nonce.replayed"
    [told] = world.hospital.log()[size:]
    assert (told.kind, told.target, told.details["code"]) == (
        "attest.refused", workload.instance.hex(), "nonce.replayed",
    )  # fmt: skip


def test_a_challenge_is_tried_again_after_evidence_that_failed(world: World) -> None:
    workload = world.workload()
    cookie, nonce = challenge(world, workload)
    body = workload.attestation(nonce)
    broken = {**body, "tee-evidence": {"additional_evidence": "{}", "primary_evidence": {}}}
    with nothing_granted(world.hospital):
        with pytest.raises(CloisterError):
            world.hospital.broker.releases.attest(cookie, broken)
        with pytest.raises(Untrusted) as refused:
            world.hospital.broker.releases.attest(cookie, body)
    assert refused.value.code == "nonce.replayed"


def test_a_challenge_is_answered_too_late(world: World) -> None:
    workload = world.workload()
    cookie, nonce = challenge(world, workload)
    world.clock.pass_seconds(60)
    with nothing_granted(world.hospital), pytest.raises(Untrusted) as refused:
        world.hospital.broker.releases.attest(cookie, workload.attestation(nonce))
    assert refused.value.code == "nonce.expired"


def test_the_challenge_of_another_session_is_answered(world: World) -> None:
    workload = world.workload()
    mine, _ = challenge(world, workload)
    _, theirs = challenge(world, workload)
    with nothing_granted(world.hospital), pytest.raises(Untrusted) as refused:
        world.hospital.broker.releases.attest(mine, workload.attestation(theirs))
    assert refused.value.code == "nonce.other"


def test_evidence_made_for_another_broker_is_shown(world: World) -> None:
    workload = world.workload()
    _, answer = world.lab.broker.releases.challenge(workload.request())
    mine, _ = challenge(world, workload)
    with nothing_granted(world.hospital), pytest.raises(Untrusted) as refused:
        world.hospital.broker.releases.attest(mine, workload.attestation(answer["nonce"]))
    assert refused.value.code == "nonce.other"


def test_evidence_is_borrowed_for_another_response_key(world: World) -> None:
    """The operator has a genuine workload attest, and puts its own key in the place of the workload's."""
    workload = world.workload()
    cookie, nonce = challenge(world, workload)
    body = workload.attestation(nonce)
    body["runtime-data"]["tee-pubkey"] = JweKey().public_jwk
    with nothing_granted(world.hospital), pytest.raises(Untrusted) as refused:
        world.hospital.broker.releases.attest(cookie, body)
    assert refused.value.code == "signature.invalid"


def test_a_response_key_that_nothing_can_be_encrypted_to(world: World) -> None:
    workload = world.workload()
    for key in ({"kty": "RSA", "alg": "RSA1_5"}, "text", {**JweKey().public_jwk, "x": "AA"}):
        cookie, nonce = challenge(world, workload)
        body = workload.attestation(nonce)
        body["runtime-data"]["tee-pubkey"] = key
        with nothing_granted(world.hospital), pytest.raises(Malformed):
            world.hospital.broker.releases.attest(cookie, body)


Borrow = Callable[[World, Workload], Workload]


def other_instance(world: World, genuine: Workload) -> Workload:
    return world.workload(instance=random_bytes(16))


def other_job(world: World, genuine: Workload) -> Workload:
    return world.workload(instance=genuine.instance, job=world.make_job())


@pytest.mark.parametrize(("borrow", "code"), [(other_instance, "appraisal.instance"), (other_job, "appraisal.job")])
def test_evidence_of_one_run_is_shown_for_another(world: World, borrow: Borrow, code: str) -> None:
    """The node can make its attester sign any nonce, but only about a sandbox that it really launched."""
    genuine = world.workload().launch()
    thief = borrow(world, genuine)
    cookie, nonce = challenge(world, thief)
    body = genuine.attestation(nonce)
    body["runtime-data"]["tee-pubkey"] = genuine.jwe.public_jwk
    with nothing_granted(world.hospital), pytest.raises(Untrusted) as refused:
        world.hospital.broker.releases.attest(cookie, body)
    assert refused.value.code == code


def test_another_workload_is_launched_under_the_job(world: World) -> None:
    impostor = world.workload(measurement=b"\xee" * 32)
    cookie, nonce = challenge(world, impostor)
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        world.hospital.broker.releases.attest(cookie, impostor.attestation(nonce))
    assert refused.value.code == "appraisal.measurement"
    last = world.hospital.log()[-1]
    assert (last.kind, last.outcome, last.details["code"]) == ("attest.refused", "failure", "appraisal.measurement")


@pytest.mark.parametrize(
    ("attester", "code"),
    [
        (lambda: insecure_attester(SigningKey.generate()), "appraisal.attester"),
        (lambda: insecure_attester(agent=b"\xdd" * 32), "appraisal.agent"),
    ],
)
def test_another_node_speaks_for_the_workload(world: World, attester: Callable[[], Any], code: str) -> None:
    world.attester = attester()
    workload = world.workload()
    cookie, nonce = challenge(world, workload)
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        world.hospital.broker.releases.attest(cookie, workload.attestation(nonce))
    assert refused.value.code == code


def test_evidence_of_a_platform_that_nobody_here_judges(world: World) -> None:
    world.hospital.judges = {}
    from cloister.attestation.registry import verifiers

    world.hospital.judges = verifiers(allow_insecure=False, production=True)
    world.hospital.restart()
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        challenge(world, world.workload())
    assert refused.value.code == "attestation.insecure"


def test_an_instance_id_is_taken_over_with_other_keys(world: World) -> None:
    """A frozen instance's id can't be given to a process with keys of somebody else."""
    first = world.workload().run()
    thief = world.workload(instance=first.instance, signing=SigningKey.generate())
    with nothing_granted(world.hospital), pytest.raises(Untrusted) as refused:
        challenge(world, thief)
    assert refused.value.code == "instance.other"


def test_a_stranger_submits_a_job(world: World) -> None:
    """A job that no party signed."""
    envelope = world.job.envelope
    forged = Job(**{**vars(world.job), "envelope": type(envelope)(envelope.payload_type, envelope.payload, ())})
    workload = world.workload()
    workload.job = forged
    with nothing_granted(world.hospital), pytest.raises(Malformed) as malformed:
        challenge(world, workload)
    assert malformed.value.code == "dsse.signatures"
    workload.job = Job(**{**vars(world.job), "envelope": forged.envelope.signed_by(SigningKey.generate())})
    with nothing_granted(world.hospital), pytest.raises(Untrusted) as refused:
        challenge(world, workload)
    assert refused.value.code == "dsse.unsigned"


def test_the_operator_cannot_fill_the_disk_with_refusals(world: World) -> None:
    limit = world.hospital.limits.refusals_per_minute
    before = len(world.hospital.log())
    request = world.workload().request(statements=[])
    for _ in range(limit + 20):
        with pytest.raises(Denied):
            world.hospital.broker.releases.challenge(request)
    assert len(world.hospital.log()) == before + limit
    world.clock.pass_seconds(60)
    with pytest.raises(Denied):
        world.hospital.broker.releases.challenge(request)
    assert world.hospital.log()[-1].details["suppressed_before"] == 20


def test_the_answer_is_useless_to_whoever_overhears_it(world: World) -> None:
    workload = world.workload()
    cookie = workload.attested(world.hospital)
    jwe = workload.fetch(world.hospital, cookie, world.data.digest)
    with pytest.raises(Untrusted) as refused:
        JweKey().decrypt(jwe)
    assert refused.value.code == "jwe.open"
    key, _ = workload.open(jwe, world.data.digest)
    assert key not in jwe
    assert HPKE.public  # the second layer: even with the response key, the HPKE key is needed
    with pytest.raises(Untrusted):
        workload.open(jwe, world.base.digest)
