"""Look-ups: by what the database has an index for, counted or read alike, and refused in our own words."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.broker import database
from cloister.broker.lookups import _select
from cloister.broker.state import Change, State
from cloister.broker.tables import INDEXES
from cloister.crypto.merkle import EMPTY_ROOT
from cloister.errors import Unavailable, Untrusted


def job(number: int, contract: str) -> Change:
    row = {
        "digest": f"{number:064x}",
        "contract": contract,
        "envelope": "e",
        "instance": "i",
        "step": None,
        "root": None,
    }
    return Change("jobs", row)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    made = State.open(tmp_path / "state.db", create=True)
    changes = [job(number, "a" if number % 3 else "b") for number in range(9)]
    made.apply(made.intend(changes), 0, 1, EMPTY_ROOT)
    yield made
    made.close()


@pytest.mark.parametrize(
    "where", [{}, {"contract": "a"}, {"contract": "c"}, {"contract": "b", "step": None}, {"step": 1}]
)
def test_what_is_counted_is_what_is_read(state: State, where: dict[str, Any]) -> None:
    assert state.count("jobs", **where) == len(state.rows("jobs", **where))


@pytest.mark.parametrize(
    ("table", "column"), [("jobs", "contract"), ("instances", "job"), ("contracts", "name"), ("permits", "instance")]
)
def test_a_release_reads_no_whole_table(state: State, tmp_path: Path, table: str, column: str) -> None:
    """Else it would take longer with every run there ever was."""
    sql, _ = _select("sqlite", table, (column,), (), False)
    with sqlite3.connect(tmp_path / "state.db") as direct:
        plan = " ".join(row[3] for row in direct.execute(f"EXPLAIN QUERY PLAN {sql}", ("x",)))
    direct.close()
    assert "SEARCH" in plan, plan
    assert "SCAN" not in plan, plan


def test_an_older_home_gets_its_indexes(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    State.open(path, create=True).close()
    direct = sqlite3.connect(path)
    for index in INDEXES:
        direct.execute(f"DROP INDEX {index.name}")
    direct.commit()
    State.open(path, create=False).close()
    found = {row[0] for row in direct.execute("SELECT name FROM sqlite_master WHERE type = 'index'")}
    direct.close()
    assert {str(index.name) for index in INDEXES} <= found


def test_a_table_that_is_gone_is_our_own_error(state: State, tmp_path: Path) -> None:
    direct = sqlite3.connect(tmp_path / "state.db")
    direct.execute("DROP TABLE jobs")
    direct.commit()
    direct.close()
    with pytest.raises(Unavailable) as caught:
        state.rows("jobs")
    assert caught.value.code == "state.unreachable"


@pytest.mark.parametrize("damage", ["DELETE FROM progress WHERE name = 'log_root'", "UPDATE progress SET value = 'x'"])
def test_a_mark_that_is_gone(state: State, tmp_path: Path, damage: str) -> None:
    direct = sqlite3.connect(tmp_path / "state.db")
    direct.execute(damage)
    direct.commit()
    direct.close()
    with pytest.raises(Untrusted) as caught:
        state.mark()
    assert caught.value.code == "state.damaged"


def test_the_mark_moves_with_every_change(state: State) -> None:
    before = state.mark()
    state.put_hint("peers", {"name": "lab", "address": "x"})
    assert state.mark() == before, "no logged table changed"
    state.apply(state.intend([job(20, "a")]), 1, 2, b"\x01" * 32)
    after = state.mark()
    assert after[0] > before[0]
    assert after[1] == "01" * 32
    assert state.touched(before[0], after[0]) == {"jobs"}


def test_changes_of_before_this_process_are_not_told(tmp_path: Path, state: State) -> None:
    again = State.open(tmp_path / "state.db", create=False)
    try:
        revision = again.mark()[0]
        assert again.touched(revision, revision) is None, "it may be another revision of that number"
        assert again.touched(revision - 1, revision) is None
        assert again.touched(revision, revision - 1) is None
    finally:
        again.close()


def test_a_state_that_somebody_else_writes_is_busy_and_not_broken(
    tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = database.create_engine
    hurry = {"connect_args": {"timeout": 0}}
    monkeypatch.setattr(database, "create_engine", lambda url, **more: real(url, **{**more, **hurry}))
    hasty = State.open(tmp_path / "state.db", create=False)
    other = sqlite3.connect(tmp_path / "state.db")
    other.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(Unavailable) as caught:
            hasty.sync()
        assert caught.value.code == "state.busy"
        other.rollback()
        hasty.sync()
        hasty.rewrite()
    finally:
        other.close()
        hasty.close()
