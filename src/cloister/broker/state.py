"""The broker's durable state: the rows that decisions are made from, in SQLite or in a shared PostgreSQL.

Every logged change has a revision number, and the log's entry names it. How a change comes in step with its entry is
``sequence``'s for a broker with a log of its own (``intend``, ``apply``, ``abandon``), and ``shared``'s for replicas
(``announce``, ``apply_within``).
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

from sqlalchemy import Connection, bindparam, func, inspect, select, update
from sqlalchemy.dialects import postgresql, sqlite

from ..audit import Database
from ..crypto.merkle import EMPTY_ROOT
from ..errors import Misuse, Untrusted
from .database import PostgresDatabase, SqliteDatabase
from .tables import HINTS, LOGGED, METADATA

__all__ = ["ENTRY", "Change", "Intent", "Progress", "Row", "State"]

T = TypeVar("T")
Row: TypeAlias = dict[str, Any]
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
    def close(self) -> None: ...


class State:
    """Reads may come from any thread; the ledger's sequence makes logged writes one after the other."""

    def __init__(self, database: _Database) -> None:
        """Private: ``open`` and ``shared`` have looked at what is there."""
        self._database = database
        self._local = threading.local()

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
            return _rows(held, table, where)
        return self._database.read(lambda c: _rows(c, table, where))

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

    def progress(self) -> Progress:
        values = {row["name"]: row["value"] for row in self.rows("progress")}
        try:
            return Progress(int(values["revision"]), int(values["log_size"]), bytes.fromhex(values["log_root"]))
        except (KeyError, ValueError):
            raise Untrusted("state.damaged", "The broker's state is damaged; restore it from a copy.") from None

    @staticmethod
    def vault_mark(connection: Connection) -> tuple[int, str] | None:
        """Revision and digest (hex) of the vault's file that replicas used last; None before the first."""
        revision, _, digest = (_get(connection, "vault") or "").partition(":")
        return (int(revision), digest) if revision.isascii() and revision.isdigit() else None

    @staticmethod
    def put_vault_mark(connection: Connection, revision: int, digest: str) -> None:
        _put(connection, "progress", {"name": "vault", "value": f"{revision}:{digest}"})

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
            _put(connection, "intents", {"revision": revision, "changes": text})
        return Intent(revision, tuple(changes))

    def apply(self, intent: Intent, entry: int, log_size: int, log_root: bytes) -> None:
        """The log has the intent as entry ``entry``: make it so."""
        with self._database.transaction() as connection:
            self.apply_within(connection, intent, entry, log_size, log_root)
            _forget(connection, intent)

    def abandon(self, intent: Intent) -> None:
        """The log does not have the intent: it never happened."""
        with self._database.transaction() as connection:
            _forget(connection, intent)

    @staticmethod
    def announced(connection: Connection) -> int:
        """The highest revision number that was given out."""
        return int(_get(connection, "announced") or 0)

    @staticmethod
    def announce(connection: Connection) -> int:
        """The next revision number. Whoever else wants one waits until this transaction ends."""
        revision = int(_get(connection, "announced", lock=True) or 0) + 1
        _put(connection, "progress", {"name": "announced", "value": str(revision)})
        return revision

    @staticmethod
    def apply_within(connection: Connection, intent: Intent, entry: int, log_size: int, log_root: bytes) -> None:
        """``apply`` within the caller's transaction."""
        for change in intent.changes:
            if change.table not in LOGGED:
                raise Misuse("state.table", "Only logged tables change through an intent.")
            row = {name: entry if value == ENTRY else value for name, value in change.row.items()}
            _put(connection, change.table, row)
        _set_progress(connection, Progress(intent.revision, log_size, log_root))

    def put_hint(self, table: str, row: Row) -> None:
        """Change a table that isn't logged."""
        if table in LOGGED:
            raise Misuse("state.table", "Logged tables change only through an intent.")
        with self._database.transaction() as connection:
            _put(connection, table, row)

    def swap_head(self, party: str, old: str | None, new: str) -> bool:
        """Remember ``new`` as the newest head of ``party``'s log if that still is ``old`` (None: nothing).

        Another replica may have accepted one meanwhile; then nothing changes, and this is False.
        """
        heads = METADATA.tables["heads"]
        with self._database.transaction() as connection:
            if old is not None:
                known = update(heads).where(heads.c.party == party, heads.c.note == old)
                return connection.execute(known.values(note=new)).rowcount == 1
            fresh = _insert(connection.dialect.name, "heads").values(party=party, note=new).on_conflict_do_nothing()
            return connection.execute(fresh.returning(heads.c.party)).first() is not None


def taken() -> Misuse:
    return Misuse("state.taken", "There is a broker in that database already; give each party its own.")


def has_tables(connection: Connection) -> bool:
    """Whether any of a broker's tables is there."""
    return not set(METADATA.tables).isdisjoint(inspect(connection).get_table_names())


def _make_tables(connection: Connection, *, create: bool) -> None:
    # Only hints may be missing in an older home. A logged table that is gone is refused, never made anew.
    METADATA.create_all(connection, None if create else [METADATA.tables[name] for name in HINTS])
    if create:
        _set_progress(connection, Progress(0, 0, EMPTY_ROOT))
        _put(connection, "progress", {"name": "announced", "value": "0"})


_DIALECTS = {"postgresql": postgresql.psycopg.dialect, "sqlite": sqlite.dialect}


# SQLAlchemy builds a statement in a tenth of a millisecond, and a release has sixty: the text of each is kept.


@lru_cache(maxsize=512)
def _select_text(
    dialect: str, table: str, names: tuple[str, ...], absent: tuple[str, ...]
) -> tuple[str, tuple[str, ...] | None]:
    t = METADATA.tables[table]
    rules = [*(t.c[name] == bindparam(name) for name in names), *(t.c[name].is_(None) for name in absent)]
    return _text(dialect, select(t).where(*rules).order_by(*t.primary_key))


@lru_cache(maxsize=512)
def _put_text(dialect: str, table: str, names: tuple[str, ...]) -> tuple[str, tuple[str, ...] | None]:
    keys = [column.name for column in METADATA.tables[table].primary_key]
    statement = _insert(dialect, table).values({name: bindparam(name) for name in names})
    rest = {name: statement.excluded[name] for name in names if name not in keys}
    return _text(dialect, statement.on_conflict_do_update(index_elements=keys, set_=rest))


def _text(dialect: str, statement: Any) -> tuple[str, tuple[str, ...] | None]:
    """What the driver wants, and the order of its parameters where they have no names."""
    compiled = statement.compile(dialect=_DIALECTS[dialect]())
    return str(compiled), None if compiled.positiontup is None else tuple(compiled.positiontup)


def _run(connection: Connection, text: tuple[str, tuple[str, ...] | None], values: Mapping[str, Any]) -> Any:
    sql, order = text
    return connection.exec_driver_sql(sql, dict(values) if order is None else tuple(values[name] for name in order))


def _rows(connection: Connection, table: str, where: Mapping[str, Any]) -> list[Row]:
    given = {name: value for name, value in where.items() if value is not None}
    absent = tuple(name for name in where if name not in given)
    found = _run(connection, _select_text(connection.dialect.name, table, tuple(given), absent), given)
    names = tuple(found.keys())
    return [dict(zip(names, row, strict=True)) for row in found]


def _insert(dialect: str, table: str) -> sqlite.Insert | postgresql.Insert:
    into = METADATA.tables[table]
    return postgresql.insert(into) if dialect == "postgresql" else sqlite.insert(into)


def _put(connection: Connection, table: str, row: Row) -> None:
    _run(connection, _put_text(connection.dialect.name, table, tuple(row)), row)


def _get(connection: Connection, name: str, *, lock: bool = False) -> str | None:
    """``lock``: the row, in PostgreSQL; SQLite has one writer anyway."""
    progress = METADATA.tables["progress"]
    query = select(progress.c.value).where(progress.c.name == name)
    return connection.execute(query.with_for_update() if lock else query).scalar_one_or_none()


def _forget(connection: Connection, intent: Intent) -> None:
    intents = METADATA.tables["intents"]
    connection.execute(intents.delete().where(intents.c.revision == intent.revision))


def _set_progress(connection: Connection, progress: Progress) -> None:
    values = {
        "revision": str(progress.revision),
        "log_size": str(progress.log_size),
        "log_root": progress.log_root.hex(),
    }
    statement = _insert(connection.dialect.name, "progress").values(
        [{"name": n, "value": v} for n, v in values.items()]
    )
    new = {"value": statement.excluded["value"]}
    connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_=new))
