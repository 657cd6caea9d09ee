"""Which verifiers a broker has. The only place that decides about the development doubles."""

from __future__ import annotations

from typing import NoReturn

from ..errors import Denied
from .ports import Verifier
from .tpm import TpmVerifier

__all__ = ["VerifierSet", "verifiers"]

_INSECURE = "insecure"


class VerifierSet(dict[str, Verifier]):
    """Verifiers by platform. Asking for one that isn't here raises Denied, so a forgotten check can't pass."""

    def __missing__(self, tee: str) -> NoReturn:
        if tee == _INSECURE:
            raise Denied("attestation.insecure", "Development evidence is not accepted here; use a node with a TPM.")
        raise Denied("attestation.tee", "There is no verifier for the platform that the evidence names.")


def verifiers(*, allow_insecure: bool, production: bool) -> VerifierSet:
    """The verifiers for this configuration.

    ``allow_insecure`` adds the development verifier and is refused (Denied ``attestation.insecure``) when
    ``production`` is set. Without it the package ``attestation.insecure`` isn't even imported.
    """
    if allow_insecure and production:
        raise Denied(
            "attestation.insecure", "A production broker can't load development attestation; remove allow_insecure."
        )
    found = VerifierSet({TpmVerifier.tee: TpmVerifier()})
    if allow_insecure:
        # Imported here and nowhere else: code that isn't loaded can't be reached by a mistake elsewhere.
        from .insecure import InsecureVerifier

        found[InsecureVerifier.tee] = InsecureVerifier()
    return found
