"""Intel's root, known by its key.

The key is the same in every edition of the certificate ("Intel SGX Root CA", ECDSA P-256, valid to the end of 2049). It
signs the authorities of PCK certificates, the signer of TCB info and QE identities, and the root revocation list; for
SGX and TDX alike. Source: Intel's Provisioning Certification Service, which publishes the certificate.
"""

from __future__ import annotations

from typing import Final

__all__ = ["ROOTS"]

ROOTS: Final = frozenset({"a0af031289f5d5d4132f9186068a7fc13628633ba235777472e29b6b6c67a49e"})
"""SHA-256 of the SubjectPublicKeyInfo of Intel SGX Root CA, hex."""
