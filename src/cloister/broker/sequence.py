"""The order of logged changes, for a broker that has its state and its log for itself: log, then apply.

Two stores can't change in one step. So what will change is durable no later than the entry that names its revision, and
the tables change after it. After a crash either the log lacks the entry and nothing happened, or it has it and what to
finish is known. There are two ways to keep that:

- beside the entry, in the log's journal, made durable by the very same sync; the tables then need no sync of their own,
  because the log keeps the changes until the state has synced them (``KEPT_MOST`` of them at most);
- where rows may hold a wrapped key or matter before log and state are brought together: in the state's own table of
  intents, synced before the entry is logged (``intend``, ``apply``, ``abandon``). Nothing of a key is ever in the log's
  folder.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, Protocol

from sqlalchemy import Column

from ..audit import LIMITS, AuditLog, Receipt, parse_event, verify_checkpoint
from ..crypto.merkle import verify_consistency
from ..errors import Denied, Unavailable, Untrusted
from .state import Change, Intent, State
from .tables import LOGGED

__all__ = ["KEPT_MOST", "OwnSequence", "Sequencer", "reconcile"]

KEPT_MOST = 128
# What releases, leases and permits change: signed documents, digests, public keys and numbers.
_BESIDE = frozenset({"contracts", "instances", "jobs", "permits"})


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
        self._unfinished = True  # for all that is known here
        self._behind = False  # the log has what the tables lack

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Raises Unavailable once the log could not be written."""
        with self._lock:
            if self._broken:
                # Whether the last entry, or the last change, reached the disk is unknown until both are opened again.
                raise Unavailable(
                    "audit.unwritable", "The audit log or the state could not be written; mend the disk and restart."
                )
            if self._unfinished:
                reconcile(self._state, self._log, self._log_key)
                self._unfinished = self._behind = False
            yield

    def commit(self, changes: Sequence[Change], encode: Callable[[int], bytes]) -> Receipt:
        """What the log has of it although this raised is finished in the next turn or at the next start, and what it
        lacks is forgotten."""
        if self._behind:
            # What the rest of this turn was decided on is not true any more, and a newer change would hide the older.
            raise Unavailable("state.unreachable", "The broker's state lacks what was logged last; try again.")
        self._make_room()
        before, self._unfinished = self._unfinished, True
        intent, aside = self._announce(changes)
        try:
            receipt = self._log.append(encode(intent.revision), aside=aside)
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
        self._behind = True
        self._state.apply(intent, receipt.index, head.size, head.root, kept=bool(aside))
        self._unfinished, self._behind = before, False
        return receipt

    def _announce(self, changes: Sequence[Change]) -> tuple[Intent, bytes]:
        """And what the log shall keep of it: nothing, where the state has it durably already."""
        if all(change.table in _BESIDE for change in changes):
            intent = Intent(self._state.next_revision(), tuple(changes))
            aside = _encode(intent)
            if len(aside) <= LIMITS.aside:
                return intent, aside
        return self._state.intend(changes), b""

    def _make_room(self) -> None:
        """Before the next commit: so many are made again after a loss of power, and no more."""
        asides = self._log.asides
        if len(asides) >= KEPT_MOST or sum(map(len, asides.values())) > LIMITS.asides // 2:
            self._forget()

    def _forget(self) -> None:
        """All of the log is applied: sync that, and then the log need not keep it any more."""
        size = self._log.size
        try:
            self._state.sync()
        except Unavailable as refused:
            # After a failed sync the next one may succeed although the disk lacks what the first was for.
            self._broken = refused.code not in ("state.busy", "storage.full")
            raise
        self._log.forget_asides(size)

    def alone(self) -> AbstractContextManager[None]:
        return nullcontext()  # the log's lock sees to it

    def close(self) -> None:
        """A log at rest keeps nothing beside it, so that an older copy of the state is noticed when it starts."""
        with self._lock:
            if self._log.asides and not (self._broken or self._unfinished):
                with suppress(Unavailable):  # else the log keeps it, and the next start uses it
                    self._forget()


def _encode(intent: Intent) -> bytes:
    changes = [{"table": change.table, "row": change.row} for change in intent.changes]
    return json.dumps({"revision": intent.revision, "changes": changes}).encode()


def _decode(aside: bytes) -> Intent:
    try:
        found = json.loads(aside)
        intent = Intent(found["revision"], tuple(Change(**change) for change in found["changes"]))
        if type(intent.revision) is not int or not all(_fits(change) for change in intent.changes):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Untrusted("log.aside", "What the audit log's journal keeps for the state is damaged.") from None
    return intent


def _fits(change: Change) -> bool:
    """A row of a table that may be here at all: a pinned key or a wrapped one is never taken from a journal."""
    if change.table not in _BESIDE:
        return False
    columns = LOGGED[change.table].columns
    return set(change.row) <= set(columns.keys()) and all(_holds(c, change.row.get(c.name)) for c in columns)


def _holds(column: Column[Any], value: object) -> bool:
    """Whether a database takes the value."""
    if value is None:
        return bool(column.nullable)
    if isinstance(value, str):
        return value.encode(errors="replace").decode() == value  # no half of a character
    return type(value) is int and -(2**63) <= value < 2**63


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
    pending, asides = {intent.revision: intent for intent in state.intents()}, log.asides
    finished: list[tuple[Intent, int]] = []
    for index in range(known.log_size, head.size):
        revision = parse_event(log.entry(index)).details.get("revision")
        if revision is None:
            continue
        intent: Intent | None = None
        if index in asides:
            intent = _decode(asides[index])
        elif isinstance(revision, int):
            intent = pending.pop(revision, None)
        if intent is None or intent.revision != revision:
            raise Untrusted(
                "state.rollback", "The audit log has changes that the broker's state lacks: an older copy was put back."
            )
        finished.append((intent, index))
    if finished or pending:
        state.finish(finished, pending.values(), head.size, head.root)
    if asides:
        state.rewrite()
        log.forget_asides(head.size)
    return [intent for intent, _ in finished]
