"""Prove to every owner's broker what this is, and receive the run's keys."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..contracts import check_work
from ..errors import Untrusted
from .broker_client import BrokerClient
from .checkpoints import CHECKPOINT_TAG, checkpoint_secret
from .identity import KeyRing
from .key_session import AttestedSession, Lease, ReleasedKey, RunContext, gather_statements, share_resource
from .trustee import NodeEvidence, PublishedSession, UnboundKey

__all__ = ["Acquired", "acquire_keys", "record_checkpoint"]


@dataclass(frozen=True, repr=False)
class Acquired:
    """What the brokers gave: keys by asset digest (hex) and under ``checkpoint``, with proofs and leases. ``unbound``:
    keys of stock key brokers, without either; where there are such brokers, there is no key for checkpoints."""

    keys: KeyRing
    released: dict[str, list[ReleasedKey]]
    tokens: dict[str, str]
    leases: dict[str, Lease]
    checkpoint: tuple[int, bytes] | None = field(default=None)
    unbound: tuple[UnboundKey, ...] = ()


def acquire_keys(run: RunContext, *, purpose: str) -> Acquired:
    """One attested session with each owner's broker. All or nothing: the first refusal ends the run."""
    if run.contract.trustees:
        # Elsewhere each owner's own broker has looked. A party with a stock one has nobody but this measured code: the
        # others' brokers are theirs, and may let pass what the contract does not.
        check_work(run.contract, run.job)
    evidence = NodeEvidence(run.link, run.tee) if run.contract.trustees else None
    statements = gather_statements(run)
    keys = KeyRing()
    released: dict[str, list[ReleasedKey]] = {}
    tokens: dict[str, str] = {}
    shares: dict[str, bytes] = {}
    for owner in run.contract.brokers():
        with AttestedSession(run, owner, purpose=purpose, sequence=0, statements=statements) as session:
            tokens[owner] = session.token
            share = session.key("state-share", CHECKPOINT_TAG, share_resource(CHECKPOINT_TAG))
            shares[owner] = share.secret
            released[owner] = [share]
            for digest in run.job.assets:
                if run.contract.asset(digest).owner == owner:
                    key = session.key("asset-key", digest.hex(), digest)
                    keys.put(digest.hex(), key.secret)
                    released[owner].append(key)
    unbound = () if evidence is None else _from_trustees(run, keys, evidence)
    if not run.contract.trustees:  # else a share is missing, and the others' must not be enough
        keys.put(CHECKPOINT_TAG, checkpoint_secret(run, shares))
    return Acquired(
        keys=keys,
        released=released,
        tokens=tokens,
        leases={owner: min((k.lease for k in got), key=lambda x: x.deadline) for owner, got in released.items()},
        checkpoint=_newest(released),
        unbound=unbound,
    )


def _from_trustees(run: RunContext, keys: KeyRing, evidence: NodeEvidence) -> tuple[UnboundKey, ...]:
    """After our own brokers: they know whether the contract is real, and end this run if it is not."""
    found = []
    for owner, entry in sorted(run.contract.trustees.items()):
        wanted = [digest for digest in run.job.assets if run.contract.asset(digest).owner == owner]
        if not wanted:
            continue
        with PublishedSession(run.link, run.contract, owner, entry, evidence) as session:
            for digest in wanted:
                key = session.asset_key(digest)
                keys.put(digest.hex(), key.secret)
                found.append(key)
    return tuple(found)


def _newest(released: dict[str, list[ReleasedKey]]) -> tuple[int, bytes] | None:
    """The highest step that any owner recorded. A kill between two brokers leaves one of them a step behind; the
    record that exists was signed by an attested instance, so going on from it loses nothing and forges nothing."""
    known = {k.checkpoint for got in released.values() for k in got if k.checkpoint is not None}
    if not known:
        return None
    step = max(step for step, _ in known)
    roots = {root for at, root in known if at == step}
    if len(roots) != 1:
        raise Untrusted("checkpoint.fork", "The owners' brokers recorded different checkpoints for one step.")
    return step, roots.pop()


def record_checkpoint(run: RunContext, record: str) -> None:
    """Have every owner's broker log where the run stands; raises unless all of them did."""
    for owner in run.contract.brokers():
        client = BrokerClient(run.link, run.contract, owner)
        try:
            client.post("/cloister/v1/checkpoint", {"record": record})
        finally:
            client.close()
