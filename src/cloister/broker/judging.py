"""Who judges evidence for this broker: platforms' verifiers over the owner's collateral, enrolments and pins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ..attestation import Claims, DeviceVerifier, Evidence, Verifier
from ..attestation.collateral import Collateral, Staleness
from ..attestation.composite import verify_evidence
from ..attestation.external import PinnedVerifier
from ..attestation.guests import GuestJudge
from ..attestation.registry import device_verifiers, guest_judges, verifiers
from ..attestation.tpm import Enrolment
from ..crypto import parse_json
from ..errors import Malformed, Misuse
from .config import Settings

__all__ = ["Judges", "guest_judges_of", "judges_of", "read_pins"]

_MAX_PINS: Final = 64 * 1024


@dataclass(frozen=True)
class Judges:
    """Verifiers of processors by platform, and of devices beside them by kind."""

    platforms: Mapping[str, Verifier]
    devices: Mapping[str, DeviceVerifier] = field(default_factory=dict)

    def check_platform(self, tee: str) -> None:
        """Denied for a platform that nobody here can judge."""
        self.platforms[tee]

    def verify(self, evidence: Evidence, report: bytes, device: bytes, *, now: int) -> Claims:
        """What was proven; see ``attestation.composite``."""
        return verify_evidence(self.platforms, self.devices, evidence, report, device, now=now)


def judges_of(settings: Settings, collateral: Collateral, enrolments: Mapping[str, Enrolment]) -> Judges:
    """The judges for these settings. ``collateral`` and ``enrolments`` are asked anew each time. Raises Misuse."""
    insecure, staleness = settings.allow_insecure_attester, Staleness(grace=settings.collateral_grace)
    platforms = verifiers(
        allow_insecure=insecure,
        production=not insecure,
        collateral=collateral,
        staleness=staleness,
        enrolments=enrolments,
        external=() if settings.external_verifiers is None else read_pins(settings.external_verifiers),
    )
    return Judges(platforms, device_verifiers(collateral, staleness))


def guest_judges_of(settings: Settings, collateral: Collateral) -> dict[str, GuestJudge]:
    """Who judges guests without a launch log; nobody unless the owner switched such guests on."""
    return guest_judges(collateral, Staleness(grace=settings.collateral_grace)) if settings.stock_guests else {}


def read_pins(path: Path) -> list[PinnedVerifier]:
    """The external verifiers whose word the owner takes, from a JSON list. Raises Misuse or Malformed."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_PINS + 1)
    except OSError as error:
        raise Misuse("ear.pins", f"The file of pinned verifiers can't be read: {error.strerror}.") from None
    body = parse_json(data, limit=_MAX_PINS)
    if not isinstance(body, list) or not body:
        raise Malformed("ear.pins", "The file of pinned verifiers is not a JSON list of at least one.")
    return [PinnedVerifier.from_wire(entry) for entry in body]
