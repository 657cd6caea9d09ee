"""GPU evidence that was made for another workload, or left out, added or exchanged beside a processor's evidence."""

from __future__ import annotations

from typing import Any

import pytest

from cloister.attestation import Evidence, device_data
from cloister.attestation.composite import verify_evidence
from cloister.attestation.tpm import TpmVerifier
from cloister.crypto import JweKey, canonical_json, parse_canonical
from cloister.errors import Untrusted
from tests.adversarial.evidence_forge import Forge, Log, launch_event
from tests.nvidia_forge import Factory, Gpu
from tests.pki import NOW

FACTORY = Factory()
ONE, TWO = FACTORY.gpu(), FACTORY.gpu()
VERIFIERS, DEVICES = {"tpm": TpmVerifier()}, {"nvidia": FACTORY.verifier()}


class WithGpus(Log):
    """An event log with GPU evidence beside it; what the processor's side signs covers both."""

    def __init__(self, gpus: int, entries: list[dict[str, str]] | None) -> None:
        super().__init__(launch_event(instance="00" * 16), launch_event(gpus=str(gpus)))
        self.entries = entries

    def text(self) -> str:
        body = parse_canonical(super().text().encode())
        more = {} if self.entries is None else {"nvidia": self.entries}
        return canonical_json(body | more).decode()


def verify(forge: Forge, evidence: Evidence) -> Any:
    report = forge.report(evidence.additional)
    device = device_data(forge.nonce, forge.tee_pubkey)
    return verify_evidence(VERIFIERS, DEVICES, evidence, report, device, now=NOW)


def entries(forge: Forge, *gpus: Gpu) -> list[dict[str, str]]:
    device = device_data(forge.nonce, forge.tee_pubkey)
    return [gpu.entry(device) for gpu in gpus]


def refused(code: str, forge: Forge, evidence: Evidence) -> None:
    with pytest.raises(Untrusted) as caught:
        verify(forge, evidence)
    assert caught.value.code == code


def test_good_evidence_of_both() -> None:
    forge = Forge()
    claims = verify(forge, forge.evidence(WithGpus(2, entries(forge, ONE, TWO))))
    assert claims.gpus == 2
    assert [d.name for d in claims.devices if d.tee == "nvidia"] == ["gpu0", "gpu1"]
    # A software TPM stays what it is, whatever GPU stands beside it.
    assert claims.level == "none"


def test_gpu_evidence_for_another_workload_key() -> None:
    forge = Forge()
    mine, forge.tee_pubkey = forge.tee_pubkey, dict(JweKey().public_jwk)
    theirs = entries(forge, ONE)
    forge.tee_pubkey = mine
    refused("nvidia.nonce", forge, forge.evidence(WithGpus(1, theirs)))


def test_gpu_evidence_of_another_session() -> None:
    forge, other = Forge(), Forge()
    refused("nvidia.nonce", forge, forge.evidence(WithGpus(1, entries(other, ONE))))


def test_gpu_evidence_exchanged_after_the_processor_signed() -> None:
    forge = Forge()
    sent = forge.evidence(WithGpus(1, entries(forge, ONE)))
    body = parse_canonical(sent.additional.encode())
    changed = canonical_json(body | {"nvidia": entries(forge, TWO)}).decode()
    refused("tpm.report", forge, Evidence("tpm", sent.primary, changed))


def test_gpu_evidence_cut_off_after_the_processor_signed() -> None:
    forge = Forge()
    sent = forge.evidence(WithGpus(1, entries(forge, ONE)))
    body = parse_canonical(sent.additional.encode())
    del body["nvidia"]
    refused("tpm.report", forge, Evidence("tpm", sent.primary, canonical_json(body).decode()))


def test_fewer_gpus_shown_than_were_handed_out() -> None:
    forge = Forge()
    refused("composite.gpu-count", forge, forge.evidence(WithGpus(2, entries(forge, ONE))))


def test_a_borrowed_gpu_added() -> None:
    forge = Forge()
    refused("composite.gpu-count", forge, forge.evidence(WithGpus(1, entries(forge, ONE, TWO))))


def test_one_gpu_counted_twice() -> None:
    forge = Forge()
    refused("nvidia.same-device", forge, forge.evidence(WithGpus(2, entries(forge, ONE, ONE))))
