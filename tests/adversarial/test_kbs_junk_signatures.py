"""Statements and jobs with more signatures than the one that counts: whoever sends them would choose how much work they
are, and what is stored with them."""

from __future__ import annotations

from typing import Any

import pytest

from cloister.contracts import in_force_statement
from cloister.crypto import Envelope, SigningKey, random_bytes
from cloister.crypto import dsse as dsse_module
from cloister.errors import CloisterError, Malformed
from tests.broker_world import NOW, Workload, World, nothing_granted

pytest_plugins = ["tests.broker_fixtures"]

JUNK = [("junk", random_bytes(64)) for _ in range(63)]


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What is verified, signature by signature."""
    seen: list[bytes] = []
    genuine = dsse_module.verify_ed25519

    def counted(key: bytes, message: bytes, signature: bytes) -> None:
        seen.append(signature)
        genuine(key, message, signature)

    monkeypatch.setattr(dsse_module, "verify_ed25519", counted)
    return seen


def refused(world: World, workload: Workload, **changes: Any) -> CloisterError:
    with nothing_granted(world.hospital), pytest.raises(CloisterError) as caught:
        world.hospital.broker.releases.challenge(workload.request(**changes))
    return caught.value


def with_more(text: str, signatures: list[tuple[str, bytes]]) -> str:
    envelope = Envelope.from_bytes(text.encode())
    return Envelope(
        envelope.payload_type, envelope.payload, (*signatures, *envelope.signatures)
    ).to_bytes().decode()  # fmt: skip


def test_statements_with_many_signatures(calm: World, verified: list[bytes]) -> None:
    workload = calm.workload()
    refusal = refused(calm, workload, statements=[with_more(text, JUNK[:1]) for text in workload.statements()])
    assert (type(refusal), refusal.code) == (Malformed, "dsse.signatures")
    refusal = refused(calm, workload, statements=[with_more(workload.statements()[0], JUNK)] * 20)
    assert (type(refusal), refusal.code) == (Malformed, "request.statement")  # they are too large to be read at all
    assert not [signature for _, signature in JUNK if signature in verified]


def test_many_statements_of_one_party(calm: World, verified: list[bytes]) -> None:
    """Each of another second, each signed and fresh. The second one ends it."""
    key = calm.lab.broker.core.keys.status
    texts = [in_force_statement(calm.contract, "lab", key, now=NOW - n).to_bytes().decode() for n in range(40)]
    request = calm.workload().request()
    request["extra-params"]["cloister"]["statements"] = texts
    verified.clear()
    with nothing_granted(calm.hospital), pytest.raises(Malformed) as caught:
        calm.hospital.broker.releases.challenge(request)
    assert caught.value.code == "status.twice"
    assert len(verified) <= 5


def test_a_job_with_many_signatures_or_a_story_in_its_key_id(calm: World, verified: list[bytes]) -> None:
    workload = calm.workload()
    text = workload.job.envelope.to_bytes().decode()
    assert refused(calm, workload, job=with_more(text, JUNK)).code == "dsse.signatures"
    assert not [signature for _, signature in JUNK if signature in verified]
    (_, signature), *_ = workload.job.envelope.signatures
    long = Envelope(workload.job.envelope.payload_type, workload.job.envelope.payload, (("k" * 100_000, signature),))
    assert refused(calm, workload, job=long.to_bytes().decode()).code == "dsse.signatures"


def test_a_statement_without_a_signature(calm: World) -> None:
    workload = calm.workload()
    bare = [Envelope.from_bytes(text.encode()) for text in workload.statements()]
    texts = [Envelope(envelope.payload_type, envelope.payload).to_bytes().decode() for envelope in bare]
    assert refused(calm, workload, statements=texts).code == "dsse.signatures"
    other = [envelope.with_signature("00", b"").to_bytes().decode() for envelope in bare]
    assert refused(calm, workload, statements=other).code == "dsse.signatures"
    forged = [
        Envelope(envelope.payload_type, envelope.payload).signed_by(SigningKey.generate()).to_bytes().decode()
        for envelope in bare
    ]
    assert refused(calm, workload, statements=forged).code == "dsse.unsigned"
