"""The pure decisions of a broker: may this instance have this key, this lease, this checkpoint record?

No clock, disk or network: ``now`` and everything that the broker knows (``Standing``) are arguments. The numbers are
the order of DESIGN §2, invariant 2; step 6 (the log) and step 7 (the key) are in ``release``, after these.
A release runs this three times, with what is known by then: when a workload knocks (1, 2, 5), when it has attested
(1 to 5), and when it asks for a key (1 to 5, with the key). Nothing that changed in between is overlooked; ``decided``
leaves out what nothing has changed for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from ..attestation import Claims, ReferenceValues, appraise
from ..attestation.appraisal import check_placement
from ..attestation.policy import DEFAULT_POLICY, AppraisalPolicy
from ..contracts import (
    Contract,
    ContractState,
    Job,
    check_contract,
    check_job,
    check_statement,
    check_statements,
    check_trustee_terms,
)
from ..contracts.releases import approved_releases, read_approval
from ..crypto import Envelope, constant_time_equal
from ..errors import Denied, Malformed, Untrusted
from .privacy import Budget, reserve

__all__ = [
    "Instance",
    "JobRecord",
    "Lease",
    "Request",
    "Resource",
    "Standing",
    "check_gives_keys",
    "check_live",
    "check_unreleased",
    "decide_admission",
    "decide_checkpoint",
    "decide_evidence",
    "decide_key",
    "decide_knock",
    "decide_release",
    "decide_renewal",
    "reference_values",
    "relevant_approvals",
]


@dataclass(frozen=True)
class Request:
    """What a workload asks for. The nonce commits to all of it but ``tee`` and the statements."""

    purpose: str
    tee: str
    contract: Contract
    job: Job
    instance: bytes
    hpke: bytes
    signing: bytes
    sequence: int
    statements: tuple[Envelope, ...]


@dataclass(frozen=True)
class Resource:
    """A key. ``kind``: asset-key or state-share; ``digest`` (32 bytes) names it in the HPKE context and the log."""

    kind: str
    tag: str
    digest: bytes


@dataclass(frozen=True)
class Lease:
    """Until when (POSIX seconds, by the broker's clock) an instance may hold what it was given."""

    sequence: int
    expires: int


@dataclass(frozen=True)
class Instance:
    """What the broker remembers about one workload instance. ``cut``: ended by a newer one or by a revocation."""

    instance: bytes
    job: bytes
    contract: bytes
    signing: bytes
    hpke: bytes
    lease: Lease
    cut: bool


@dataclass(frozen=True)
class JobRecord:
    """An admitted run: its newest instance, and the newest checkpoint (step, root) that was recorded."""

    digest: bytes
    envelope: str
    instance: bytes
    checkpoint: tuple[int, bytes] | None


@dataclass(frozen=True)
class Standing:
    """What this broker knows. ``permitted``: the instance of the job whose output this owner has let out. ``newest``:
    its own assets' newest digest by name; ``shredded``: those whose key was destroyed; ``ends``: until when (unix
    seconds) its owner keeps each. ``witnessed``: at start, somebody outside confirmed that its log had not been rolled
    back. ``policy``: its owner's appraisal policy; ``revoked``: measurements of workloads or agents (hex) that its
    owner no longer serves; ``approvals``: what parties of the contract have approved of later releases; ``budgets``:
    the privacy budgets of its datasets, by name."""

    owner: str
    state: ContractState
    job: JobRecord | None
    instance: Instance | None
    permitted: bytes | None
    newest: Mapping[str, bytes]
    shredded: frozenset[bytes]
    ends: Mapping[bytes, int]
    witnessed: bool
    policy: AppraisalPolicy = DEFAULT_POLICY
    revoked: frozenset[str] = frozenset()
    approvals: tuple[Envelope, ...] = ()
    budgets: Mapping[str, Budget] = field(default_factory=dict)


def reference_values(contract: Contract, approvals: Iterable[Envelope] = ()) -> ReferenceValues:
    """What the contract accepts, in the words of attestation: what it names, and what every party approved since."""
    platform = contract.platform
    releases = approved_releases(contract, approvals)
    return ReferenceValues(
        measurements=frozenset(platform.measurements).union(*(r.measurements for r in releases)),
        agents=frozenset(platform.agents).union(*(r.agents for r in releases)),
        attesters=frozenset(platform.attesters),
        pcrs=platform.pcrs,
        least_level=platform.assurance,
    )


def relevant_approvals(contract: Contract, claims: Claims, approvals: Iterable[Envelope]) -> tuple[Envelope, ...]:
    """Those without which the claims would be refused; none where the contract itself names workload and agent."""
    named = {*contract.platform.measurements, *contract.platform.agents}
    beyond = {claims.measurement, claims.agent} - named
    held = tuple(approvals) if beyond else ()
    releases = {r.release for r in approved_releases(contract, held) if beyond & {*r.measurements, *r.agents}}
    return tuple(envelope for envelope in held if read_approval(envelope, contract).release in releases)


def decide_knock(request: Request, standing: Standing, *, now: int) -> None:
    """Everything that can be said without evidence: steps 1, 2 and 5 without the asset. Raises Denied, Untrusted
    or Malformed."""
    contract = request.contract
    # 1 and 2. Every party's signature against our own pins; then whether the contract is in force.
    check_contract(contract, standing.state, now=now)
    if contract.platform.assurance != "none" and not standing.witnessed:
        raise Denied("witness.absent", "Above level none, a broker that no witness has checked at start gives no keys.")
    # 2. Every other party says so freshly. Of ourselves we know it from the state that was just checked.
    fresh: set[str] = set()
    for statement in request.statements:
        party = check_statement(statement, contract, now=now)
        if party in fresh:
            raise Malformed("status.twice", "A request carries two status statements of one party; send one of each.")
        fresh.add(party)
    check_statements(contract, fresh | {standing.owner})
    # 5. The recipe, the budgets, and whether this run may begin, go on or renew.
    if standing.owner not in contract.owners():
        raise Denied("contract.owner", "This broker's party owns nothing in this contract.")
    check_job(contract, request.job, standing.state)
    check_trustee_terms(contract, request.job, now=now)
    reserve(contract, request.job, standing.owner, standing.budgets, admitted=standing.job is not None)
    if standing.shredded & {*request.job.assets}:
        # Whatever the run holds already: it gets no further key and no further lease.
        raise Denied("asset.shredded", "The key of an asset of this job was destroyed for good; name its next version.")
    _check_purpose(request, standing, now=now)


def decide_admission(request: Request, claims: Claims, standing: Standing, *, now: int) -> None:
    """Steps 1 to 5 without the asset. ``claims`` come from a verifier: authentic, fresh and bound to the nonce."""
    decide_knock(request, standing, now=now)
    decide_evidence(request, claims, standing)


def decide_evidence(request: Request, claims: Claims, standing: Standing) -> None:
    """Steps 3 and 4 of ``decide_admission``, for a request that ``decide_knock`` lets pass now."""
    # 3 and 4. What runs is what the contract names, at its level or above, and it is this instance of this job.
    platform = request.contract.platform
    appraise(
        claims,
        reference_values(request.contract, standing.approvals),
        instance=request.instance,
        contract=request.contract.digest,
        job=request.job.digest,
    )
    check_placement(claims, platform.devices, platform.tenancy)
    # 4. And what this owner alone asks for. It can only refuse, so it may change from one renewal to the next.
    if standing.revoked & {claims.measurement, claims.agent}:
        raise Denied("measurement.revoked", "The owner of this broker has revoked this workload or its node agent.")
    standing.policy.check(claims)


def decide_release(request: Request, claims: Claims, standing: Standing, resource: Resource, *, now: int) -> Lease:
    """Steps 1 to 5 for one key. Returns the lease under which it goes out: the instance's own, or its first one."""
    check_gives_keys(request)
    decide_admission(request, claims, standing, now=now)
    return decide_key(request, standing, resource, now=now)


def check_gives_keys(request: Request) -> None:
    """Raises Denied for a request that asks for no keys."""
    if request.purpose not in ("release", "resume"):
        raise Denied("session.purpose", "A session for renewal gives no keys.")


def decide_key(request: Request, standing: Standing, resource: Resource, *, now: int) -> Lease:
    """The rest of ``decide_release``, for what ``decide_admission`` lets pass now."""
    # 5. The key belongs to this job.
    _check_resource(request, standing, resource, now=now)
    if standing.instance is not None:
        check_live(standing.instance, now=now)
        return standing.instance.lease
    return Lease(0, _lease_end(request.contract, now))


def decide_renewal(request: Request, claims: Claims, standing: Standing, *, now: int) -> Lease:
    """The next lease of a live instance. Raises Denied for any but the newest instance, and after its lease's end."""
    if request.purpose != "renew":
        raise Denied("session.purpose", "Only a session that attested for renewal renews.")
    decide_admission(request, claims, standing, now=now)
    return Lease(request.sequence, _lease_end(request.contract, now))


def decide_checkpoint(record: JobRecord, step: int, root: bytes) -> JobRecord | None:
    """The job with its newer checkpoint, or None where exactly this one is recorded. Steps only grow."""
    if record.checkpoint is not None:
        if record.checkpoint == (step, root):
            return None
        if step <= record.checkpoint[0]:
            raise Denied("checkpoint.rollback", "A checkpoint of this or a later step is recorded already.", step=step)
    return replace(record, checkpoint=(step, root))


def check_live(instance: Instance, *, now: int) -> None:
    """Raises Denied unless the instance is its job's newest and its lease runs."""
    if instance.cut:
        raise Denied("lease.cut", "A newer instance of this job, or a revocation, has ended this instance's lease.")
    if now >= instance.lease.expires:
        raise Denied("lease.expired", "This instance's lease has ended; start a new instance with purpose resume.")


def check_unreleased(permitted: bytes | None, instance: bytes) -> None:
    """One unit of the budget is one output: once an instance of the job has a permit, no other one gets anything."""
    if permitted is not None and permitted != instance:
        raise Denied("job.released", "An output of this job was permitted already; submit a new job for another one.")


def _lease_end(contract: Contract, now: int) -> int:
    return min(now + contract.lease_seconds, contract.expires)


def _check_purpose(request: Request, standing: Standing, *, now: int) -> None:
    known = standing.instance
    if known is not None:
        _check_same(request, known)
        check_live(known, now=now)
    if request.purpose == "renew":
        if known is None:
            raise Denied("lease.unknown", "This broker gave no lease to this instance.")
        if request.sequence != known.lease.sequence + 1:
            raise Denied("lease.sequence", "A renewal names the lease sequence that follows the present one.")
        return
    if request.sequence != 0:
        raise Denied("lease.sequence", "A first request for keys names lease sequence 0.")
    check_unreleased(standing.permitted, request.instance)
    if request.purpose == "resume" and standing.job is None:
        raise Denied("job.unknown", "Only a run that was admitted before can be resumed; ask with purpose release.")
    if request.purpose == "release" and standing.job is not None and standing.job.checkpoint is not None:
        # A fresh start would silently throw away recorded progress: the rollback that records exist to stop.
        raise Denied("job.checkpointed", "This run has a recorded checkpoint; ask with purpose resume.")


def _check_same(request: Request, known: Instance) -> None:
    """One instance id belongs to one set of keys and one job for good."""
    same = (
        known.job == request.job.digest
        and known.contract == request.contract.digest
        and constant_time_equal(known.signing, request.signing)
        and constant_time_equal(known.hpke, request.hpke)
    )
    if not same:
        raise Untrusted("instance.other", "This instance id was used before with other keys or for another job.")


def _check_resource(request: Request, standing: Standing, resource: Resource, *, now: int) -> None:
    if resource.kind == "state-share":
        return  # every owner's share is part of the key of every run under the contract
    asset = request.contract.asset(resource.digest)
    if resource.digest not in request.job.assets:
        raise Denied("job.asset", "The job does not use this asset.")
    if asset.owner != standing.owner:
        raise Denied("asset.owner", "This broker holds the keys of its own party's assets only.")
    # The contract's date, or an earlier one that the owner set since.
    if now >= min(asset.terms.keep_until, standing.ends.get(resource.digest, asset.terms.keep_until)):
        raise Denied("asset.retention", "The time for which this asset may be kept is over.")
    if asset.name not in standing.newest:
        raise Denied("asset.unknown", "This broker has no key for this asset.")
    if standing.newest[asset.name] != resource.digest:
        raise Denied("asset.old", "A newer version of this asset exists; sign a new contract that names it.")
