"""The attester of development evidence: the node's event log, signed with a key from a file."""

from __future__ import annotations

import base64
import threading
from collections.abc import Mapping
from typing import Any

from ...crypto import SigningKey, sha256
from ..binding import report_data
from ..events import Journal
from ..guests import stock_report_data
from ..models import Evidence
from .verifier import signed_message, warn_insecure

__all__ = ["InsecureAttester"]


class InsecureAttester:
    """See ``ports.Attester``; it has no hardware. ``agent_measurement`` (32 bytes) is taken on trust."""

    tee = "insecure"
    stock_tee = "sample"

    def __init__(self, key: SigningKey, agent_measurement: bytes) -> None:
        warn_insecure("the insecure attester")
        self._key = key
        self._journal = Journal(agent_measurement)
        self._lock = threading.Lock()

    @property
    def attester_id(self) -> str:
        """SHA-256 of the public key, hex."""
        return sha256(self._key.public).hex()

    def extend_launch(
        self, instance: bytes, measurement: bytes, contract: bytes, job: bytes, *, exclusive: bool = False
    ) -> None:
        """Record a sandbox before it starts."""
        with self._lock:
            self._journal.commit(self._journal.prepare(instance, measurement, contract, job, exclusive=exclusive))

    def evidence(self, instance: bytes, nonce: str, tee_pubkey: Mapping[str, Any]) -> dict[str, Any]:
        """Evidence in wire form. The event log is this attester's own: the asker can't choose it."""
        with self._lock:
            additional = self._journal.additional(instance)
        report = report_data(nonce, tee_pubkey, additional)
        primary = {
            "public_key": base64.b64encode(self._key.public).decode(),
            "signature": base64.b64encode(self._key.sign(signed_message(report))).decode(),
        }
        return Evidence(self.tee, primary, additional).to_wire()

    def stock_evidence(self, nonce: str, tee_pubkey: Mapping[str, Any], algorithm: str) -> dict[str, Any]:
        """Evidence of KBS's platform "sample", which everybody knows to be none."""
        report = stock_report_data(nonce, tee_pubkey, "", algorithm)
        primary = {"report_data": base64.b64encode(report).decode(), "svn": "1"}
        return Evidence(self.stock_tee, primary, "").to_wire()

    def retire(self, instance: bytes) -> None:
        """The sandbox ended."""
        with self._lock:
            self._journal.retire(instance)

    def close(self) -> None:
        """Nothing is held."""
