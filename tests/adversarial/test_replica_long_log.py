"""A log that is long must not slow a release down, or an attacker makes it long: counted in statements and rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from cloister.audit import AuditLog, check_log, export_log
from cloister.audit.database_store import DatabaseStore
from cloister.audit.rows import create_log
from cloister.broker.database import PostgresDatabase
from cloister.crypto import SigningKey
from tests.postgres import Postgres, address
from tests.replicas import QUICK

pytest_plugins = ["tests.broker_fixtures", "tests.postgres_fixtures"]

ORIGIN = "hospital.example/audit"
KEY = SigningKey(b"\1" * 32)
ENTRY = b"as long as a short event would be: " + b"x" * 60


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Statements, and the rows that they gave or changed."""
    found = {"statements": 0, "rows": 0}

    def after(_c: Any, cursor: Any, *_: Any) -> None:
        found["statements"] += 1
        found["rows"] += max(cursor.rowcount, 0)

    event.listen(Engine, "after_cursor_execute", after)
    try:
        yield found
    finally:
        event.remove(Engine, "after_cursor_execute", after)


@pytest.fixture
def database(tmp_path: Path, postgres: Postgres) -> Iterator[PostgresDatabase]:
    name = postgres.database()
    found = PostgresDatabase(address(tmp_path / "url", postgres.url(name)), QUICK)
    with found.transaction() as connection:
        create_log(connection, origin=ORIGIN, signer=KEY)
    yield found
    found.close()
    postgres.drop(name)


def opened(database: PostgresDatabase) -> AuditLog:
    return AuditLog(DatabaseStore(database, origin=ORIGIN, signer=KEY, patience=1.0))


def costs(database: PostgresDatabase) -> dict[str, dict[str, int]]:
    """Of opening, of an append, and of an append after another replica's."""
    with counted() as opening:
        log = opened(database)
    with counted() as appending:
        log.append(ENTRY)
    other = opened(database)
    other.append(ENTRY)
    with counted() as after_another:
        log.append(ENTRY)
    return {"open": opening, "append": appending, "after another": after_another}


def grow(log: AuditLog, size: int) -> None:
    while log.size < size:
        log.append_many([ENTRY] * min(4000, size - log.size))


def compare(short: dict[str, dict[str, int]], long: dict[str, dict[str, int]]) -> None:
    for what, cost in long.items():
        # Full tiles of the levels that the short log lacks, which are read once; and one partial tile a level.
        assert cost["statements"] <= short[what]["statements"] + 6, what
        assert cost["rows"] <= short[what]["rows"] + 8 * 256, what


def test_a_log_over_two_levels(database: PostgresDatabase, tmp_path: Path) -> None:
    log = opened(database)
    grow(log, 300)
    short = costs(database)
    grow(log, 3_000)
    compare(short, costs(database))
    for index in (0, 255, 256, 2_999):
        log.receipt(index).verify(ORIGIN, KEY.public)
    export_log(log, tmp_path / "export")
    check_log(tmp_path / "export", ORIGIN, KEY.public)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_log_over_three_levels(database: PostgresDatabase, tmp_path: Path) -> None:
    log = opened(database)
    grow(log, 1_000)
    short = costs(database)
    grow(log, 66_000)
    compare(short, costs(database))
    for index in (0, 65_535, 65_536, 65_999):
        log.receipt(index).verify(ORIGIN, KEY.public)
    export_log(log, tmp_path / "export")
    assert check_log(tmp_path / "export", ORIGIN, KEY.public).checkpoint.size == log.size
