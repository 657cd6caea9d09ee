"""Devices beside the processor: what is handed to a sandbox, and what they say of themselves in its evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ..attestation.binding import device_data
from ..crypto import canonical_json, parse_canonical

__all__ = ["DeviceAttester", "Devices", "beside"]


class DeviceAttester(Protocol):
    """Makes evidence of one kind of device. All methods may be called from any thread."""

    kind: str
    """The member of the additional evidence that the verifier of this kind reads; see ``ports.DeviceVerifier``."""

    @property
    def gpus(self) -> int:
        """How many GPUs a sandbox gets of it."""
        ...

    def check(self) -> None:
        """Return only if the devices may be handed out now. Raises Denied for a rule, Unavailable otherwise."""
        ...

    def evidence(self, device: bytes) -> Any:
        """What all of them sign over ``device`` (32 bytes, ``binding.device_data``), as JSON. Never of some of them."""
        ...


class Devices:
    """The devices of one node; none unless some are given. A sandbox gets all of them."""

    def __init__(self, attesters: Sequence[DeviceAttester] = ()) -> None:
        self._attesters = tuple(attesters)

    def hand_out(self) -> int:
        """How many GPUs the next sandbox gets, for its launch event. Raises as ``DeviceAttester.check``."""
        for attester in self._attesters:
            attester.check()
        return sum(attester.gpus for attester in self._attesters)

    def evidence(self, nonce: str, tee_pubkey: Mapping[str, Any]) -> dict[str, Any]:
        """By kind. It takes a moment for each device, so it is collected before anything is locked: what devices sign
        depends on challenge and key alone. Raises Malformed for a bad nonce or key, and as ``DeviceAttester``."""
        if not self._attesters:
            return {}
        device = device_data(nonce, tee_pubkey)
        return {attester.kind: attester.evidence(device) for attester in self._attesters}


def beside(additional: str, found: Mapping[str, Any]) -> str:
    """Additional evidence with what the devices say beside the event log; the processor's report covers all of it."""
    return canonical_json({**parse_canonical(additional.encode()), **found}).decode() if found else additional
