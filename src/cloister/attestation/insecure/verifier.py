"""The verifier of development evidence: one Ed25519 signature by a key that lives in a file."""

from __future__ import annotations

import base64
import binascii
import warnings
from typing import Any

from ...crypto import frame, sha256, verify_ed25519
from ...errors import Malformed, Untrusted
from ..events import open_log
from ..models import Claims, Evidence

__all__ = ["InsecureAttestationWarning", "InsecureVerifier", "signed_message", "warn_insecure"]

_FIELDS = {"public_key", "signature"}
_HARDWARE = "none: a software key on the host signed this evidence"
_NOTES = (
    "INSECURE development evidence: whoever controls the host can say anything. Level none.",
    "No measured boot, no TPM and no TEE took part.",
)


class InsecureAttestationWarning(UserWarning):
    """Development attestation is in use. Never filter this away outside tests and demos."""


def warn_insecure(what: str) -> None:
    """Say it plainly, at the place that built the double."""
    text = f"INSECURE: {what} is a development double. It proves nothing about the machine; never give it real data."
    warnings.warn(text, InsecureAttestationWarning, stacklevel=3)


def signed_message(report: bytes) -> bytes:
    """What the development key signs; the label keeps the key from being used for anything else."""
    return frame("cloister/insecure-report/v1", report)


class InsecureVerifier:
    """Guaranteed: a key that the claims name signed this report and event log. *Not* guaranteed: anything else."""

    tee = "insecure"

    def __init__(self) -> None:
        warn_insecure("the insecure verifier")

    def verify(self, evidence: Evidence, report: bytes, *, now: int) -> Claims:
        """See ``ports.Verifier``. ``now`` is unused: no certificate takes part."""
        del now
        if evidence.tee != self.tee:
            raise Untrusted("insecure.tee", "The evidence is of another platform.")
        if len(report) != 32:
            raise Malformed("insecure.report-size", "A report has exactly 32 bytes.")
        if set(evidence.primary) != _FIELDS:
            raise Malformed("insecure.form", "The development evidence does not have exactly the expected fields.")
        public = _decode(evidence.primary["public_key"], 32)
        signature = _decode(evidence.primary["signature"], 64)
        verify_ed25519(public, signed_message(report), signature)
        log = open_log(evidence.additional)
        return Claims(
            tee="insecure",
            level="none",
            attester=sha256(public).hex(),
            measurement=log.launch["measurement"],
            agent=log.agent["measurement"],
            instance=log.launch["instance"],
            contract=log.launch["contract"],
            job=log.launch["job"],
            hardware=_HARDWARE,
            notes=_NOTES,
        )


def _decode(text: Any, size: int) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise Malformed("insecure.base64", "A field of the development evidence is not base64.") from None
    if len(raw) != size or base64.b64encode(raw).decode() != text:
        raise Malformed("insecure.base64", f"A field of the development evidence does not have {size} bytes.")
    return raw
