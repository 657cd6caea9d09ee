"""Logged changes: a decision and its consequence in one turn, with an entry for each. And refusals, within bounds.

What a decision read in a turn is still true when its consequence is logged: two requests can't both take the last run
of a budget, nor can two replicas. How that is brought about is the sequencer's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from ..attestation.policy import PolicyDenied
from ..audit import AuditLog, Outcome, Receipt, encode_event, event
from ..errors import CloisterError, Malformed, Misuse
from .clock import Clock
from .config import Limits
from .refusals import About, Refusals
from .sequence import OwnSequence, Sequencer, reconcile
from .state import Change, State

__all__ = ["Details", "Ledger", "reconcile"]

Details = Mapping[str, str | int]

_LONGEST_REVISION = 2**53 - 1


class Ledger:
    """Log and state together. ``actor`` is the party; ``log_key`` the public key that its log's heads verify with."""

    def __init__(
        self,
        state: State,
        log: AuditLog,
        clock: Clock,
        *,
        actor: str,
        log_key: bytes,
        limits: Limits,
        sequence: Sequencer | None = None,
    ) -> None:
        """``sequence``: None for a state and a log that nobody else has open."""
        self.state = state
        self.log = log
        self._clock = clock
        self._actor = actor
        self._sequence = sequence or OwnSequence(state, log, log_key)
        self._refusals = Refusals(limits)

    def turn(self) -> AbstractContextManager[None]:
        """Decide and commit inside this. Raises Unavailable where log or state can't be had."""
        return self._sequence.turn()

    def commit(self, kind: str, *, target: str, details: Details, changes: Sequence[Change]) -> Receipt:
        """Log an event and make its changes, in that order. Call it within a turn.

        When this returns, the entry is durable under a signed head, and its inclusion proof verified with our own log
        key. When it raises, no table changed. Raises Misuse for details that no entry can hold, and the error of the
        device that signs the log's heads while that is away; then nothing was logged.
        """

        # What no entry can hold is refused while nothing is announced; the longest number stands for the revision.
        body = self._event(kind, target=target, details={**details, "revision": _LONGEST_REVISION}, outcome="success")
        _encode(body)

        def encode(revision: int) -> bytes:
            body["unmapped"]["details"]["revision"] = revision
            return _encode(body)

        return self._sequence.commit(changes, encode)

    def append(self, kind: str, *, target: str, details: Details, outcome: Outcome = "success") -> Receipt:
        """Log an event that changes no state."""
        return self.log.append(self._encoded(kind, target=target, details=details, outcome=outcome))

    def append_soon(self, kind: str, *, target: str, details: Details, outcome: Outcome = "success") -> None:
        """``append`` without waiting: durable in about 50 ms, and never later than what this ledger logs after it.

        Only for what nothing is granted for unless a ``commit`` follows. A crash, or a log that can't be written, loses
        it together with whatever came after it.
        """
        self.log.append_soon(self._encoded(kind, target=target, details=details, outcome=outcome))

    def _encoded(self, kind: str, *, target: str, details: Details, outcome: Outcome = "success") -> bytes:
        return _encode(self._event(kind, target=target, details=details, outcome=outcome))

    def _event(self, kind: str, *, target: str, details: Details, outcome: Outcome) -> dict[str, Any]:
        return event(kind, actor=self._actor, target=target, outcome=outcome, details=details, now=self._clock())

    def refuse(self, kind: str, error: CloisterError, *, target: str, details: Details, about: About | None) -> None:
        """Log a refusal with the whole reason: the owner's log says everything, the answer to an outsider doesn't.

        At most so many a minute are written, so that nobody fills the disk by being refused; the rest is counted.
        ``about``: the contract behind the request, where its signatures were verified, and the stage; else None.
        """
        before = self._refusals.admit(about, now=self._clock())
        if before is not None:
            more: dict[str, str | int] = {"code": error.code, "reason": error.message, "suppressed_before": before}
            if isinstance(error, PolicyDenied):
                more |= error.log_details()  # for the owner, and for nobody who is refused
            self.append(kind, target=target, details={**details, **more}, outcome="failure")


def _encode(body: dict[str, Any]) -> bytes:
    try:
        return encode_event(body)
    except Malformed:
        raise Misuse(
            "event.details", "An audit event's details are text that every reader can show; give plain text."
        ) from None
