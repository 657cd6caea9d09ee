"""From rows to what a decision wants to know. Reads only; call it within a turn where something follows from it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ..contracts import Contract, ContractState, read_contract, read_job
from ..crypto import Envelope
from ..errors import CloisterError
from .decision import Instance, JobRecord, Lease, Standing
from .party import Parties
from .policy_store import current_policy, revoked_measurements, stored_approvals
from .state import Change, Row, State

__all__ = ["Knowledge", "contract_change", "instance_change", "job_change"]


class Knowledge:
    """``witnessed``: whether at start somebody outside confirmed our log."""

    def __init__(self, state: State, parties: Parties, *, witnessed: bool) -> None:
        self._state = state
        self._parties = parties
        self.witnessed = witnessed
        self._used: dict[str, frozenset[bytes]] = {}  # by job; what a job names never changes

    def contract_state(self, contract: Contract) -> ContractState:
        row = self.contract_row(contract.digest)
        jobs = self._state.rows("jobs", contract=contract.digest.hex())
        return ContractState(
            pinned=self._parties.pinned(),
            compromised=self._parties.compromised(),
            revoked_by=None if row is None else row["revoked_by"],
            newest_serial=self.newest_serial(contract.name, "complete"),
            jobs=frozenset(bytes.fromhex(job["digest"]) for job in jobs),
        )

    def newest_serial(self, name: str, stage: str) -> int:
        """The highest serial of a contract's name that was ``complete`` (signed by all) or ``signed`` (by us)."""
        return max((row["serial"] for row in self._state.rows("contracts", name=name, **{stage: 1})), default=0)

    def standing(self, contract: Contract, job: bytes, instance: bytes) -> Standing:
        return self._state.glance(lambda: self._standing(contract, job, instance))

    def _standing(self, contract: Contract, job: bytes, instance: bytes) -> Standing:
        owner, assets = self._parties.card.name, self._state.rows("assets")
        return Standing(
            owner=owner,
            state=self.contract_state(contract),
            job=self.job(job),
            instance=self.instance(instance),
            permitted=self.permitted(job),
            newest=_newest(assets),
            shredded=frozenset(bytes.fromhex(row["digest"]) for row in assets if row["shredded"] is not None),
            ends={bytes.fromhex(row["digest"]): int(row["keep_until"]) for row in assets},
            witnessed=self.witnessed,
            policy=current_policy(self._state),
            revoked=frozenset(revoked_measurements(self._state)),
            approvals=stored_approvals(self._state, contract.digest),
        )

    def job(self, digest: bytes) -> JobRecord | None:
        row = self._state.row("jobs", digest=digest.hex())
        if row is None:
            return None
        checkpoint = None if row["root"] is None else (int(row["step"]), bytes.fromhex(row["root"]))
        return JobRecord(digest, row["envelope"], bytes.fromhex(row["instance"]), checkpoint)

    def instance(self, instance: bytes) -> Instance | None:
        row = self._state.row("instances", instance=instance.hex())
        return None if row is None else _instance(row)

    def permitted(self, job: bytes) -> bytes | None:
        """The instance of this job whose output has our permit."""
        permits = {row["instance"] for row in self._state.rows("permits")}
        own = [i.instance for i in self.instances(job=job.hex()) if i.instance.hex() in permits]
        return own[0] if own else None

    def instances(self, **where: Any) -> list[Instance]:
        return [_instance(row) for row in self._state.rows("instances", **where)]

    def job_assets(self, job: bytes) -> frozenset[bytes] | None:
        """Digests of the data and the model of an admitted run; None where that can't be told."""
        known = self._used.get(job.hex())
        if known is not None:
            return known
        row = self._state.row("jobs", digest=job.hex())
        contract = None if row is None else self.contract(bytes.fromhex(row["contract"]))
        if row is None or contract is None:
            return None
        try:
            read = read_job(Envelope.from_bytes(row["envelope"].encode()), contract)
        except CloisterError:
            return None
        return self._used.setdefault(job.hex(), frozenset((read.data, read.base)))

    def used_names(self, names: Collection[str], *, beside: Collection[bytes] | None = None) -> set[str]:
        """Those of ``names`` that admitted runs used, or used together with an asset ``beside`` (digests): all, if what
        a run used can't be told. What was read of a job once is remembered, so the next look is quick."""
        own = {bytes.fromhex(row["digest"]): str(row["name"]) for row in self._state.rows("assets")}
        used: set[str] = set()
        for row in self._state.rows("jobs"):
            digests = self.job_assets(bytes.fromhex(row["digest"]))
            if digests is None:
                return set(names)
            if beside is None or not digests.isdisjoint(beside):
                used |= {own[digest] for digest in digests if digest in own}
        return used & set(names)

    def contract_row(self, digest: bytes) -> Row | None:
        return self._state.row("contracts", digest=digest.hex())

    def contract(self, digest: bytes) -> Contract | None:
        """A contract that was signed or stored here."""
        row = self.contract_row(digest)
        return None if row is None else read_contract(Envelope.from_bytes(row["envelope"].encode()))


def _newest(assets: list[Row]) -> dict[str, bytes]:
    """By name. Also a version that was shredded stays the newest: the one before it must not come back."""
    newest: dict[str, Row] = {}
    for row in assets:
        if row["name"] not in newest or newest[row["name"]]["version"] < row["version"]:
            newest[row["name"]] = row
    return {name: bytes.fromhex(row["digest"]) for name, row in newest.items()}


def _instance(row: Row) -> Instance:
    return Instance(
        instance=bytes.fromhex(row["instance"]),
        job=bytes.fromhex(row["job"]),
        contract=bytes.fromhex(row["contract"]),
        signing=bytes.fromhex(row["signing"]),
        hpke=bytes.fromhex(row["hpke"]),
        lease=Lease(row["sequence"], row["expires"]),
        cut=bool(row["cut"]),
    )


def instance_change(known: Instance) -> Change:
    row = {
        "instance": known.instance.hex(),
        "job": known.job.hex(),
        "contract": known.contract.hex(),
        "signing": known.signing.hex(),
        "hpke": known.hpke.hex(),
        "sequence": known.lease.sequence,
        "expires": known.lease.expires,
        "cut": int(known.cut),
    }
    return Change("instances", row)


def job_change(contract: bytes, job: JobRecord) -> Change:
    step, root = job.checkpoint or (None, None)
    row = {
        "digest": job.digest.hex(),
        "contract": contract.hex(),
        "envelope": job.envelope,
        "instance": job.instance.hex(),
        "step": step,
        "root": None if root is None else root.hex(),
    }
    return Change("jobs", row)


def contract_change(contract: Contract, known: Row | None, **columns: Any) -> Change:
    """The contract's row with some ``columns`` new: envelope, signed, complete, revoked_by, revocation."""
    row = known or {
        "digest": contract.digest.hex(),
        "name": contract.name,
        "serial": contract.serial,
        "envelope": contract.envelope.to_bytes().decode(),
        "signed": 0,
        "complete": 0,
        "revoked_by": None,
        "revocation": None,
    }
    return Change("contracts", {**row, **columns})
