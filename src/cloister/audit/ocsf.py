"""Which OCSF class and activity each kind of Cloister event is. A table; ``events`` fills in the rest.

Chosen so that a SIEM's ordinary rules work: parties, contracts and assets are managed entities; attestation is how a
workload authenticates; what a broker grants to an attested session (a key, a lease, a permit) is an authorization;
what is recorded or unwrapped for a caller is an API call; a broker's life is an application's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["KINDS", "OCSF_VERSION", "Shape"]

OCSF_VERSION = "1.9.0-dev"

_SERVICE = "cloister-broker"


@dataclass(frozen=True)
class Shape:
    """An OCSF class, its activity, the severity of a success, and the class's own objects for (actor, target)."""

    class_uid: int
    class_name: str
    activity: int
    activity_name: str
    severity: int
    objects: Callable[[str, str], dict[str, Any]]


def _actor(name: str) -> dict[str, Any]:
    return {"user": {"name": name, "type": "Cloister party", "type_id": 99}}


def _entity(type_id: int, type_name: str, activity: int, activity_name: str, severity: int = 1) -> Shape:
    def objects(actor: str, target: str) -> dict[str, Any]:
        return {"actor": _actor(actor), "entity": {"type": type_name, "type_id": type_id, "uid": target}}

    return Shape(3004, "Entity Management", activity, activity_name, severity, objects)


def _authentication() -> Shape:
    def objects(actor: str, target: str) -> dict[str, Any]:
        user = {"type": "Service", "type_id": 4, "uid": target}
        return {"actor": _actor(actor), "service": {"name": _SERVICE}, "user": user}

    return Shape(3002, "Authentication", 1, "Logon", 1, objects)


def _authorization(privilege: str) -> Shape:
    def objects(actor: str, target: str) -> dict[str, Any]:
        user = {"type": "Service", "type_id": 4, "uid": target}
        return {"actor": _actor(actor), "privileges": [privilege], "user": user}

    return Shape(3003, "Authorize Session", 1, "Assign Privileges", 1, objects)


def _api(operation: str, activity: int, activity_name: str) -> Shape:
    def objects(actor: str, target: str) -> dict[str, Any]:
        return {
            "actor": _actor(actor),
            "api": {"operation": operation, "service": {"name": _SERVICE}},
            "resources": [{"uid": target}],
            "src_endpoint": {"name": actor, "svc_name": _SERVICE},
        }

    return Shape(6003, "API Activity", activity, activity_name, 1, objects)


def _lifecycle(activity: int, activity_name: str, severity: int = 1) -> Shape:
    def objects(_: str, target: str) -> dict[str, Any]:
        return {"app": {"name": _SERVICE, "uid": target, "vendor_name": "Cloister"}}

    return Shape(6002, "Application Lifecycle", activity, activity_name, severity, objects)


_ORGANIZATION = (4, "Organization")
_POLICY = (5, "Policy")
_ASSET = (99, "Sealed asset")
_KEK = (99, "Key-encryption key")
_ATTESTER = (99, "Attestation key")

KINDS: dict[str, Shape] = {
    "org.created": _entity(*_ORGANIZATION, 1, "Create"),
    "party.pinned": _entity(*_ORGANIZATION, 6, "Enroll"),
    "party.key_rotated": _entity(*_ORGANIZATION, 3, "Update", 2),
    "party.compromised": _entity(*_ORGANIZATION, 12, "Suspend", 5),
    "asset.sealed": _entity(*_ASSET, 1, "Create"),
    "asset.opened": _entity(*_ASSET, 2, "Read", 2),
    "asset.retained": _entity(*_ASSET, 3, "Update", 2),
    "asset.held": _entity(*_ASSET, 3, "Update", 2),
    "asset.unheld": _entity(*_ASSET, 3, "Update", 2),
    "budget.set": _entity(*_ASSET, 3, "Update", 3),
    "asset.reencrypting": _entity(*_ASSET, 3, "Update"),
    "asset.shredded": _entity(*_ASSET, 4, "Delete", 4),
    "asset.expired": _entity(*_ASSET, 4, "Delete", 3),
    "kek.rotation": _entity(*_KEK, 3, "Update", 2),
    "kek.rewrapped": _entity(*_KEK, 3, "Update"),
    "kek.destroyed": _entity(*_KEK, 4, "Delete", 3),
    "kek.scheduled": _entity(*_KEK, 3, "Update", 2),
    "checkpoints.shredded": _entity(*_KEK, 4, "Delete", 4),
    "vault.split": _entity(*_KEK, 2, "Read", 4),
    "vault.rekeyed": _entity(*_KEK, 3, "Update", 3),
    "vault.swept": _entity(*_KEK, 4, "Delete", 4),
    "contract.signed": _entity(*_POLICY, 8, "Enable"),
    "contract.revoked": _entity(*_POLICY, 9, "Disable", 3),
    "attester.enrolled": _entity(*_ATTESTER, 6, "Enroll", 2),
    "attester.refused": _entity(*_ATTESTER, 6, "Enroll", 3),
    "attester.removed": _entity(*_ATTESTER, 4, "Delete", 3),
    "policy.set": _entity(*_POLICY, 3, "Update", 3),
    "measurement.approved": _entity(*_POLICY, 8, "Enable", 3),
    "measurement.revoked": _entity(*_POLICY, 9, "Disable", 4),
    "release.trusted": _entity(*_POLICY, 1, "Create", 3),
    "release.known": _entity(*_POLICY, 3, "Update"),
    "attest.ok": _authentication(),
    "attest.refused": _authentication(),
    "key.released": _authorization("asset.key"),
    "key.refused": _authorization("asset.key"),
    "lease.renewed": _authorization("lease"),
    "lease.refused": _authorization("lease"),
    "permit.issued": _authorization("output.unwrap"),
    "permit.refused": _authorization("output.unwrap"),
    "checkpoint.recorded": _api("checkpoint.recorded", 3, "Update"),
    "output.unwrapped": _api("output.unwrapped", 2, "Read"),
    "broker.started": _lifecycle(3, "Start"),
    "state.recovered": _lifecycle(5, "Restart", 2),
    "state.migrated": _lifecycle(8, "Update", 2),
}
