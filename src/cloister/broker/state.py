"""The broker's durable state: the rows that decisions are made from, in SQLite or in a shared PostgreSQL.

Every logged change has a revision number, and the log's entry names it. How a change comes in step with its entry is
``sequence``'s for a broker with a log of its own (``intend``, ``apply``, ``abandon``), and ``shared``'s for replicas
(``announce``, ``apply_within``).
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

from sqlalchemy import Connection, func, inspect, select, update
from sqlalchemy.schema import CreateIndex

from ..audit import Database
from ..crypto.merkle import EMPTY_ROOT
from ..errors import Misuse, Untrusted
from .database import PostgresDatabase, SqliteDatabase
from .lookups import Mark, count_rows, find_mark, find_rows
from .tables import HINTS, INDEXES, LOGGED, METADATA
from .writes import forget_intent, get_fact, insert_into, put_progress, put_row

__all__ = ["ENTRY", "Change", "Intent", "Progress", "Row", "State"]

T = TypeVar("T")
Row: TypeAlias = dict[str, Any]
_MOST_MADE = 1024  # revisions whose tables are remembered
ENTRY = "$entry"  # in a change's values: replaced by the index of the log entry that records it


@dataclass(frozen=True)
class Change:
    """Put this row into this table, replacing the one with the same key."""

    table: str
    row: Row


@dataclass(frozen=True)
class Intent:
    """What revision ``revision`` is going to change."""

    revision: int
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Progress:
    """The newest applied revision, and the log's size and root when it was applied."""

    revision: int
    log_size: int
    log_root: bytes


class _Database(Database, Protocol):
    def lazily(self) -> AbstractContextManager[Connection]: ...

    def rewrite(self) -> None: ...

    def close(self) -> None: ...


class State:
    """Reads may come from any thread; the ledger's sequence makes logged writes one after the other."""

    def __init__(self, database: _Database) -> None:
        """Private: ``open`` and ``shared`` have looked at what is there."""
        self._database = database
        self._local = threading.local()
        self._made: dict[int, frozenset[str]] = {}  # tables by revision, of those that this process applied last

    @classmethod
    def open(cls, path: Path, *, create: bool) -> State:
        """One SQLite file. Misuse if it exists (``create``) or is missing, Unavailable if SQLite can't use it."""
        if path.exists() == create:
            raise Misuse(
                "state.file", "There is a broker here already." if create else "There is no broker state here."
            )
        if create:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        state = cls(SqliteDatabase(path))
        try:
            with state._database.transaction() as connection:
                _make_tables(connection, create=create)
        except BaseException:
            state.close()
            raise
        return state

    @classmethod
    def shared(cls, database: PostgresDatabase) -> State:
        """What replicas share. It takes the database over, and closes it. Misuse where no broker was created in it."""
        try:
            with database.transaction() as connection:
                if not has_tables(connection):
                    raise Misuse("state.absent", "There is no broker in that database; create or migrate one first.")
                _make_tables(connection, create=False)
        except BaseException:
            database.close()
            raise
        return cls(database)

    @staticmethod
    def create_shared(connection: Connection) -> None:
        """The tables of a new broker, within the caller's transaction. Misuse where there is one already."""
        if has_tables(connection):
            raise taken()
        _make_tables(connection, create=True)

    def close(self) -> None:
        self._database.close()

    # Reading.

    def rows(self, table: str, **where: Any) -> list[Row]:
        """Rows whose columns equal ``where``, ordered by key."""
        held: Connection | None = getattr(self._local, "connection", None)
        if held is not None:
            return find_rows(held, table, where)
        return self._database.read(lambda c: find_rows(c, table, where))

    def glance(self, work: Callable[[], T]) -> T:
        """``work`` with one connection for all its reads in this thread: taking one costs more than a small read."""
        if getattr(self._local, "connection", None) is not None:
            return work()

        def held(connection: Connection) -> T:
            self._local.connection = connection
            try:
                return work()
            finally:
                self._local.connection = None

        return self._database.read(held)

    def row(self, table: str, **where: Any) -> Row | None:
        found = self.rows(table, **where)
        return found[0] if found else None

    def older(self, table: str, epoch: int, *, least: int, limit: int) -> list[Row]:
        """At most ``limit`` rows with wrapped keys whose KEK's epoch is from ``least`` to below ``epoch``."""
        t = METADATA.tables[table]
        query = select(t).where(t.c.epoch < epoch, t.c.epoch >= least).order_by(*t.primary_key).limit(limit)
        return self._database.read(lambda c: [dict(row) for row in c.execute(query).mappings()])

    def count_older(self, table: str, epoch: int, *, least: int) -> int:
        """How many such rows there are."""
        t = METADATA.tables[table]
        query = select(func.count()).select_from(t).where(t.c.epoch < epoch, t.c.epoch >= least)
        return self._database.read(lambda c: int(c.execute(query).scalar_one()))

    def count(self, table: str, **where: Any) -> int:
        """How many rows ``rows`` would return."""
        return self.glance(lambda: count_rows(self._local.connection, table, where))

    def mark(self) -> Mark:
        """The newest applied revision and the log's root with it, as they stand in the database now. While they stay,
        so do all logged tables: the root tells a revision from another one of the same number, as after a database was
        taken over by a copy that lacked the newest."""
        return self.glance(lambda: find_mark(self._local.connection))

    def touched(self, since: int, until: int) -> frozenset[str] | None:
        """The tables that changed after revision ``since`` up to ``until``. None where that can't be told: this process
        did not make all of these changes itself, they are too many, or there are none to tell it by."""
        revisions = range(since + 1, until + 1)
        if not 0 < len(revisions) <= _MOST_MADE or not all(r in self._made for r in revisions):
            return None
        return frozenset().union(*(self._made.get(r, frozenset(LOGGED)) for r in revisions))

    def progress(self) -> Progress:
        values = {row["name"]: row["value"] for row in self.rows("progress")}
        try:
            return Progress(int(values["revision"]), int(values["log_size"]), bytes.fromhex(values["log_root"]))
        except (KeyError, ValueError):
            raise Untrusted("state.damaged", "The broker's state is damaged; restore it from a copy.") from None

    @staticmethod
    def vault_mark(connection: Connection) -> tuple[int, str] | None:
        """Revision and digest (hex) of the vault's file that replicas used last; None before the first."""
        revision, _, digest = (get_fact(connection, "vault") or "").partition(":")
        return (int(revision), digest) if revision.isascii() and revision.isdigit() else None

    @staticmethod
    def put_vault_mark(connection: Connection, revision: int, digest: str) -> None:
        put_progress(connection, vault=f"{revision}:{digest}")

    def intents(self) -> list[Intent]:
        return [
            Intent(row["revision"], tuple(Change(**change) for change in json.loads(row["changes"])))
            for row in self.rows("intents")
        ]

    # Writing.

    def intend(self, changes: Sequence[Change]) -> Intent:
        """Announce changes under the next revision number. Numbers are never used twice."""
        with self._database.transaction() as connection:
            revision = self.announce(connection)
            text = json.dumps([{"table": c.table, "row": c.row} for c in changes])
            put_row(connection, "intents", {"revision": revision, "changes": text})
        return Intent(revision, tuple(changes))

    def next_revision(self) -> int:
        """What ``intend`` would announce. For who makes the announcement elsewhere, within the sequence's turn."""
        return self.glance(lambda: self.announced(self._local.connection)) + 1

    def apply(self, intent: Intent, entry: int, log_size: int, log_root: bytes, *, kept: bool = False) -> None:
        """The log has the intent as entry ``entry``: make it so.

        ``kept``: the log holds the changes as well, beside that entry, and this was never announced here. Then a loss
        of power may undo it, in the order of changes, until ``sync``: ``reconcile`` makes it again.
        """
        with self._database.lazily() if kept else self._database.transaction() as connection:
            # What is kept was announced nowhere but by ``next_revision``.
            announced = {"announced": str(intent.revision)} if kept else {}
            self.apply_within(connection, intent, entry, log_size, log_root, **announced)
            if not kept:
                forget_intent(connection, intent.revision)
        # Once it is so, and for a state of this process's own: replicas use the number of what failed again.
        self._made[intent.revision] = frozenset(change.table for change in intent.changes)
        self._made.pop(intent.revision - _MOST_MADE, None)

    def finish(
        self, logged: Iterable[tuple[Intent, int]], never: Iterable[Intent], log_size: int, log_root: bytes
    ) -> None:
        """``apply`` all of these, each with its entry, and ``abandon`` the others, in one durable step: a crash between
        two of them would leave one undone that the size of the log says is done."""
        with self._database.transaction() as connection:
            for intent, entry in logged:
                self.apply_within(connection, intent, entry, log_size, log_root)
                forget_intent(connection, intent.revision)
                if self.announced(connection) < intent.revision:
                    put_progress(connection, announced=str(intent.revision))
            for intent in never:
                forget_intent(connection, intent.revision)

    def sync(self) -> None:
        """What was applied so far is durable when this returns.

        By a change that syncs. It has to be one: SQLite neither writes nor syncs for a row that stays what it was.
        """
        with self._database.transaction() as connection:
            count = int(get_fact(connection, "synced") or 0) + 1
            put_progress(connection, synced=str(count))

    def rewrite(self) -> None:
        """``sync`` for a state that was left perhaps after a sync that failed: it is written anew."""
        self._database.rewrite()

    def abandon(self, intent: Intent) -> None:
        """The log does not have the intent: it never happened."""
        with self._database.transaction() as connection:
            forget_intent(connection, intent.revision)

    @staticmethod
    def announced(connection: Connection) -> int:
        """The highest revision number that was given out."""
        return int(get_fact(connection, "announced") or 0)

    @staticmethod
    def announce(connection: Connection) -> int:
        """The next revision number. Whoever else wants one waits until this transaction ends."""
        revision = int(get_fact(connection, "announced", lock=True) or 0) + 1
        put_progress(connection, announced=str(revision))
        return revision

    @staticmethod
    def apply_within(
        connection: Connection, intent: Intent, entry: int, log_size: int, log_root: bytes, **facts: str
    ) -> None:
        """``apply`` within the caller's transaction, and these facts of ``progress`` with it."""
        for change in intent.changes:
            if change.table not in LOGGED:
                raise Misuse("state.table", "Only logged tables change through an intent.")
            row = {name: entry if value == ENTRY else value for name, value in change.row.items()}
            put_row(connection, change.table, row)
        done = {"revision": str(intent.revision), "log_size": str(log_size), "log_root": log_root.hex()}
        put_progress(connection, **done, **facts)

    def put_hint(self, table: str, row: Row) -> None:
        """Change a table that isn't logged."""
        if table in LOGGED:
            raise Misuse("state.table", "Logged tables change only through an intent.")
        with self._database.transaction() as connection:
            put_row(connection, table, row)

    def swap_head(self, party: str, old: str | None, new: str) -> bool:
        """Remember ``new`` as the newest head of ``party``'s log if that still is ``old`` (None: nothing).

        Another replica may have accepted one meanwhile; then nothing changes, and this is False.
        """
        heads = METADATA.tables["heads"]
        with self._database.transaction() as connection:
            if old is not None:
                known = update(heads).where(heads.c.party == party, heads.c.note == old)
                return connection.execute(known.values(note=new)).rowcount == 1
            fresh = insert_into(connection.dialect.name, "heads").values(party=party, note=new).on_conflict_do_nothing()
            return connection.execute(fresh.returning(heads.c.party)).first() is not None


def taken() -> Misuse:
    return Misuse("state.taken", "There is a broker in that database already; give each party its own.")


def has_tables(connection: Connection) -> bool:
    """Whether any of a broker's tables is there."""
    return not set(METADATA.tables).isdisjoint(inspect(connection).get_table_names())


def _make_tables(connection: Connection, *, create: bool) -> None:
    # Only hints may be missing in an older home. A logged table that is gone is refused, never made anew.
    METADATA.create_all(connection, None if create else [METADATA.tables[name] for name in HINTS])
    for index in INDEXES:
        connection.execute(CreateIndex(index, if_not_exists=True))  # older homes lack them
    if create:
        put_progress(connection, revision="0", log_size="0", log_root=EMPTY_ROOT.hex(), announced="0")
