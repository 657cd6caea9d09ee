"""Development doubles: an attester and a verifier whose evidence proves nothing about the machine.

A software Ed25519 key on the host signs the report, so whoever controls the host can say anything. The
level is always ``none``. Both classes warn when they are built (``InsecureAttestationWarning``), and a
production configuration can't load this package: see ``attestation.registry``.
"""

from .attester import InsecureAttester
from .verifier import InsecureAttestationWarning, InsecureVerifier

__all__ = ["InsecureAttestationWarning", "InsecureAttester", "InsecureVerifier"]
