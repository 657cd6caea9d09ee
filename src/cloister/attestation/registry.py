"""Which verifiers a broker has. The only place that decides about the development doubles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NoReturn

from ..errors import Denied
from .collateral import Collateral, CollateralSet, Staleness
from .external import ExternalVerifier, PinnedVerifier
from .guests import GuestJudge
from .nvidia import NvidiaVerifier
from .ports import DeviceVerifier, Verifier
from .snp import SnpGuestJudge, SnpVerifier
from .tdx import TdxGuestJudge, TdxVerifier
from .tpm import Enrolment, TpmVerifier
from .tpm.azure import AzureSnpVerifier, AzureTdxVerifier

__all__ = ["VerifierSet", "device_verifiers", "guest_judges", "verifiers"]

_INSECURE = "insecure"
_NOTHING = CollateralSet()
_STRICT = Staleness()
_NOBODY: Mapping[str, Enrolment] = MappingProxyType({})


class VerifierSet(dict[str, Verifier]):
    """Verifiers by platform. Asking for one that isn't here raises Denied, so a forgotten check can't pass."""

    def __missing__(self, tee: str) -> NoReturn:
        if tee == _INSECURE:
            raise Denied("attestation.insecure", "Development evidence is not accepted here; use a node with a TPM.")
        raise Denied("attestation.tee", "There is no verifier for the platform that the evidence names.")


def verifiers(
    *,
    allow_insecure: bool,
    production: bool,
    collateral: Collateral = _NOTHING,
    staleness: Staleness = _STRICT,
    enrolments: Mapping[str, Enrolment] = _NOBODY,
    external: Sequence[PinnedVerifier] = (),
) -> VerifierSet:
    """The verifiers for this configuration.

    ``collateral`` and ``enrolments`` are looked at anew by every verification, ``external`` are the verifiers whose
    word the owner takes. ``allow_insecure`` adds the development verifier and is refused (Denied
    ``attestation.insecure``) when ``production`` is set. Without it the package ``attestation.insecure`` isn't even
    imported.
    """
    if allow_insecure and production:
        raise Denied(
            "attestation.insecure", "A production broker can't load development attestation; remove allow_insecure."
        )
    judges: list[Verifier] = [
        TpmVerifier(enrolments),
        SnpVerifier(collateral, staleness),
        TdxVerifier(collateral, staleness),
        AzureSnpVerifier(collateral, staleness),
        AzureTdxVerifier(collateral, staleness),
    ]
    if external:
        judges.append(ExternalVerifier(external))
    if allow_insecure:
        # Imported here and nowhere else: code that isn't loaded can't be reached by a mistake elsewhere.
        from .insecure import InsecureVerifier

        judges.append(InsecureVerifier())
    return VerifierSet({judge.tee: judge for judge in judges})


def device_verifiers(collateral: Collateral = _NOTHING, staleness: Staleness = _STRICT) -> dict[str, DeviceVerifier]:
    """The verifiers of what stands beside a processor, by kind."""
    nvidia = NvidiaVerifier(collateral, staleness)
    return {nvidia.kind: nvidia}


def guest_judges(collateral: Collateral = _NOTHING, staleness: Staleness = _STRICT) -> dict[str, GuestJudge]:
    """Who judges guests without a launch log of ours, by platform. There is no development double among them."""
    judges: list[GuestJudge] = [SnpGuestJudge(collateral, staleness), TdxGuestJudge(collateral, staleness)]
    return {judge.tee: judge for judge in judges}
