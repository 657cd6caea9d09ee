"""Writing rows of the state, within a transaction of the caller's. As in ``lookups``, texts are built once."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, bindparam, select
from sqlalchemy.dialects import postgresql, sqlite

from .lookups import SqlText, compiled, run_text
from .tables import METADATA

__all__ = ["forget_intent", "get_fact", "insert_into", "put_progress", "put_row"]


@lru_cache(maxsize=512)
def _put_text(dialect: str, table: str, names: tuple[str, ...]) -> SqlText:
    keys = [column.name for column in METADATA.tables[table].primary_key]
    statement = insert_into(dialect, table).values({name: bindparam(name) for name in names})
    rest = {name: statement.excluded[name] for name in names if name not in keys}
    return compiled(dialect, statement.on_conflict_do_update(index_elements=keys, set_=rest))


@lru_cache(maxsize=8)
def _get_text(dialect: str, lock: bool) -> SqlText:
    progress = METADATA.tables["progress"]
    query = select(progress.c.value).where(progress.c.name == bindparam("name"))
    return compiled(dialect, query.with_for_update() if lock else query)


def _run(connection: Connection, text: SqlText, values: Mapping[str, Any]) -> list[Any]:
    sql, order = text
    return run_text(connection, sql, dict(values) if order is None else tuple(values[name] for name in order))


def insert_into(dialect: str, table: str) -> sqlite.Insert | postgresql.Insert:
    into = METADATA.tables[table]
    return postgresql.insert(into) if dialect == "postgresql" else sqlite.insert(into)


def put_row(connection: Connection, table: str, row: Mapping[str, Any]) -> None:
    """Insert, or replace the one with the same key."""
    _run(connection, _put_text(connection.dialect.name, table, tuple(row)), row)


def get_fact(connection: Connection, name: str, *, lock: bool = False) -> str | None:
    """A value of ``progress``. ``lock``: the row, in PostgreSQL; SQLite has one writer anyway."""
    for (value,) in _run(connection, _get_text(connection.dialect.name, lock), {"name": name}):
        return str(value)
    return None


def forget_intent(connection: Connection, revision: int) -> None:
    intents = METADATA.tables["intents"]
    connection.execute(intents.delete().where(intents.c.revision == revision))


@lru_cache(maxsize=8)
def _progress_text(dialect: str, count: int) -> SqlText:
    rows: list[dict[str, Any]] = [
        {"name": bindparam(f"name{n}"), "value": bindparam(f"value{n}")} for n in range(count)
    ]
    statement = insert_into(dialect, "progress").values(rows)
    new = {"value": statement.excluded["value"]}
    return compiled(dialect, statement.on_conflict_do_update(index_elements=["name"], set_=new))


def put_progress(connection: Connection, **values: str) -> None:
    """Values of ``progress``, in one statement."""
    named = {f"name{n}": name for n, name in enumerate(values)}
    named |= {f"value{n}": value for n, value in enumerate(values.values())}
    _run(connection, _progress_text(connection.dialect.name, len(values)), named)
