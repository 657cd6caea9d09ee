"""Credential activation, the owner's half: a secret that comes out only where both keys are in one TPM.

TPM 2.0 Library Part 1 §24: TPM2_ActivateCredential decrypts with the endorsement key and answers only if the key whose
name is inside is loaded in the same TPM. So whoever answers has the attestation key in the TPM that the endorsement
certificate is for. The name covers the attestation key's attributes: restricted, and fixed to its TPM.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...crypto.tpm_credential import make_credential
from .ek import EndorsementKey

__all__ = ["Credential", "protect"]


@dataclass(frozen=True)
class Credential:
    """The contents of TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET."""

    identity: bytes
    secret: bytes


def protect(key: EndorsementKey, ak_name: bytes, secret: bytes) -> Credential:
    """``secret`` (at most 32 bytes) for the TPM that holds ``key`` and the attestation key called ``ak_name``."""
    identity, encrypted = make_credential(
        key.der(),
        hash_name=key.template.hash_name,
        symmetric_bits=key.template.symmetric_bits,
        name=ak_name,
        secret=secret,
    )
    return Credential(identity, encrypted)
