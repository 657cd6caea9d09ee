"""Jobs, statements, revocations and permits: each speaks for one party about one contract, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.contracts import (
    JOB_TYPE,
    PERMIT_TYPE,
    REVOCATION_TYPE,
    STATUS_TYPE,
    Contract,
    check_statement,
    in_force_statement,
    job_envelope,
    permit_envelope,
    read_job,
    read_permit,
    read_revocation,
    revocation_envelope,
)
from cloister.crypto import Envelope, sign_document
from cloister.errors import CloisterError, Denied, Malformed, Untrusted
from tests.bundles import HOSPITAL, INSTANCE, LAB, MALLORY, NOW, make_contract, make_job

CONTRACT = make_contract()
OTHER = make_contract(name="other")
JOB = make_job(CONTRACT)


def statement(now: int = NOW, contract: Contract = CONTRACT, party: Any = LAB, role: str = "status") -> Envelope:
    return in_force_statement(contract, party.name, party.secret(role), now=now)


@pytest.mark.parametrize("age", [0, 1, CONTRACT.lease_seconds, -5])
def test_a_statement_lives_for_one_lease(age: int) -> None:
    assert check_statement(statement(NOW - age), CONTRACT, now=NOW) == "lab"


@pytest.mark.parametrize("age", [CONTRACT.lease_seconds + 1, -6, NOW])
def test_a_statement_outside_its_lease(age: int) -> None:
    with pytest.raises(Denied) as refused:
        check_statement(statement(NOW - age), CONTRACT, now=NOW)
    assert refused.value.code == "status.stale"


@pytest.mark.parametrize(
    ("envelope", "code"),
    [
        (statement(contract=OTHER), "status.other"),
        (statement(party=MALLORY), "status.other"),
        (statement(role="signing"), "dsse.unsigned"),
        (in_force_statement(CONTRACT, "lab", HOSPITAL.secret("status"), now=NOW), "dsse.unsigned"),
        (Envelope(REVOCATION_TYPE, statement().payload, statement().signatures), "dsse.type"),
    ],
)
def test_statements_that_speak_for_nobody(envelope: Envelope, code: str) -> None:
    with pytest.raises(Untrusted) as refused:
        check_statement(envelope, CONTRACT, now=NOW)
    assert refused.value.code == code


def revocation(**changes: Any) -> Envelope:
    fields: dict[str, Any] = {"digest": CONTRACT.digest, "party": "lab", "key": LAB.secret("status"), **changes}
    return revocation_envelope(fields["digest"], fields["party"], fields["key"], now=NOW, reason="it is over")


@pytest.mark.parametrize("role", ["signing", "status"])
def test_either_key_revokes(role: str) -> None:
    assert read_revocation(revocation(key=LAB.secret(role)), CONTRACT) == ("lab", "it is over")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"digest": OTHER.digest}, "revocation.other"),
        ({"party": "mallory", "key": MALLORY.secret("status")}, "revocation.other"),
        ({"key": MALLORY.secret("status")}, "dsse.unsigned"),
        ({"key": LAB.secret("receipt")}, "dsse.unsigned"),
    ],
)
def test_nobody_else_revokes(changes: dict[str, Any], code: str) -> None:
    with pytest.raises(Untrusted) as refused:
        read_revocation(revocation(**changes), CONTRACT)
    assert refused.value.code == code


def test_a_job_names_digests_for_the_recipes_names() -> None:
    assert (JOB.data, JOB.base) == tuple(asset.digest for asset in CONTRACT.assets)
    assert read_job(Envelope.from_bytes(JOB.envelope.to_bytes()), CONTRACT) == JOB
    assert JOB.digest == JOB.envelope.digest


def test_two_runs_of_one_recipe_are_two_jobs() -> None:
    def job(salt: bytes) -> Envelope:
        key = HOSPITAL.secret("signing")
        return job_envelope(CONTRACT, "hospital", JOB.recipe, JOB.output, key, now=NOW, salt=salt)

    assert job(bytes(16)).digest != job(b"1" * 16).digest


def test_a_job_over_assets_that_are_not_named() -> None:
    empty = make_contract(assets=[], outputs=[], unbounded_memorization=[])
    with pytest.raises(Denied) as refused:
        job_envelope(empty, "hospital", JOB.recipe, "o", HOSPITAL.secret("signing"), now=NOW, salt=bytes(16))
    assert refused.value.code == "contract.asset"


@pytest.mark.parametrize(
    ("changes", "signer", "error", "code"),
    [
        ({}, MALLORY, Untrusted, "dsse.unsigned"),
        ({}, LAB, Untrusted, "dsse.unsigned"),
        ({"submitter": "mallory"}, MALLORY, Untrusted, "job.contract"),
        ({"contract": OTHER.digest.hex()}, HOSPITAL, Untrusted, "job.contract"),
        ({"salt": "00"}, HOSPITAL, Malformed, "form.field"),
        ({"type": "job/v2"}, HOSPITAL, Malformed, "form.field"),
        ({"recipe": {}}, HOSPITAL, Malformed, "recipe.kind"),
        ({"output": "nowhere"}, HOSPITAL, Malformed, "form.field"),
        ({"more": 1}, HOSPITAL, Malformed, "form.unknown"),
    ],
)
def test_jobs_that_nobody_submitted(
    changes: dict[str, Any], signer: Any, error: type[CloisterError], code: str
) -> None:
    body = {**JOB.envelope.document(), **changes}
    with pytest.raises(error) as refused:
        read_job(sign_document(JOB_TYPE, body, signer.secret("signing")), CONTRACT)
    assert refused.value.code == code


def permit(owner: Any = LAB, role: str = "receipt", contract: Contract = CONTRACT) -> Envelope:
    return permit_envelope(owner.name, contract.digest, JOB.digest, b"o" * 32, INSTANCE, owner.secret(role), now=NOW)


def test_an_owners_permit_is_read() -> None:
    found = read_permit(permit(), CONTRACT)
    assert (found.owner, found.job, found.output, found.instance) == ("lab", JOB.digest, b"o" * 32, INSTANCE)


@pytest.mark.parametrize(
    ("envelope", "error", "code"),
    [
        (permit(MALLORY), Malformed, "permit.other"),
        (permit(contract=OTHER), Malformed, "permit.other"),
        (permit(role="signing"), Untrusted, "dsse.unsigned"),
        (Envelope(STATUS_TYPE, permit().payload, permit().signatures), Untrusted, "dsse.type"),
        (sign_document(PERMIT_TYPE, {**permit().document(), "more": 1}), Malformed, "form.unknown"),
    ],
)
def test_permits_that_permit_nothing(envelope: Envelope, error: type[CloisterError], code: str) -> None:
    with pytest.raises(error) as refused:
        read_permit(envelope, CONTRACT)
    assert refused.value.code == code


Reader = Callable[[Envelope], Any]
READERS: list[tuple[Envelope, Reader]] = [
    (statement(), lambda e: check_statement(e, CONTRACT, now=NOW)),
    (revocation(), lambda e: read_revocation(e, CONTRACT)),
    (JOB.envelope, lambda e: read_job(e, CONTRACT)),
    (permit(), lambda e: read_permit(e, CONTRACT)),
]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(range(len(READERS))), st.integers(min_value=0), st.integers(0, 7))
def test_one_flipped_bit_in_any_of_them(which: int, place: int, bit: int) -> None:
    envelope, reader = READERS[which]
    payload = bytearray(envelope.payload)
    payload[place % len(payload)] ^= 1 << bit
    with pytest.raises(CloisterError):
        reader(Envelope(envelope.payload_type, bytes(payload), envelope.signatures))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(range(len(READERS))), st.sampled_from(range(len(READERS))))
def test_none_passes_for_another(made: int, read: int) -> None:
    envelope, reader = READERS[made][0], READERS[read][1]
    if made == read:
        reader(envelope)
        return
    with pytest.raises(CloisterError):
        reader(envelope)
