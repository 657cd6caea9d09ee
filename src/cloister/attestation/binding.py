"""The one place where evidence is bound to one key release (PROTOCOL §1).

Broker and workload each build a ``Binding`` from what they know themselves and compare ``ctx``. Since the
nonce ends in ``ctx`` and the hardware signs a hash over the nonce, evidence made for one purpose, broker,
contract, job, instance, key pair or lease can't be used for another.

Sizes are exact. Nothing is ever padded or cut: a value of another size raises Malformed.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..crypto import canonical_json, constant_time_equal, frame, sha256
from ..errors import Malformed, Untrusted
from .models import MAX_ADDITIONAL

__all__ = [
    "MAX_ADDITIONAL",
    "MAX_NONCE",
    "MAX_TEE_PUBKEY",
    "MIN_NONCE",
    "PURPOSES",
    "Binding",
    "check_nonce",
    "device_data",
    "make_nonce",
    "report_data",
]

PURPOSES = frozenset({"release", "renew", "resume"})
MIN_NONCE = 16
"""Characters. Fewer than 12 random bytes in base64 could repeat within one broker's life."""
MAX_NONCE = 256
MAX_TEE_PUBKEY = 4096
"""Bytes of the JWK in canonical form; an RSA-4096 JWK has about 750."""

_LABEL = "cloister/attest/v1"
_RANDOM = 32
_SIZES = {
    "broker_pin": 32,
    "contract": 32,
    "job": 32,
    "instance": 16,
    "hpke_public": 1184 + 32,  # ML-KEM-768 ‖ X25519, see crypto.hpke
    "signing_public": 32,
}


@dataclass(frozen=True)
class Binding:
    """Everything that one attestation is for.

    ``purpose``: release, renew or resume. ``broker_pin``: SHA-256 of the broker's TLS public key (32 bytes).
    ``contract``, ``job``: document digests (32). ``instance``: the workload instance (16). ``hpke_public``:
    the workload's hybrid key (1,216). ``signing_public``: its Ed25519 key (32). ``lease_sequence``: 0 to 2**64-1.
    Raises Malformed for any other size, type or purpose.
    """

    purpose: str
    broker_pin: bytes
    contract: bytes
    job: bytes
    instance: bytes
    hpke_public: bytes
    signing_public: bytes
    lease_sequence: int

    def __post_init__(self) -> None:
        if self.purpose not in PURPOSES:
            raise Malformed("binding.purpose", "An attestation is for release, renew or resume; name one of them.")
        for field, size in _SIZES.items():
            value = getattr(self, field)
            if not isinstance(value, bytes) or len(value) != size:
                raise Malformed("binding.size", f"The {field} of an attestation must have exactly {size} bytes.")
        sequence: Any = self.lease_sequence
        if isinstance(sequence, bool) or not isinstance(sequence, int) or not 0 <= sequence < 2**64:
            raise Malformed("binding.sequence", "The lease sequence must be a whole number below 2^64.")

    def ctx(self) -> bytes:
        """32 bytes: the hash over all fields, framed, in this order; the HPKE key enters by its hash."""
        return sha256(
            frame(
                _LABEL,
                self.purpose,
                self.broker_pin,
                self.contract,
                self.job,
                self.instance,
                sha256(self.hpke_public),
                self.signing_public,
                self.lease_sequence,
            )
        )


def make_nonce(ctx: bytes, random32: bytes) -> str:
    """base64(random (32) ‖ ctx (32)): 88 characters. The caller brings the randomness, so that this stays pure."""
    if len(ctx) != 32 or len(random32) != _RANDOM:
        raise Malformed("binding.size", "A nonce is made of exactly 32 random bytes and a 32-byte context.")
    return base64.b64encode(random32 + ctx).decode()


def check_nonce(nonce: str, ctx: bytes) -> None:
    """Return if ``nonce`` commits to ``ctx``. Raises Malformed if it is no Cloister nonce, Untrusted if it commits
    to something else: then broker and workload disagree about what this attestation is for."""
    if not isinstance(nonce, str) or len(nonce) > MAX_NONCE:
        raise Malformed("binding.nonce-form", "The challenge is not a nonce of this protocol.")
    try:
        raw = base64.b64decode(nonce, validate=True)
    except (ValueError, binascii.Error):
        raise Malformed("binding.nonce-form", "The challenge is not a nonce of this protocol.") from None
    # b64encode again: Python's decoder ignores stray bits before the padding, so two texts could decode alike.
    if len(raw) != _RANDOM + 32 or base64.b64encode(raw).decode() != nonce:
        raise Malformed("binding.nonce-form", "The challenge is not a nonce of this protocol.")
    if not constant_time_equal(raw[_RANDOM:], ctx):
        raise Untrusted("binding.nonce", "The challenge was made for another purpose, job, key or broker.")


def device_data(nonce: str, tee_pubkey: Mapping[str, Any]) -> bytes:
    """H(JCS({nonce, tee-pubkey})), 32 bytes: what a device such as a GPU reports as its nonce."""
    _check_nonce_text(nonce)
    return sha256(canonical_json({"nonce": nonce, "tee-pubkey": _checked_key(tee_pubkey)}))


def report_data(nonce: str, tee_pubkey: Mapping[str, Any], additional_evidence: str) -> bytes:
    """H(JCS({nonce, tee-pubkey, additional-evidence})), 32 bytes: what the platform signs.

    TPM qualifying data is exactly these 32 bytes. Raises Malformed beyond the limits of this module.
    """
    _check_nonce_text(nonce)
    if not isinstance(additional_evidence, str) or len(additional_evidence) > MAX_ADDITIONAL:
        raise Malformed("binding.additional", f"Additional evidence is text of at most {MAX_ADDITIONAL} characters.")
    body = {"additional-evidence": additional_evidence, "nonce": nonce, "tee-pubkey": _checked_key(tee_pubkey)}
    return sha256(canonical_json(body))


def _check_nonce_text(nonce: str) -> None:
    if not isinstance(nonce, str) or not nonce.isascii() or not MIN_NONCE <= len(nonce) <= MAX_NONCE:
        raise Malformed("binding.nonce-size", f"A nonce is ASCII text of {MIN_NONCE} to {MAX_NONCE} characters.")


def _checked_key(tee_pubkey: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(tee_pubkey, Mapping) or not tee_pubkey:
        raise Malformed("binding.tee-pubkey", "The workload's key must be a JWK object.")
    key = dict(tee_pubkey)
    if len(canonical_json(key)) > MAX_TEE_PUBKEY:
        raise Malformed("binding.tee-pubkey", f"The workload's key is longer than {MAX_TEE_PUBKEY} bytes.")
    return key
