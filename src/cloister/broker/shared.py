"""Replicas: several processes of one party over one PostgreSQL, which holds their state and their one log.

Each replica has a session of its own with the database. A turn takes a lock of that session, over all replicas, and
commits go over that very session: entry, signed head and changed rows in one transaction. So a replica that lost its
lock, because its connection broke or because it stood still and the server ended the session, can't commit any more;
there is no state in between, and nothing to finish after a crash. Each commit also checks that no other change came
since its turn began, whatever became of locks. Three of those, always taken in this order:

- running: shared by every replica while it runs; held alone while one of them changes the vault;
- turn: one at a time over all replicas, from reading to the commit;
- the head's row (``audit``): for the moment of an append, also of one outside a turn.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from ..audit import OutcomeUnknown, Receipt
from ..audit.database_store import DatabaseStore, Grown
from ..errors import CloisterError, Denied, Internal, Unavailable, Untrusted
from .config import Limits
from .database import BEGIN, PostgresDatabase, committed, reachable
from .seen import SeenHead
from .state import Change, Intent, State

__all__ = ["SharedSequence", "VaultMark"]

# Names of locks: 64 bits that no other program in the database is likely to use.
_RUNNING, _TURN = 0x636C6F6973740001, 0x636C6F6973740002

# Revision, and digest in hex, of the vault's file as this replica uses it.
VaultMark = tuple[int, str]


class SharedSequence:
    """``Sequencer`` over a PostgreSQL. ``mark``: of this replica's vault; it is compared whenever a session begins.
    ``seen``: what its home remembers of the log."""

    def __init__(
        self,
        database: PostgresDatabase,
        state: State,
        store: DatabaseStore,
        log_key: bytes,
        limits: Limits,
        *,
        mark: Callable[[], VaultMark],
        seen: SeenHead,
    ) -> None:
        self._database = database
        self._state = state
        self._store = store
        self._log_key = log_key
        self._rest = int(1000 * limits.turn_seconds)
        self._mark = mark
        self._seen = seen
        self._lock = threading.RLock()
        self._session: Connection | None = None
        self._turning = False
        self._since = 0  # the newest revision when the turn began, or of the last commit in it

    def close(self) -> None:
        """Gives the locks back, so that who starts or changes keys next need not wait until the server misses us."""
        with self._lock:
            try:
                self._seen.keep(self._store.known_head().note, now=True)
                if self._session is not None:
                    with suppress(Unavailable), self._dropping():
                        self._session.exec_driver_sql("SELECT pg_advisory_unlock_all()")
            finally:
                self._drop()

    # Turns and commits.

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Raises Unavailable where the database can't be reached or another replica holds the turn for too long."""
        with self._lock:
            if self._turning:
                raise Internal("state.turn", "A turn was begun within a turn; nothing was granted.")
            self._begin()
            self._turning = True
            try:
                yield
            finally:
                self._turning = False
                self._end()

    def _begin(self) -> None:
        # From here on the server itself ends a session that rests: a replica that was stopped, or cut off without a
        # word, neither keeps the others waiting nor finds its lock when it wakes up.
        self._ask_first(
            "set_config('idle_session_timeout', :rest, false), pg_advisory_lock(:turn)",
            rest=str(self._rest),
            turn=_TURN,
        )
        with self._dropping():
            self._since = self._state.announced(self._connected())

    def _ask_first(self, what: str, **values: Any) -> tuple[Any, ...]:
        """A server that restarted while nobody asked anything has forgotten the session: then in a new one, once."""
        for last in (False, True):
            fresh = self._session is None
            session = self._connected()
            try:
                with self._dropping():
                    return _ask(session, what, **values)
            except Unavailable as away:
                if last or fresh or away.code == "state.busy":
                    raise
        raise Internal("state.session", "The replica has no session; nothing was granted.")

    def _end(self) -> None:
        if self._session is not None:
            # An error has dropped the session, and with it the lock; what was committed is committed.
            with suppress(Unavailable), self._dropping():
                _ask(self._session, "pg_advisory_unlock(:turn), set_config('idle_session_timeout', '0', false)",
                     turn=_TURN)  # fmt: skip

    def commit(self, changes: Sequence[Change], encode: Callable[[int], bytes]) -> Receipt:
        """Where the database goes away amid the commit, this finds out what became of it before anything goes on."""
        if not self._turning:
            raise Internal("state.turn", "A change was made outside of a turn; nothing was granted.")
        session = self._connected()
        made: tuple[Grown, Receipt] | None = None
        try:
            with self._dropping(), _transaction(session):
                made = self._within(session, changes, encode)
        except OutcomeUnknown:
            if made is None or not self._store.find_out(made[0]):
                raise Unavailable(
                    "state.unreachable", "The database went away and nothing was logged or changed; try again."
                ) from None
        grown, receipt = made
        self._since += 1
        self._store.adopt(grown)
        self._seen.keep(receipt.checkpoint)
        return receipt

    def _within(
        self, session: Connection, changes: Sequence[Change], encode: Callable[[int], bytes]
    ) -> tuple[Grown, Receipt]:
        """All of one commit, but for the commit."""
        revision = self._state.announce(session)
        if revision != self._since + 1:
            # With the lock this can't be. Behind a pooler that hands sessions around there is no lock, and still
            # nothing is committed that was decided on what is true no more.
            raise Unavailable("state.overtaken", "Another replica changed the state within this turn; try again.")
        entry = encode(revision)
        grown = self._store.grow_within(session, (entry,))
        receipt = Receipt(entry, grown.first, grown.head.tree.inclusion(grown.first), grown.head.note)
        head = receipt.verify(self._store.origin, self._log_key)
        self._state.apply_within(session, Intent(revision, tuple(changes)), grown.first, head.size, head.root)
        return grown, receipt

    # The vault, which every replica has a copy of.

    @contextmanager
    def alone(self) -> Iterator[None]:
        """The lock is not kept by a thread, so that a slow device holds up nobody's turn."""
        with self._lock:
            (granted,) = self._ask_first("pg_try_advisory_lock(:running)", running=_RUNNING)
        if not granted:
            raise Denied(
                "replicas.running",
                "Another replica of this broker runs, and would be left with an old vault; stop it, change the keys, "
                "give it a copy of the new vault.json, and start it again.",
            )
        try:
            with self._lock, self._dropping():
                self._compare(self._connected())  # else an old file would be changed, too, before that is noticed
            yield
        finally:
            # Before another replica can start, and before anything is wrapped under a new key: which file it must have.
            with self._lock, self._dropping():
                self._compare(self._connected())
                _ask(self._connected(), "pg_advisory_unlock(:running)", running=_RUNNING)

    def _compare(self, session: Connection) -> None:
        """Two copies of one vault that were changed apart would lose keys, so all use the one that was used last."""
        revision, digest = self._mark()
        with _transaction(session):
            _ask(session, "pg_advisory_xact_lock(:turn)", turn=_TURN)
            known = self._state.vault_mark(session)
            if known is not None and revision < known[0]:
                raise Untrusted(
                    "vault.rollback", "The vault file is older than the one last used; copy the newest to this home."
                )
            if known is not None and revision == known[0] and digest != known[1]:
                raise Untrusted(
                    "vault.other_copy", "The vault file was changed apart from the one last used; copy that one here."
                )
            if (revision, digest) != known:
                self._state.put_vault_mark(session, revision, digest)

    # The session.

    def _connected(self) -> Connection:
        """Within the thread's lock. Never a new session within a turn: it would not have the turn."""
        if self._session is None:
            if self._turning:
                raise Unavailable("state.unreachable", "The database went away within this turn; try again.")
            with self._dropping():
                self._session = session = self._database.session()
                _ask(session, "pg_advisory_lock_shared(:running)", running=_RUNNING)
                self._compare(session)
            return session
        return self._session

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        """After anything but a plain refusal the session is in doubt, and its locks with it: it is not used again."""
        with reachable():
            try:
                yield
            except CloisterError as refusal:
                if isinstance(refusal, OutcomeUnknown | Untrusted):
                    self._drop()
                raise
            except BaseException:
                self._drop()
                raise

    def _drop(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            with suppress(SQLAlchemyError):
                session.invalidate()  # closes it, so that the server gives its locks to others
            session.close()


@contextmanager
def _transaction(session: Connection) -> Iterator[None]:
    session.exec_driver_sql(BEGIN)
    with committed(session):
        yield


def _ask(session: Connection, what: str, **values: Any) -> tuple[Any, ...]:
    return tuple(session.execute(text(f"SELECT {what}"), values).one())  # ``what`` stands in this file
