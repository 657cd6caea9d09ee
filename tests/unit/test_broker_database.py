"""Connections that are kept at hand: none is older than what was committed, none that failed is used again."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import Connection, text

from cloister.broker.database import SqliteDatabase
from cloister.broker.lookups import run_text
from cloister.errors import Unavailable

COUNT = "SELECT COUNT(*) FROM t"


def count(connection: Connection) -> int:
    return int(run_text(connection, COUNT, ())[0][0])


@pytest.fixture
def database(tmp_path: Path) -> Iterator[SqliteDatabase]:
    made = SqliteDatabase(tmp_path / "state.db")
    with made.transaction() as connection:
        run_text(connection, "CREATE TABLE t (n INTEGER NOT NULL)", ())
    yield made
    made.close()


@pytest.mark.parametrize("way", ["transaction", "lazily"])
def test_a_kept_connection_sees_what_was_committed_last(database: SqliteDatabase, way: str) -> None:
    seen: list[Connection] = []

    def look(connection: Connection) -> int:
        seen.append(connection)
        return count(connection)

    for number in range(5):
        assert database.read(look) == number
        with getattr(database, way)() as connection:
            run_text(connection, "INSERT INTO t VALUES (?)", (number,))
            assert database.read(look) == number  # not what isn't committed
    assert len(set(map(id, seen))) == 1


def test_another_process_is_seen_too(database: SqliteDatabase, tmp_path: Path) -> None:
    assert database.read(count) == 0
    direct = sqlite3.connect(tmp_path / "state.db")
    direct.execute("INSERT INTO t VALUES (1)")
    direct.commit()
    direct.close()
    assert database.read(count) == 1


def test_a_query_that_began_a_transaction_does_not_leave_it_open(database: SqliteDatabase) -> None:
    def query(connection: Connection) -> int:
        return int(connection.execute(text(COUNT)).scalar_one())

    assert database.read(query) == 0
    assert not database.read(lambda connection: connection.in_transaction())


@pytest.mark.parametrize("failing", ["SELECT * FROM absent", "not SQL"])
def test_one_that_failed_is_not_used_again(database: SqliteDatabase, failing: str) -> None:
    seen: list[Connection] = []

    def fail(connection: Connection) -> list[Any]:
        seen.append(connection)
        return run_text(connection, failing, ())

    with pytest.raises(Unavailable) as caught:
        database.read(fail)
    assert caught.value.code == "state.unreachable"
    assert seen[0].closed
    assert database.read(count) == 0


def test_a_lazy_change_that_fails_leaves_nothing(database: SqliteDatabase) -> None:

    def change(*values: int | None) -> None:
        with database.lazily() as connection:
            for value in values:
                run_text(connection, "INSERT INTO t VALUES (?)", (value,))
            if 1 in values:
                raise RuntimeError("after it")

    for values, error in (((7, 1), RuntimeError), ((7, None), Unavailable)):
        with pytest.raises(error):
            change(*values)
        assert database.read(count) == 0
    change(7)
    assert database.read(count) == 1


def test_few_are_kept_however_many_read_at_once(database: SqliteDatabase) -> None:
    together = threading.Barrier(8)

    def look(connection: Connection) -> int:
        together.wait(30)
        return count(connection)

    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(database.read(look))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [0] * 8
    assert len(database._kept) == 4
    database.close()
    assert database._kept == []
    assert database.read(count) == 0  # whoever is late still gets its answer, and nothing is kept
    assert database._kept == []


def test_a_connection_that_is_gone_is_no_empty_answer() -> None:
    """Else a write would be lost without a word."""
    gone: Any = SimpleNamespace(
        dialect=SimpleNamespace(name="sqlite"), connection=SimpleNamespace(driver_connection=None)
    )
    with pytest.raises(Exception, match="closed"):
        run_text(gone, "INSERT INTO t VALUES (1)", ())
