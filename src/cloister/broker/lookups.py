"""Reading rows of the state, as quickly as the database itself: a release looks up a few dozen.

SQLAlchemy builds a statement in a tenth of a millisecond, and its result in half of that; SQLite answers in a
hundredth. So texts are built once, and SQLite is asked directly. A PostgreSQL is farther away than all of this.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeAlias

from sqlalchemy import Connection, bindparam, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DatabaseError

from ..errors import Untrusted
from .tables import METADATA

__all__ = ["Mark", "SqlText", "compiled", "count_rows", "find_mark", "find_rows", "run_text"]

Mark: TypeAlias = tuple[int, str]
SqlText: TypeAlias = tuple[str, tuple[str, ...] | None]
"""A statement as its driver wants it, and the order of its parameters where they have no names."""

_DIALECTS = {"postgresql": postgresql.psycopg.dialect, "sqlite": sqlite.dialect}


def compiled(dialect: str, statement: Any) -> SqlText:
    made = statement.compile(dialect=_DIALECTS[dialect]())
    return str(made), None if made.positiontup is None else tuple(made.positiontup)


@lru_cache(maxsize=512)
def _select(dialect: str, table: str, names: tuple[str, ...], absent: tuple[str, ...], counted: bool) -> SqlText:
    t = METADATA.tables[table]
    rules = [*(t.c[name] == bindparam(name) for name in names), *(t.c[name].is_(None) for name in absent)]
    wanted = select(func.count()).select_from(t) if counted else select(t).order_by(*t.primary_key)
    return compiled(dialect, wanted.where(*rules))


@lru_cache(maxsize=64)
def _columns(table: str) -> tuple[str, ...]:
    return tuple(METADATA.tables[table].columns.keys())


def find_rows(connection: Connection, table: str, where: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows whose columns equal ``where``, ordered by key; see ``State.rows``."""
    names = _columns(table)
    return [dict(zip(names, row, strict=True)) for row in _matching(connection, table, where, counted=False)]


def count_rows(connection: Connection, table: str, where: Mapping[str, Any]) -> int:
    """How many rows ``find_rows`` would return."""
    ((number,),) = _matching(connection, table, where, counted=True)
    return int(number)


def _matching(connection: Connection, table: str, where: Mapping[str, Any], *, counted: bool) -> list[Any]:
    given = {name: value for name, value in where.items() if value is not None}
    absent = tuple(name for name in where if name not in given)
    sql, order = _select(connection.dialect.name, table, tuple(given), absent, counted)
    return run_text(connection, sql, given if order is None else tuple(given[name] for name in order))


def find_mark(connection: Connection) -> Mark:
    """See ``State.mark``."""
    sql = "SELECT name, value FROM progress WHERE name IN ('log_root', 'revision')"  # one statement, one moment
    found = dict(run_text(connection, sql, ()))
    try:
        return int(found["revision"]), found["log_root"]
    except (KeyError, ValueError):
        raise Untrusted("state.damaged", "The broker's state is damaged; restore it from a copy.") from None


def run_text(connection: Connection, sql: str, values: Any) -> list[Any]:
    """The rows that a statement in its driver's words returns, none for one that only writes."""
    if connection.dialect.name != "sqlite":
        result = connection.exec_driver_sql(sql, values)
        return list(result) if result.returns_rows else []
    driver: sqlite3.Connection | None = connection.connection.driver_connection
    try:
        if driver is None:
            raise sqlite3.ProgrammingError("the connection is closed")
        return driver.execute(sql, values).fetchall()
    except sqlite3.Error as error:
        raise DatabaseError(sql, None, error) from error  # what SQLAlchemy would have raised
