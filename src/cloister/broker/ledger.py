"""The one sequencer of logged changes: announce, log, check the log's proof, apply. And refusals, within bounds.

A turn holds the broker's only write lock, so what a decision read is still true when its consequence is logged:
two requests can't both take the last run of a budget.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from ..audit import AuditLog, Outcome, Receipt, encode_event, event, parse_event, verify_checkpoint
from ..crypto.merkle import verify_consistency
from ..errors import CloisterError, Denied, Malformed, Misuse, Unavailable, Untrusted
from .clock import Clock
from .config import Limits
from .refusals import About, Refusals
from .state import Change, Intent, State

__all__ = ["Details", "Ledger", "reconcile"]

Details = Mapping[str, str | int]

_LONGEST_REVISION = 2**53 - 1


class Ledger:
    """Log and state together. ``actor`` is the party; ``log_key`` the public key that its log's heads verify with."""

    def __init__(
        self, state: State, log: AuditLog, clock: Clock, *, actor: str, log_key: bytes, limits: Limits
    ) -> None:
        self.state = state
        self.log = log
        self._clock = clock
        self._actor = actor
        self._log_key = log_key
        self._lock = threading.Lock()
        self._broken = False
        self._refusals = Refusals(limits)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Decide and commit inside this. Raises Unavailable once the log could not be written, and the error of the
        device that signs its heads while that is away."""
        with self._lock:
            if self._broken:
                # Whether the last entry reached the disk is unknown until the log is opened again.
                raise Unavailable("audit.unwritable", "The audit log could not be written; mend the disk and restart.")
            self.log.settle()  # what was logged while the signer went away is told to the state below
            if self.state.intents():
                reconcile(self.state, self.log, self._log_key)
            yield

    def commit(self, kind: str, *, target: str, details: Details, changes: Sequence[Change]) -> Receipt:
        """Log an event and make its changes, in that order. Call it within a turn.

        When this returns, the entry is durable under a signed head, and its inclusion proof verified with our own log
        key. When it raises, no table changed; what the log has of it nevertheless is finished in the next turn or at
        the next start, and what it lacks is forgotten. Raises Misuse for details that no entry can hold; then nothing
        was announced.
        """
        # What no entry can hold is refused while nothing is announced; the longest number stands for the revision.
        self._encoded(kind, target=target, details={**details, "revision": _LONGEST_REVISION})
        intent = self.state.intend(changes)
        try:
            receipt = self.append(kind, target=target, details={**details, "revision": intent.revision})
        except (Denied, Unavailable):
            self._broken = not self.log.sound  # else only the signer is away, and the next turn can tell what became
            raise
        except BaseException:
            self._broken = True
            raise
        try:
            head = receipt.verify(self.log.origin, self._log_key)
        except BaseException:
            self._broken = True
            raise
        self.state.apply(intent, receipt.index, head.size, head.root)
        return receipt

    def append(self, kind: str, *, target: str, details: Details, outcome: Outcome = "success") -> Receipt:
        """Log an event that changes no state."""
        return self.log.append(self._encoded(kind, target=target, details=details, outcome=outcome))

    def _encoded(self, kind: str, *, target: str, details: Details, outcome: Outcome = "success") -> bytes:
        body = event(kind, actor=self._actor, target=target, outcome=outcome, details=details, now=self._clock())
        try:
            return encode_event(body)
        except Malformed:
            raise Misuse(
                "event.details", "An audit event's details are text that every reader can show; give plain text."
            ) from None

    def refuse(self, kind: str, error: CloisterError, *, target: str, details: Details, about: About | None) -> None:
        """Log a refusal with the whole reason: the owner's log says everything, the answer to an outsider doesn't.

        At most so many a minute are written, so that nobody fills the disk by being refused; the rest is counted.
        ``about``: the contract behind the request, where its signatures were verified, and the stage; else None.
        """
        before = self._refusals.admit(about, now=self._clock())
        if before is not None:
            more: dict[str, str | int] = {"code": error.code, "reason": error.message, "suppressed_before": before}
            self.append(kind, target=target, details={**details, **more}, outcome="failure")


def reconcile(state: State, log: AuditLog, log_key: bytes) -> list[Intent]:
    """Bring state and log together after a crash; what was finished is returned.

    Raises Untrusted("audit.rollback") if the log lacks what the state has seen of it, Untrusted("state.rollback") if
    the log has changes that the state doesn't know: an older copy of one of them was put back.
    """
    known, size = state.progress(), log.size
    if size < known.log_size:
        raise Untrusted("audit.rollback", "The audit log is shorter than the broker's state knows: it was rolled back.")
    head = verify_checkpoint(log.head(), log.origin, log_key)
    try:
        proof = log.prove_consistency(known.log_size, head.size)
        verify_consistency(known.log_size, head.size, proof, known.log_root, head.root)
    except Untrusted:
        raise Untrusted(
            "audit.rollback", "The audit log is not the one that the broker's state was made with."
        ) from None
    pending = {intent.revision: intent for intent in state.intents()}
    finished: list[Intent] = []
    for index in range(known.log_size, head.size):
        revision = parse_event(log.entry(index)).details.get("revision")
        if revision is None:
            continue
        if not isinstance(revision, int) or revision not in pending:
            raise Untrusted(
                "state.rollback", "The audit log has changes that the broker's state lacks: an older copy was put back."
            )
        intent = pending.pop(revision)
        state.apply(intent, index, head.size, head.root)
        finished.append(intent)
    for intent in pending.values():
        state.abandon(intent)
    return finished
