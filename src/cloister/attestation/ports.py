"""What each platform brings: a verifier on the owner's side, an attester on the node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from .models import Claims, Device, Evidence

__all__ = ["Attester", "DeviceVerifier", "Verifier"]


class Verifier(Protocol):
    """Turns evidence of one platform into claims."""

    tee: str

    def verify(self, evidence: Evidence, report: bytes, *, now: int) -> Claims:
        """Check that the evidence is authentic, and fresh and bound through ``report``.

        ``report`` is ``binding.report_data`` over the verifier's own nonce, the workload's key and the additional
        evidence as received (32 bytes). ``now`` is in seconds since 1970, for certificates. Returns what was
        proven; whether that is *enough* is ``appraise``'s question. Raises Malformed for bytes that break the
        strict form, Untrusted where a signature, digest or binding does not hold. It never returns partial claims.
        """
        ...


class DeviceVerifier(Protocol):
    """Turns what further devices say, GPUs for one, into devices. It knows nothing of workloads: see ``composite``."""

    kind: str
    """The member of the additional evidence's JSON object that it reads."""

    def verify(self, evidence: Any, device: bytes, *, now: int) -> tuple[Device, ...]:
        """Check that the devices' evidence is authentic, and that each signed ``device`` (``binding.device_data``, 32
        bytes) as its nonce. Raises as ``Verifier.verify``; it never returns some of the devices."""
        ...


class Attester(Protocol):
    """Makes evidence for the sandboxes of one node. All methods may be called from any thread."""

    tee: str

    @property
    def attester_id(self) -> str:
        """64 hex digits that name this attester for good, across restarts."""
        ...

    def extend_launch(
        self, instance: bytes, measurement: bytes, contract: bytes, job: bytes, *, exclusive: bool = False
    ) -> None:
        """Record, before the sandbox starts, what ``instance`` (16 bytes) is. Denied if the id was used before, or if
        something runs beside a sandbox that must be alone (``exclusive``)."""
        ...

    def evidence(self, instance: bytes, nonce: str, tee_pubkey: Mapping[str, Any]) -> dict[str, Any]:
        """Evidence in wire form for the sandbox that asked. Denied for an instance that isn't running."""
        ...

    def retire(self, instance: bytes) -> None:
        """The sandbox ended: no more evidence for it. Its event stays in the log."""
        ...

    def close(self) -> None:
        """Give back what the attester holds."""
        ...
