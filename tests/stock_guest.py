"""A guest that speaks KBS as published, on a platform of Python: what its hardware signs is simply written down.

The judge believes it. What is tested with them is everything after a platform's own verification.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cloister.attestation.guests import Guest
from cloister.attestation.models import Device, guest_digest
from cloister.broker.release import KeyReleases
from cloister.broker.stock import StockGuests
from cloister.contracts import Contract, Job
from cloister.crypto import JweKey, canonical_json
from cloister.errors import Untrusted
from tests.broker_world import World

LAUNCH = "5a" * 48
AGENT = guest_digest("snp", {"launch": LAUNCH})
ATTESTER = "a7" * 32


class Judge:
    tee = "snp"

    def judge(self, primary: Any, report: bytes, *, now: int) -> Guest:
        if primary["report_data"] != report.hex() + "00" * 32:
            raise Untrusted("snp.report", "The report was made for another challenge, workload key or event log.")
        measurements = {"launch": primary["launch"], "host_data": primary["host_data"]}
        device = Device("cpu0", "snp", measurements=measurements)
        return Guest("none", ATTESTER, guest_digest("snp", {"launch": measurements["launch"]}), device)


def allow(world: World, allows: Callable[[Contract], bool] = lambda _: True) -> None:
    """Hospital's broker serves stock guests from now on."""
    broker = world.hospital.broker
    stock = StockGuests(broker.core, {"snp": Judge()}, allows)
    broker.releases = KeyReleases(broker.core, broker.sessions, world.hospital.judges, stock)


def stock_contract(world: World, **changes: Any) -> Contract:
    """A contract that names the guest: the whole of it is the workload."""
    platform = {
        **world.contract_fields()["platform"],
        "agents": [AGENT],
        "attesters": [ATTESTER],
        "measurements": [AGENT],
    }
    return world.sign(world.contract_fields(**{"name": "stock", "platform": platform, **changes}))


@dataclass
class StockGuest:
    """One start of a guest with its init-data."""

    job: Job
    jwe: JweKey = field(default_factory=JweKey)
    launch: str = LAUNCH
    entries: dict[str, str] = field(default_factory=dict)

    def init_data(self) -> str:
        data = {"cloister.job": self.job.envelope.to_bytes().decode(), **self.entries}
        return json.dumps({"algorithm": "sha256", "version": "0.1.0", "data": data})

    def request(self, **changes: Any) -> dict[str, Any]:
        hashes = {"supported-hash-algorithms": ["sha256", "sha384", "sha512"]}
        return {"extra-params": hashes, "tee": "snp", "version": "0.4.0", **changes}

    def attestation(self, nonce: str, *, init_data: str | None = None, **primary: Any) -> dict[str, Any]:
        shown = self.init_data() if init_data is None else init_data
        key = self.jwe.public_jwk
        runtime = {"additional-evidence": "", "nonce": nonce, "tee-pubkey": key}
        evidence = {
            "report_data": hashlib.sha256(canonical_json(runtime)).hexdigest() + "00" * 32,
            "host_data": hashlib.sha256(self.init_data().encode()).hexdigest(),
            "launch": self.launch,
            **primary,
        }
        return {
            "init-data": {"format": "json", "body": shown},
            "runtime-data": {"nonce": nonce, "tee-pubkey": key},
            "tee-evidence": {"primary_evidence": evidence, "additional_evidence": ""},
        }
