"""From rows to what a decision wants to know. Reads only; call it within a turn where something follows from it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ..attestation.policy import AppraisalPolicy
from ..contracts import Card, Contract, ContractState, read_contract, read_job
from ..crypto import Envelope
from ..errors import CloisterError
from .decision import Instance, JobRecord, Lease, Standing
from .lookups import Mark
from .party import Parties
from .policy_store import current_policy, revoked_measurements, stored_approvals
from .privacy import Budget, budgets_text, read_budgets
from .state import Change, Row, State

__all__ = ["Knowledge", "budgets_change", "contract_change", "instance_change", "job_change"]


_MOST_KNOWN: Final = 256
_BUDGETS: Final = "privacy-budgets"  # the fact that holds all of them: one row, changed in a turn
_GENERAL: Final = frozenset({"assets", "facts", "pins"})  # the tables that ``_General`` is read from


@dataclass(frozen=True)
class _General:
    """The part of a ``Standing`` that no contract, job or instance changes."""

    owner: str
    pinned: dict[str, Card]
    compromised: frozenset[str]
    newest: Mapping[str, bytes]
    shredded: frozenset[bytes]
    ends: Mapping[bytes, int]
    policy: AppraisalPolicy
    revoked: frozenset[str]
    budgets: Mapping[str, Budget]


@dataclass(frozen=True)
class _Runs:
    """See ``ContractState.jobs``: how many there are, and those ``named`` of them that somebody asks about."""

    number: int
    named: frozenset[bytes]

    def __len__(self) -> int:
        return self.number

    def __contains__(self, job: object, /) -> bool:
        return job in self.named


class Knowledge:
    """``witnessed``: whether at start somebody outside confirmed our log."""

    def __init__(self, state: State, parties: Parties, *, witnessed: bool) -> None:
        self._state = state
        self._parties = parties
        self.witnessed = witnessed
        self._used: dict[str, frozenset[bytes]] = {}  # by job; what a job names never changes
        self._general: tuple[Mark, _General] | None = None
        self._known: tuple[Mark, dict[tuple[bytes, bytes, bytes], Standing]] = ((-1, ""), {})

    def contract_state(self, contract: Contract) -> ContractState:
        """As to runs that are not admitted yet: of the others it tells the number only."""
        pinned, compromised = self._parties.pinned(), self._parties.compromised()
        return self._contract_state(contract, pinned, compromised, frozenset())

    def _contract_state(
        self, contract: Contract, pinned: dict[str, Card], compromised: frozenset[str], admitted: frozenset[bytes]
    ) -> ContractState:
        row = self.contract_row(contract.digest)
        return ContractState(
            pinned=pinned,
            compromised=compromised,
            revoked_by=None if row is None else row["revoked_by"],
            newest_serial=self.newest_serial(contract.name, "complete"),
            jobs=_Runs(self._state.count("jobs", contract=contract.digest.hex()), admitted),
        )

    def newest_serial(self, name: str, stage: str) -> int:
        """The highest serial of a contract's name that was ``complete`` (signed by all) or ``signed`` (by us)."""
        return max((row["serial"] for row in self._state.rows("contracts", name=name, **{stage: 1})), default=0)

    def standing(self, contract: Contract, job: bytes, instance: bytes) -> Standing:
        """What is known now. Read anew after any change of the state, by whomever: its mark in the database says so.

        A standing holds nothing that passes with time: a decision gets the time besides.
        """
        return self._state.glance(lambda: self._now(contract, job, instance))

    def _now(self, contract: Contract, job: bytes, instance: bytes) -> Standing:
        mark, asked = self._state.mark(), (contract.digest, job, instance)
        since, known = self._known
        found = known.get(asked) if since == mark else None
        if found is None or found.witnessed != self.witnessed:
            found = self._standing(contract, job, instance, self._general_at(mark))
            if self._state.mark() == mark:  # else something changed while it was read, and nobody else gets it
                self._keep(mark, asked, found)
        return found

    def _keep(self, mark: Mark, asked: tuple[bytes, bytes, bytes], found: Standing) -> None:
        since, known = self._known
        if since != mark:
            self._known = (mark, {asked: found})
        elif len(known) < _MOST_KNOWN:
            known[asked] = found

    def _general_at(self, mark: Mark) -> _General:
        """What is the same for all runs. It outlives changes that this process made in other tables."""
        if self._general is not None:
            since, known = self._general
            touched = frozenset() if since == mark else self._state.touched(since[0], mark[0])
            if touched is not None and not touched & _GENERAL:
                self._general = (mark, known)
                return known
        found = self._read_general()
        if self._state.mark() == mark:
            self._general = (mark, found)
        return found

    def _read_general(self) -> _General:
        assets = self._state.rows("assets")
        return _General(
            owner=self._parties.card.name,
            pinned=self._parties.pinned(),
            compromised=self._parties.compromised(),
            newest=_newest(assets),
            shredded=frozenset(bytes.fromhex(row["digest"]) for row in assets if row["shredded"] is not None),
            ends={bytes.fromhex(row["digest"]): int(row["keep_until"]) for row in assets},
            policy=current_policy(self._state),
            revoked=frozenset(revoked_measurements(self._state)),
            budgets=self.budgets(),
        )

    def _standing(self, contract: Contract, job: bytes, instance: bytes, general: _General) -> Standing:
        known = self.job(job)
        admitted = frozenset({job} if known is not None else ())
        return Standing(
            owner=general.owner,
            state=self._contract_state(contract, general.pinned, general.compromised, admitted),
            job=known,
            instance=self.instance(instance),
            permitted=self.permitted(job),
            newest=general.newest,
            shredded=general.shredded,
            ends=general.ends,
            witnessed=self.witnessed,
            policy=general.policy,
            revoked=general.revoked,
            approvals=stored_approvals(self._state, contract.digest),
            budgets=general.budgets,
        )

    def budgets(self) -> Mapping[str, Budget]:
        """The privacy budgets of the own datasets, by name."""
        row = self._state.row("facts", name=_BUDGETS)
        return {} if row is None else read_budgets(row["value"])

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
        for known in self.instances(job=job.hex()):
            if self._state.row("permits", instance=known.instance.hex()) is not None:
                return known.instance
        return None

    def instances(self, **where: Any) -> list[Instance]:
        return [_instance(row) for row in self._state.rows("instances", **where)]

    def job_assets(self, job: bytes) -> frozenset[bytes] | None:
        """Digests of the assets of an admitted run; None where that can't be told."""
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
        return self._used.setdefault(job.hex(), frozenset(read.assets))

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


def budgets_change(budgets: Mapping[str, Budget]) -> Change:
    return Change("facts", {"name": _BUDGETS, "value": budgets_text(budgets)})


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
