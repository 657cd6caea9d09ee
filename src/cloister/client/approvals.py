"""Releases and measurements from an owner's side: pin a release key, approve under many contracts, revoke.

The party's own broker decides, logs and tells the others. Approving loosens, so it counts only once every party has
done it; revoking tightens, and counts at once, alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..contracts.releases import Release, read_release
from ..crypto import Envelope
from ..errors import Misuse
from .agent import OwnerAgent
from .known import KnownContract, find_known, known_contracts
from .publishing import public_key
from .supervisor import Home

__all__ = [
    "Approvable",
    "approve_release",
    "approved_values",
    "list_measurements",
    "releases_to_approve",
    "revoke_measurement",
    "trust_release_key",
]

_LIMIT = 1 << 20


@dataclass(frozen=True)
class Approvable:
    """A release that a party may approve, and the contracts for which it would, as they are shown before."""

    text: str
    release: Release
    contracts: tuple[KnownContract, ...]
    revoked: tuple[str, ...]

    def lines(self) -> list[str]:
        """What a person reads before agreeing."""
        release = self.release
        rows = [f"release {release.version}, number {release.number}, {release.digest.hex()}"]
        rows += [f"workload {measured}" for measured in release.measurements]
        rows += [f"agent {agent}" for agent in release.agents]
        rows += [f"notes: {release.notes}"] if release.notes else []
        rows += [f"fixes: {fix}" for fix in release.fixes]
        rows += [
            f"vulnerable: {old}" + (", revoked here" if old in self.revoked else ", not revoked here yet")
            for old in release.vulnerable
        ]
        return [*rows, *(f"for contract {c.name} serial {c.serial}, {c.digest}" for c in self.contracts)]


def trust_release_key(home: Home, party: str, key: str) -> dict[str, Any]:
    """Pin the key that signs releases; its fingerprint was compared by people before."""
    return home.agent(party).trust_release_key(public_key(key).hex())


def list_measurements(home: Home, party: str) -> dict[str, Any]:
    """The pinned key and newest release, what is approved by whom under which contract, and what is revoked."""
    return home.agent(party).measurements()


def releases_to_approve(home: Home, party: str, data: bytes, references: list[str], *, every: bool) -> Approvable:
    """What ``approve_release`` would do. ``every``: all contracts in force that the party signed and every party has.

    Raises Misuse for contracts that are not known, Untrusted for a release by another key than the pinned one.
    """
    agent = home.agent(party)
    if every == bool(references):
        raise Misuse("measurement.which", "Name contracts with --contract, or take all of them with --all.")
    found = _all(agent) if every else [find_known(agent, reference) for reference in references]
    if not found:
        raise Misuse("measurement.none", "There is no contract in force that this could be approved for.")
    listing = agent.measurements()
    if listing["release_key"] is None:
        raise Misuse("release.untrusted", "No release key is pinned here; 'cloister measurement trust' pins one.")
    envelope = Envelope.from_bytes(data, limit=_LIMIT)
    release = read_release(envelope, public_key(str(listing["release_key"])))
    revoked = tuple(sorted(str(one) for one in dict(listing["revoked"])))
    return Approvable(envelope.to_bytes().decode(), release, tuple({c.digest: c for c in found}.values()), revoked)


def _all(agent: OwnerAgent) -> list[KnownContract]:
    """The newest complete serial of each name; what is revoked or has ended, the broker has left out of its list."""
    current = {str(one["contract"]) for one in agent.measurements()["contracts"]}
    newest: dict[str, KnownContract] = {}
    for one in known_contracts(agent):
        if one.complete and one.digest in current and (one.name not in newest or newest[one.name].serial < one.serial):
            newest[one.name] = one
    return list(newest.values())


def approved_values(home: Home, party: str, contract: str) -> frozenset[str]:
    """Measurements and agents that every party of a contract (digest in hex) approved, as the party's broker knows."""
    return frozenset(
        str(value)
        for one in home.agent(party).measurements()["contracts"]
        if one["contract"] == contract
        for release in one["releases"]
        if release["complete"]
        for value in (*release["measurements"], *release["agents"])
    )


def approve_release(home: Home, party: str, chosen: Approvable) -> dict[str, Any]:
    """Approve exactly what was shown. ``complete``: contracts under which every party has approved it by now."""
    agent = home.agent(party)
    done = agent.approve_release(chosen.text, [c.digest for c in chosen.contracts])
    complete = [
        one["contract"]
        for one in agent.measurements()["contracts"]
        for release in one["releases"]
        if release["release"] == done["release"] and release["complete"]
    ]
    return {**done, "complete": complete, "party": party, "version": chosen.release.version}


def revoke_measurement(home: Home, party: str, measurement: str, reason: str) -> dict[str, Any]:
    """Serve a workload or agent no more, alone and for good. ``leases_cut``: of runs that may be it."""
    return {**home.agent(party).revoke_measurement(public_hex(measurement), reason), "party": party}


def public_hex(text: str) -> str:
    """A measurement as people write it. Raises Misuse."""
    if len(text) != 64 or not set(text) <= set("0123456789abcdef"):
        raise Misuse("measurement.hex", "A measurement is given as 64 lower-case hex digits.")
    return text
