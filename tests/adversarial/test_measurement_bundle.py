"""A bundle of a workload that its contract does not name: whole with every party's approval in the owners' results, and
refused with fewer, with one's own name under both, or with approvals of something else."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cloister.attestation import Claims, ReferenceValues, result_token
from cloister.client import verify
from cloister.contracts.releases import approval_envelope, read_release, release_envelope
from cloister.crypto import Envelope, SigningKey
from cloister.errors import CloisterError, Denied, Malformed, Untrusted
from tests.bundles import (
    AGENT,
    ATTESTER,
    HOSPITAL,
    INSTANCE,
    LAB,
    MEASUREMENT,
    NOW,
    PINS,
    Bundle,
    Party,
    contract_fields,
    make_contract,
)

KEY = SigningKey(b"release".ljust(32, b"."))


def release(measurement: str = MEASUREMENT) -> Any:
    envelope = release_envelope(
        version="2",
        number=1,
        previous=None,
        measurements=[measurement],
        agents=[],
        notes="",
        fixes=[],
        vulnerable=[],
        key=KEY,
        now=NOW,
    )
    return read_release(envelope, KEY.public)


@dataclass
class ApprovedBundle(Bundle):
    approvals: list[Envelope] = field(default_factory=list)

    def token(self, party: Party, **changes: Any) -> str:
        digests = self.contract.digest.hex(), self.job.digest.hex()
        claims = Claims("tpm", "none", ATTESTER, MEASUREMENT, AGENT, INSTANCE.hex(), *digests)
        reference = ReferenceValues(frozenset([MEASUREMENT]), frozenset([AGENT]), frozenset([ATTESTER]), {}, "none")
        texts = [envelope.to_bytes().decode() for envelope in self.approvals]
        secret = party.secret("receipt")
        return result_token(claims, reference, signer=secret, now=NOW, ttl=60, tee_pubkey={}, approvals=texts)


@pytest.fixture
def bundle(tmp_path: Path) -> ApprovedBundle:
    platform = {**contract_fields()["platform"], "measurements": ["99" * 32]}
    return ApprovedBundle(tmp_path / "logs", contract=make_contract(platform=platform))


def approval(bundle: Bundle, party: Party, *, of: Any = None, name: str = "", contract: bytes = b"") -> Envelope:
    digest, who = contract or bundle.contract.digest, name or party.name
    return approval_envelope(digest, who, of or release(), party.secret("signing"), now=NOW)


def check(bundle: Bundle, folder: Path) -> Any:
    return verify.verify_bundle(bundle.write(folder), PINS)


def refused(bundle: Bundle, folder: Path, error: type[CloisterError], code: str) -> None:
    with pytest.raises(error) as caught:
        check(bundle, folder)
    assert caught.value.code == code


def test_with_every_partys_approval(bundle: ApprovedBundle, tmp_path: Path) -> None:
    bundle.approvals = [approval(bundle, HOSPITAL), approval(bundle, LAB)]
    assert check(bundle, tmp_path / "b").measurement == MEASUREMENT


@pytest.mark.parametrize(
    "made",
    [
        lambda _: [],
        lambda b: [approval(b, HOSPITAL)],
        lambda b: [approval(b, HOSPITAL), approval(b, HOSPITAL)],
        lambda b: [approval(b, HOSPITAL), approval(b, LAB, of=release("88" * 32))],
        lambda b: [approval(b, party, of=release("88" * 32)) for party in (HOSPITAL, LAB)],
    ],
)
def test_with_less_than_every_partys_approval(
    bundle: ApprovedBundle, tmp_path: Path, made: Callable[[Bundle], list[Envelope]]
) -> None:
    bundle.approvals = made(bundle)
    refused(bundle, tmp_path / "b", Denied, "verify.platform")


def test_with_an_approval_in_anothers_name(bundle: ApprovedBundle, tmp_path: Path) -> None:
    bundle.approvals = [approval(bundle, HOSPITAL), approval(bundle, HOSPITAL, name="lab")]
    refused(bundle, tmp_path / "b", Untrusted, "dsse.unsigned")


def test_with_approvals_of_another_contract(bundle: ApprovedBundle, tmp_path: Path) -> None:
    bundle.approvals = [approval(bundle, party, contract=bytes(32)) for party in (HOSPITAL, LAB)]
    refused(bundle, tmp_path / "b", Untrusted, "approval.other")


def test_with_something_that_is_no_approval(bundle: ApprovedBundle, tmp_path: Path) -> None:
    bundle.approvals = [bundle.contract.envelope]
    with pytest.raises((Malformed, Untrusted)):
        check(bundle, tmp_path / "b")


def test_approvals_are_put_beside_a_signed_result(bundle: ApprovedBundle, tmp_path: Path) -> None:
    """Who carries a bundle can't add them: they are in what the owners' brokers signed."""
    folder = bundle.write(tmp_path / "b")
    record = json.loads((folder / verify.RELEASE_FILE).read_text())
    record["approvals"] = [approval(bundle, p).to_bytes().decode() for p in (HOSPITAL, LAB)]
    (folder / verify.RELEASE_FILE).write_text(json.dumps(record))
    with pytest.raises(CloisterError):
        verify.verify_bundle(folder, PINS)
