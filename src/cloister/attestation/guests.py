"""Guests whose node agent keeps no launch log for us: what their evidence alone proves, and who judges it.

Such evidence names no sandbox, no contract and no job. Whoever takes it must bind those in another way, such as by the
init-data that the hardware was started with, and must want the whole guest to be the workload.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

from ..crypto import canonical_json
from ..errors import Malformed
from .binding import MAX_ADDITIONAL, MAX_TEE_PUBKEY
from .models import Device, Level

__all__ = ["HASHES", "MAX_STOCK_NONCE", "Guest", "GuestJudge", "StockAttester", "stock_report_data"]

HASHES: Final = ("sha256", "sha384", "sha512")
"""What KBS's servers may select for the runtime data."""
MAX_STOCK_NONCE: Final = 4096
"""Characters of a nonce of somebody else's key broker."""


@dataclass(frozen=True)
class Guest:
    """What evidence without a launch log proves. ``agent``: the digest of the guest's launch measurements, hex."""

    level: Level
    attester: str
    agent: str
    device: Device


class GuestJudge(Protocol):
    """What a platform brings for guests without a launch log of ours."""

    tee: str

    def judge(self, primary: object, report: bytes, *, now: int) -> Guest:
        """Check that the evidence is authentic, and fresh and bound through ``report`` (32 bytes, then zeros to the
        platform's size). ``primary`` is what the guest's own attester wrote, as parsed JSON. Raises as
        ``ports.Verifier.verify``."""
        ...


@runtime_checkable
class StockAttester(Protocol):
    """What an attester of ours brings beside ``ports.Attester`` where it can face a stock attestation service.

    Such a service knows no launch log: the evidence is about the whole guest, this node's agent and what it launches,
    and not about the sandbox that asked. So it must never be taken for evidence about that one.
    """

    stock_tee: str
    """KBS's name of the platform."""

    def stock_evidence(self, nonce: str, tee_pubkey: Mapping[str, Any], algorithm: str) -> dict[str, Any]:
        """``{"tee", "primary_evidence", "additional_evidence"}`` as stock guests write it. The attester hashes the
        runtime data itself (``stock_report_data``): whoever asks could otherwise have any launch log signed."""
        ...


def stock_report_data(nonce: str, tee_pubkey: Mapping[str, Any], additional: str, algorithm: str) -> bytes:
    """What a stock guest has its hardware sign: the hash over the runtime data (RFC 8785), 32, 48 or 64 bytes.

    Source: confidential-containers/guest-components, ``attestation-agent/kbs_protocol``. Raises Malformed beyond the
    limits of this module and of ``binding``.
    """
    if algorithm not in HASHES:
        raise Malformed("binding.hash", "The runtime data is hashed with sha256, sha384 or sha512.")
    if not isinstance(nonce, str) or not 0 < len(nonce) <= MAX_STOCK_NONCE:
        raise Malformed("binding.nonce-size", f"A key broker's nonce is text of at most {MAX_STOCK_NONCE} characters.")
    if not isinstance(additional, str) or len(additional) > MAX_ADDITIONAL:
        raise Malformed("binding.additional", f"Additional evidence is text of at most {MAX_ADDITIONAL} characters.")
    key = canonical_json(dict(tee_pubkey))
    if len(key) > MAX_TEE_PUBKEY:
        raise Malformed("binding.tee-pubkey", f"The workload's key is longer than {MAX_TEE_PUBKEY} bytes.")
    body = {"additional-evidence": additional, "nonce": nonce, "tee-pubkey": dict(tee_pubkey)}
    return hashlib.new(algorithm, canonical_json(body)).digest()
