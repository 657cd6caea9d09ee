"""The order of logged changes, for a broker that has its state and its log for itself: announce, log, apply.

Two stores can't change in one step. So ``intend`` stores what will change, then the log takes an entry that names the
revision, then ``apply`` changes the tables and forgets the intent. After a crash either the log lacks the entry and
nothing happened, or it has it and the intent says what to finish.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

from ..audit import AuditLog, Receipt, parse_event, verify_checkpoint
from ..crypto.merkle import verify_consistency
from ..errors import Denied, Unavailable, Untrusted
from .state import Change, Intent, State

__all__ = ["OwnSequence", "Sequencer", "reconcile"]


class Sequencer(Protocol):
    """One turn at a time, over all that write to the same state."""

    def turn(self) -> AbstractContextManager[None]:
        """What is read within it stays true until it ends, but for what is committed in it."""
        ...

    def commit(self, changes: Sequence[Change], encode: Callable[[int], bytes]) -> Receipt:
        """Within a turn: log ``encode(revision)`` and make the changes. When this returns both are durable and the
        receipt was verified; when it raises, no table changed."""
        ...

    def alone(self) -> AbstractContextManager[None]:
        """For changes of the vault: no other replica runs until it ends. Raises Denied("replicas.running")."""
        ...


class OwnSequence:
    """``Sequencer`` over a state and a log of this process's own."""

    def __init__(self, state: State, log: AuditLog, log_key: bytes) -> None:
        self._state = state
        self._log = log
        self._log_key = log_key
        self._lock = threading.Lock()
        self._broken = False

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Raises Unavailable once the log could not be written, and the error of the device that signs its heads while
        that is away."""
        with self._lock:
            if self._broken:
                # Whether the last entry reached the disk is unknown until the log is opened again.
                raise Unavailable("audit.unwritable", "The audit log could not be written; mend the disk and restart.")
            self._log.settle()  # what was logged while the signer went away is told to the state below
            if self._state.intents():
                reconcile(self._state, self._log, self._log_key)
            yield

    def commit(self, changes: Sequence[Change], encode: Callable[[int], bytes]) -> Receipt:
        """What the log has of it although this raised is finished in the next turn or at the next start, and what it
        lacks is forgotten."""
        intent = self._state.intend(changes)
        try:
            receipt = self._log.append(encode(intent.revision))
        except (Denied, Unavailable):
            self._broken = not self._log.sound  # else only the signer is away, and the next turn can tell what became
            raise
        except BaseException:
            self._broken = True
            raise
        try:
            head = receipt.verify(self._log.origin, self._log_key)
        except BaseException:
            self._broken = True
            raise
        self._state.apply(intent, receipt.index, head.size, head.root)
        return receipt

    def alone(self) -> AbstractContextManager[None]:
        return nullcontext()  # the log's lock sees to it


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
