"""What the log and the answer say of a release. Pure."""

from __future__ import annotations

from typing import Any

from ..attestation import Claims
from .decision import JobRecord, Lease, Request, Resource

__all__ = ["names_of", "newest_checkpoint", "release_details"]


def names_of(request: Request) -> dict[str, str | int]:
    """Who asks for what, in a log entry's words."""
    return {
        "contract": request.contract.digest.hex(),
        "instance": request.instance.hex(),
        "job": request.job.digest.hex(),
        "purpose": request.purpose,
        "submitter": request.job.submitter,
    }


def release_details(request: Request, claims: Claims, resource: Resource, lease: Lease) -> dict[str, str | int]:
    """The details of ``key.released``."""
    return {
        **names_of(request),
        "attester": claims.attester,
        "level": claims.level,
        "lease_expires": lease.expires,
        "lease_sequence": lease.sequence,
        "measurement": claims.measurement,
        "resource": resource.digest.hex(),
        "resource_kind": resource.kind,
        "signing": request.signing.hex(),
    }


def newest_checkpoint(job: JobRecord | None) -> dict[str, Any] | None:
    """In an answer's form: step and root, or nothing where none is recorded."""
    if job is None or job.checkpoint is None:
        return None
    return {"root": job.checkpoint[1].hex(), "step": job.checkpoint[0]}
