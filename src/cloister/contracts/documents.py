"""The other signed documents: status statements, revocations, jobs, output permits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..crypto import Envelope, Signer, parse_canonical, sign_document
from ..errors import Denied, Malformed, Untrusted
from ..fields import Fields
from .contract import Contract
from .recipe import Recipe

__all__ = [
    "JOB_TYPE",
    "PERMIT_TYPE",
    "REVOCATION_TYPE",
    "STATUS_TYPE",
    "Job",
    "Permit",
    "check_statement",
    "in_force_statement",
    "job_envelope",
    "permit_envelope",
    "read_job",
    "read_permit",
    "read_revocation",
    "revocation_envelope",
]

STATUS_TYPE = "application/vnd.cloister.status+json"
REVOCATION_TYPE = "application/vnd.cloister.revocation+json"
JOB_TYPE = "application/vnd.cloister.job+json"
PERMIT_TYPE = "application/vnd.cloister.permit+json"
_SHORT = 1024  # bytes; a statement has about 200
_CLOCK_SKEW = 5  # seconds by which a statement may come from the future


def in_force_statement(contract: Contract, party: str, key: Signer, *, now: int) -> Envelope:
    """One party's word that the contract is in force for it, good for one lease."""
    body = {"contract": contract.digest.hex(), "issued": now, "party": party, "type": "in-force/v1"}
    return sign_document(STATUS_TYPE, body, key)


def check_statement(envelope: Envelope, contract: Contract, *, now: int) -> str:
    """The party whose fresh in-force statement this is. Raises Malformed, Untrusted or Denied.

    A statement lives for one lease, so that a party that stops answering, or is being silenced, stops
    every release within one lease: silence never reads as consent.
    """
    party, digest, issued = _read_statement(envelope.payload)
    keys = contract.parties.get(party)
    if keys is None or digest != contract.digest:
        raise Untrusted("status.other", "A status statement speaks of another contract or party.")
    envelope.verify_sole(STATUS_TYPE, [keys.status])
    if not now - contract.lease_seconds <= issued <= now + _CLOCK_SKEW:
        raise Denied("status.stale", f"The in-force statement of {party} is older than one lease.", party=party)
    return party


def _read_statement(payload: bytes) -> tuple[str, bytes, int]:
    """(party, contract's digest, issued). A release looks at each of its statements three times, so small ones are
    remembered as they were read; who signed them, and when they are stale, is another matter."""
    return _statement_of(payload) if len(payload) <= _SHORT else _statement_of.__wrapped__(payload)


@lru_cache(maxsize=256)
def _statement_of(payload: bytes) -> tuple[str, bytes, int]:
    f = Fields(parse_canonical(payload), "status statement")
    f.text("type", choices=("in-force/v1",))
    found = f.party("party"), f.hex("contract", 32), f.integer("issued")
    f.done()
    return found


def revocation_envelope(contract_digest: bytes, party: str, key: Signer, *, now: int, reason: str) -> Envelope:
    """One party's word that the contract is over. It can't be taken back: sign a new serial instead."""
    body = {
        "contract": contract_digest.hex(),
        "issued": now,
        "party": party,
        "reason": reason,
        "type": "revocation/v1",
    }
    return sign_document(REVOCATION_TYPE, body, key)


def read_revocation(envelope: Envelope, contract: Contract) -> tuple[str, str]:
    """(party, reason) of a genuine revocation of ``contract``; raises Untrusted otherwise."""
    f = Fields(envelope.document(), "revocation")
    f.text("type", choices=("revocation/v1",))
    f.integer("issued")
    party, digest, reason = f.party("party"), f.hex("contract", 32), f.text("reason", limit=500)
    f.done()
    keys = contract.parties.get(party)
    if keys is None or digest != contract.digest:
        raise Untrusted("revocation.other", "A revocation speaks of another contract or party.")
    envelope.verify(REVOCATION_TYPE, [keys.signing, keys.status])
    return party, reason


@dataclass(frozen=True)
class Job:
    """A run that a party asks for. ``digest`` names it in evidence, leases, keys and outputs. ``general``: None where
    the recipe names no such asset."""

    contract: bytes
    submitter: str
    recipe: Recipe
    data: bytes
    base: bytes
    output: str
    created: int
    envelope: Envelope
    general: bytes | None = None

    @property
    def digest(self) -> bytes:
        return self.envelope.digest

    @property
    def assets(self) -> tuple[bytes, ...]:
        """Digests of every asset that the run opens: data, base, and general text where there is some."""
        return (self.data, self.base) if self.general is None else (self.data, self.base, self.general)


def job_envelope(
    contract: Contract, submitter: str, recipe: Recipe, output: str, key: Signer, *, now: int, salt: bytes
) -> Envelope:
    """Sign a job. Asset names in the recipe become the digests that the contract fixed for them."""
    by_name = {asset.name: asset for asset in contract.assets}
    for name in (recipe.data, recipe.base, recipe.general):
        if name is not None and name not in by_name:
            raise Denied(
                "contract.asset", f"The contract does not name the asset {name}; it names {', '.join(by_name)}."
            )
    body: dict[str, Any] = {
        "base": by_name[recipe.base].digest.hex(),
        "contract": contract.digest.hex(),
        "created": now,
        "data": by_name[recipe.data].digest.hex(),
        "output": output,
        "recipe": recipe.to_document(),
        "salt": salt.hex(),  # two runs of one recipe are two jobs
        "submitter": submitter,
        "type": "job/v1",
    }
    if recipe.general is not None:
        body["general"] = by_name[recipe.general].digest.hex()
    return sign_document(JOB_TYPE, body, key)


def read_job(envelope: Envelope, contract: Contract) -> Job:
    """Parse a job of ``contract`` and check its submitter's signature. Raises Malformed or Untrusted."""
    document = envelope.document()
    f = Fields(document, "job")
    f.text("type", choices=("job/v1",))
    f.hex("salt", 16)
    job = Job(
        contract=f.hex("contract", 32),
        submitter=f.party("submitter"),
        recipe=Recipe.from_document(f.raw("recipe")),
        data=f.hex("data", 32),
        base=f.hex("base", 32),
        output=f.asset("output"),
        created=f.integer("created"),
        envelope=envelope,
        # Absent where the recipe names none; what is there is never null, so that nothing has two spellings.
        general=f.hex("general", 32) if "general" in document else None,
    )
    f.done()
    keys = contract.parties.get(job.submitter)
    if job.contract != contract.digest or keys is None:
        raise Untrusted(
            "job.contract", "The job belongs to another contract, or its submitter is no party to this one."
        )
    envelope.verify_sole(JOB_TYPE, [keys.signing])
    return job


@dataclass(frozen=True)
class Permit:
    """One owner's logged consent that one output leaves."""

    owner: str
    contract: bytes
    job: bytes
    output: bytes
    instance: bytes
    issued: int
    envelope: Envelope


def permit_envelope(
    owner: str, contract: bytes, job: bytes, output: bytes, instance: bytes, key: Signer, *, now: int
) -> Envelope:
    """``output`` is the digest of the output's manifest."""
    body = {
        "contract": contract.hex(),
        "instance": instance.hex(),
        "issued": now,
        "job": job.hex(),
        "output": output.hex(),
        "owner": owner,
        "type": "permit/v1",
    }
    return sign_document(PERMIT_TYPE, body, key)


def read_permit(envelope: Envelope, contract: Contract) -> Permit:
    """A genuine permit by an owner under ``contract``; raises Untrusted or Malformed otherwise."""
    f = Fields(envelope.document(), "permit")
    f.text("type", choices=("permit/v1",))
    permit = Permit(
        owner=f.party("owner"),
        contract=f.hex("contract", 32),
        job=f.hex("job", 32),
        output=f.hex("output", 32),
        instance=f.hex("instance", 16),
        issued=f.integer("issued"),
        envelope=envelope,
    )
    f.done()
    if permit.owner not in contract.owners() or permit.contract != contract.digest:
        raise Malformed("permit.other", "A permit is of another contract or of a party that owns nothing in this one.")
    envelope.verify(PERMIT_TYPE, [contract.parties[permit.owner].receipt])
    return permit
