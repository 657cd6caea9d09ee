"""The broker's durable state: SQLite, and a write-ahead order that keeps it in step with the audit log.

Every logged change has a revision number. ``intend`` stores what will change, then the log takes an entry that
names the revision, then ``apply`` changes the tables and forgets the intent, in one transaction. So after a crash
either the log lacks the entry and nothing happened, or it has it and the intent says what to finish.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from sqlalchemy import Connection, Engine, create_engine, event, func, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DatabaseError

from ..crypto.merkle import EMPTY_ROOT
from ..errors import Misuse, Unavailable, Untrusted
from .tables import HINTS, LOGGED, METADATA

__all__ = ["ENTRY", "Change", "Intent", "Progress", "Row", "State"]

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


class State:
    """One SQLite file. Reads may come from any thread; the ledger makes writes one after the other."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._writing = threading.Lock()

    @classmethod
    def open(cls, path: Path, *, create: bool) -> State:
        """Raises Misuse if it exists (``create``) or is missing, Unavailable if SQLite can't use it."""
        if path.exists() == create:
            raise Misuse(
                "state.file", "There is a broker here already." if create else "There is no broker state here."
            )
        if create:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 10})
        event.listen(engine, "connect", _durable)
        state = cls(engine)
        try:
            with state._transaction() as connection:
                # Only hints may be missing in an older home. A logged table that is gone is refused, never made anew.
                METADATA.create_all(connection, None if create else [METADATA.tables[name] for name in HINTS])
                if create:
                    _set_progress(connection, Progress(0, 0, EMPTY_ROOT))
        except BaseException:
            state.close()
            raise
        return state

    def close(self) -> None:
        self._engine.dispose()

    # Reading.

    def rows(self, table: str, **where: Any) -> list[Row]:
        """Rows whose columns equal ``where``, ordered by key."""
        t = METADATA.tables[table]
        query = select(t).where(*(t.c[name] == value for name, value in where.items())).order_by(*t.primary_key)
        with self._reading() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def row(self, table: str, **where: Any) -> Row | None:
        found = self.rows(table, **where)
        return found[0] if found else None

    def older(self, table: str, epoch: int, *, least: int, limit: int) -> list[Row]:
        """At most ``limit`` rows with wrapped keys whose KEK's epoch is from ``least`` to below ``epoch``."""
        t = METADATA.tables[table]
        query = select(t).where(t.c.epoch < epoch, t.c.epoch >= least).order_by(*t.primary_key).limit(limit)
        with self._reading() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def count_older(self, table: str, epoch: int, *, least: int) -> int:
        """How many such rows there are."""
        t = METADATA.tables[table]
        query = select(func.count()).select_from(t).where(t.c.epoch < epoch, t.c.epoch >= least)
        with self._reading() as connection:
            return int(connection.execute(query).scalar_one())

    def progress(self) -> Progress:
        values = {row["name"]: row["value"] for row in self.rows("progress")}
        try:
            return Progress(int(values["revision"]), int(values["log_size"]), bytes.fromhex(values["log_root"]))
        except (KeyError, ValueError):
            raise Untrusted("state.damaged", "The broker's state is damaged; restore it from a copy.") from None

    def intents(self) -> list[Intent]:
        return [
            Intent(row["revision"], tuple(Change(**change) for change in json.loads(row["changes"])))
            for row in self.rows("intents")
        ]

    # Writing.

    def intend(self, changes: Sequence[Change]) -> Intent:
        """Announce changes under the next revision number. Numbers are never used twice."""
        with self._transaction() as connection:
            revision = int(_get(connection, "announced") or 0) + 1
            _put(connection, "progress", {"name": "announced", "value": str(revision)})
            text = json.dumps([{"table": c.table, "row": c.row} for c in changes])
            _put(connection, "intents", {"revision": revision, "changes": text})
        return Intent(revision, tuple(changes))

    def apply(self, intent: Intent, entry: int, log_size: int, log_root: bytes) -> None:
        """The log has the intent as entry ``entry``: make it so."""
        with self._transaction() as connection:
            for change in intent.changes:
                if change.table not in LOGGED:
                    raise Misuse("state.table", "Only logged tables change through an intent.")
                row = {name: entry if value == ENTRY else value for name, value in change.row.items()}
                _put(connection, change.table, row)
            _forget(connection, intent)
            _set_progress(connection, Progress(intent.revision, log_size, log_root))

    def abandon(self, intent: Intent) -> None:
        """The log does not have the intent: it never happened."""
        with self._transaction() as connection:
            _forget(connection, intent)

    def put_hint(self, table: str, row: Row) -> None:
        """Change a table that isn't logged."""
        if table in LOGGED:
            raise Misuse("state.table", "Logged tables change only through an intent.")
        with self._transaction() as connection:
            _put(connection, table, row)

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with self._writing, _reachable(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with _reachable(), self._engine.connect() as connection:
            yield connection


@contextmanager
def _reachable() -> Iterator[None]:
    try:
        yield
    except DatabaseError as error:
        if getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise Unavailable("storage.full", "The disk is full; free space, then try again.") from error
        raise Unavailable(
            "state.unreachable", "The broker's state can't be read or written; look at the disk."
        ) from error


def _durable(connection: Any, _: Any) -> None:
    """FULL: a commit that returned survives a loss of power. The default of WAL mode would not promise that."""
    for setting in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON", "trusted_schema=OFF"):
        connection.execute(f"PRAGMA {setting}").close()


def _put(connection: Connection, table: str, row: Row) -> None:
    statement = insert(METADATA.tables[table]).values(**row)
    keys = [column.name for column in METADATA.tables[table].primary_key]
    rest = {name: statement.excluded[name] for name in row if name not in keys}
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=rest))


def _get(connection: Connection, name: str) -> str | None:
    progress = METADATA.tables["progress"]
    return connection.execute(select(progress.c.value).where(progress.c.name == name)).scalar_one_or_none()


def _forget(connection: Connection, intent: Intent) -> None:
    intents = METADATA.tables["intents"]
    connection.execute(intents.delete().where(intents.c.revision == intent.revision))


def _set_progress(connection: Connection, progress: Progress) -> None:
    for name, value in (
        ("revision", str(progress.revision)),
        ("log_size", str(progress.log_size)),
        ("log_root", progress.log_root.hex()),
    ):
        _put(connection, "progress", {"name": name, "value": value})
