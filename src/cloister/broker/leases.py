"""Leases and checkpoint records: how a run goes on, and what it can't go back behind."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ..audit import Receipt
from ..contracts import Contract, check_contract
from ..crypto import Envelope, canonical_json, sign_document
from ..errors import CloisterError, Denied, Internal
from ..fields import Fields
from .core import Core
from .decision import Instance, check_live, decide_checkpoint, decide_renewal
from .knowledge import instance_change, job_change
from .sessions import Sessions
from .state import ENTRY, Change

__all__ = ["CHECKPOINT_TYPE", "LEASE_TYPE", "Leases", "live_run"]

T = TypeVar("T")
LEASE_TYPE = "application/vnd.cloister.lease+json"
CHECKPOINT_TYPE = "application/vnd.cloister.checkpoint+json"


@dataclass(frozen=True)
class _Record:
    """A workload's word: at ``step`` its state has this root (the sealed checkpoint's digest)."""

    contract: bytes
    job: bytes
    instance: bytes
    step: int
    root: bytes

    @classmethod
    def read(cls, envelope: Envelope) -> _Record:
        f = Fields(envelope.document(), "checkpoint record")
        f.text("type", choices=("checkpoint/v1",))
        record = cls(
            f.hex("contract", 32), f.hex("job", 32), f.hex("instance", 16), f.integer("step", low=1), f.hex("root", 32)
        )
        f.done()
        return record


def live_run(core: Core, contract: bytes, job: bytes, instance: bytes) -> tuple[Contract, Instance]:
    """The contract and the instance, if its lease runs and the contract is in force. Call it within a turn.

    Raises Denied for any other instance than the job's newest one, and after its lease's end.
    """
    known = core.knowledge.instance(instance)
    document = core.knowledge.contract(contract)
    if known is None or document is None or (known.contract, known.job) != (contract, job):
        raise Denied("lease.unknown", "This broker gave no lease to this instance of this job.")
    now = core.clock()
    check_live(known, now=now)
    check_contract(document, core.knowledge.contract_state(document), now=now)
    core.herald.check()
    return document, known


class Leases:
    """Renewals by fresh attestation, and checkpoint records by an instance's attested key."""

    def __init__(self, core: Core, sessions: Sessions) -> None:
        self._core = core
        self._sessions = sessions

    def renew(self, cookie: str | None) -> bytes:
        """The next lease, signed with the receipt key, and its receipt; once a session, identical when asked again."""
        session, attested = self._sessions.attested(cookie, now=self._core.clock())
        request = session.request

        def make() -> bytes:
            core = self._core
            with core.ledger.turn():
                core.herald.check()
                standing = core.knowledge.standing(request.contract, request.job.digest, request.instance)
                now = core.clock()
                lease = decide_renewal(request, attested.claims, standing, now=now)
                renewed = replace(_known(standing.instance), lease=lease)
                receipt = core.ledger.commit(
                    "lease.renewed",
                    target=request.instance.hex(),
                    details={**_names(renewed), "expires": lease.expires, "sequence": lease.sequence},
                    changes=[instance_change(renewed)],
                )
            return canonical_json({"lease": self._signed(renewed, lease.expires - now), "receipt": receipt.to_wire()})

        try:
            return session.once("lease", make, limit=self._core.limits.answers)
        except CloisterError as refusal:
            details = {"contract": request.contract.digest.hex(), "job": request.job.digest.hex()}
            about = (request.contract.digest, "lease")
            target = request.instance.hex()
            self._core.ledger.refuse("lease.refused", refusal, target=target, details=details, about=about)
            raise

    def _signed(self, instance: Instance, seconds: int) -> str:
        body = {
            "contract": instance.contract.hex(),
            "expires": instance.lease.expires,
            "instance": instance.instance.hex(),
            "job": instance.job.hex(),
            "owner": self._core.parties.card.name,
            # Workloads count on a clock of their own; ``expires`` alone would tell them nothing.
            "seconds": seconds,
            "sequence": instance.lease.sequence,
            "type": "lease/v1",
        }
        return sign_document(LEASE_TYPE, body, self._core.keys.receipt).to_bytes().decode()

    def checkpoint(self, envelope: Envelope) -> Receipt:
        """Record a checkpoint. Steps only grow; the identical record again gives the same log entry."""
        record = _Record.read(envelope)
        core = self._core
        with core.ledger.turn():
            _, instance = live_run(core, record.contract, record.job, record.instance)
            envelope.verify(CHECKPOINT_TYPE, [instance.signing])
            job = _known(core.knowledge.job(record.job))
            newer = decide_checkpoint(job, record.step, record.root)
            if newer is None:
                return core.ledger.log.receipt(self._entry_of(record.job))
            change = job_change(record.contract, newer)
            return core.ledger.commit(
                "checkpoint.recorded",
                target=record.job.hex(),
                details={**_names(instance), "root": record.root.hex(), "step": record.step},
                changes=[Change(change.table, {**change.row, "checkpoint_entry": ENTRY})],
            )

    def _entry_of(self, job: bytes) -> int:
        row = self._core.ledger.state.row("jobs", digest=job.hex())
        if row is None or row["checkpoint_entry"] is None:
            raise Denied("checkpoint.unknown", "No checkpoint of this run is recorded.")
        return int(row["checkpoint_entry"])


def _known(found: T | None) -> T:
    """What the decision before has shown to be there."""
    if found is None:
        raise Internal("lease.record", "A lease has lost its record; nothing was granted.")
    return found


def _names(instance: Instance) -> dict[str, Any]:
    return {"contract": instance.contract.hex(), "instance": instance.instance.hex(), "job": instance.job.hex()}
