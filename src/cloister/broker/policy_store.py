"""The owner's appraisal policy, the measurements it revoked and the approvals that it holds: kept as logged facts.

Every change is in the owner's log before it counts. Reading is by key, because every decision reads all three.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from ..attestation.policy import DEFAULT_POLICY, AppraisalPolicy, read_policy
from ..contracts.releases import Approval
from ..crypto import Envelope, canonical_json, parse_canonical
from ..errors import Untrusted
from .ledger import Ledger
from .state import Change, State

__all__ = [
    "MOST_APPROVALS",
    "PolicyStore",
    "approvals_change",
    "current_policy",
    "newest_approvals",
    "revoked_change",
    "revoked_measurements",
    "stored_approvals",
]

_POLICY: Final = "policy"
_REVOKED: Final = "revoked-measurements"
MOST_APPROVALS: Final = 32
_APPROVALS_SIZE: Final = 56 * 1024
"""Number and bytes of one party's approvals under one contract. The oldest make room: nobody fills another's disk, and
with 64 parties (the most that a contract has) all of them stay below what is read as one document (4 MiB)."""


class PolicyStore:
    """Sets and shows the policy of one owner. Nobody else's is kept here, and there is no global one."""

    def __init__(self, ledger: Ledger, owner: str) -> None:
        self._ledger = ledger
        self._owner = owner

    def current(self) -> AppraisalPolicy:
        return current_policy(self._ledger.state)

    def set(self, data: bytes) -> AppraisalPolicy:
        """Take over a policy, canonical JSON. It holds for all that is decided from now on: a run that it refuses gets
        no further lease. Raises Malformed."""
        policy = read_policy(data)
        with self._ledger.turn():
            before = self.current()
            if before == policy:
                return policy
            details: dict[str, str | int] = {
                "default": "kept" if policy.default else "replaced",
                "digest": policy.digest,
                "name": policy.name,
                "previous": before.digest,
                "rules": sum(len(rules) for rules in policy.platforms.values()),
            }
            change = Change("facts", {"name": _POLICY, "value": data.decode()})
            self._ledger.commit("policy.set", target=self._owner, details=details, changes=[change])
        return policy


def current_policy(state: State) -> AppraisalPolicy:
    """The owner's policy, or the built-in one where it has set none."""
    row = state.row("facts", name=_POLICY)
    return DEFAULT_POLICY if row is None else _read(row["value"])


@lru_cache(maxsize=8)
def _read(text: str) -> AppraisalPolicy:
    return read_policy(text.encode())


def revoked_measurements(state: State) -> dict[str, str]:
    """Measurements that the owner no longer serves, each with its reason."""
    row = state.row("facts", name=_REVOKED)
    return {} if row is None else _texts(row["value"])


@lru_cache(maxsize=8)
def _texts(text: str) -> dict[str, str]:
    found = parse_canonical(text.encode())
    if not isinstance(found, dict) or not all(isinstance(reason, str) for reason in found.values()):
        raise Untrusted("state.damaged", "The broker's state is damaged; restore it from a copy.")
    return found


def revoked_change(revoked: dict[str, str]) -> Change:
    return Change("facts", {"name": _REVOKED, "value": canonical_json(revoked).decode()})


def _approvals_name(contract: bytes) -> str:
    return f"approvals:{contract.hex()}"


def stored_approvals(state: State, contract: bytes) -> tuple[Envelope, ...]:
    """The parties' approvals of releases under a contract, as they were checked when they came.

    Raises Malformed or Untrusted where they can't be read: then nothing runs under that contract. Others go on.
    """
    row = state.row("facts", name=_approvals_name(contract))
    return () if row is None else _envelopes(row["value"])


@lru_cache(maxsize=64)
def _envelopes(text: str) -> tuple[Envelope, ...]:
    found = parse_canonical(text.encode())
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise Untrusted("state.damaged", "The broker's state is damaged; restore it from a copy.")
    return tuple(Envelope.from_bytes(one.encode()) for one in found)


def newest_approvals(approvals: Iterable[Approval]) -> list[Approval]:
    """What is kept of one party's: one a release, the newest first (of two as new, the one that was there before),
    until number or bytes are used up."""
    kept: dict[bytes, Approval] = {}
    size = 0
    for approval in sorted(approvals, key=lambda a: -a.issued):
        if approval.release in kept:
            continue
        size += len(approval.envelope.to_bytes())
        if len(kept) == MOST_APPROVALS or size > _APPROVALS_SIZE:
            break
        kept[approval.release] = approval
    return list(kept.values())


def approvals_change(contract: bytes, envelopes: tuple[Envelope, ...]) -> Change:
    texts = [envelope.to_bytes().decode() for envelope in envelopes]
    return Change("facts", {"name": _approvals_name(contract), "value": canonical_json(texts).decode()})
