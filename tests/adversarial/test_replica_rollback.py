"""The database is put back to an older copy, or a row of the log is changed in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloister.audit import AuditLog
from cloister.audit.database_store import DatabaseStore
from cloister.audit.rows import create_log
from cloister.broker.database import PostgresDatabase
from cloister.crypto import SigningKey
from cloister.errors import CloisterError, Unavailable, Untrusted
from tests.broker_world import introduce, serving
from tests.postgres import Postgres, address
from tests.replicas import QUICK, SharedWorld, checked

pytest_plugins = ["tests.broker_fixtures", "tests.postgres_fixtures"]

KEY = SigningKey(b"\1" * 32)


@pytest.fixture
def world(shared_world: SharedWorld) -> SharedWorld:
    return shared_world


def put_back(world: SharedWorld, copy: str) -> None:
    """The copy takes the database's place, and its name."""
    world.server.drop(world.database)
    with world.server.connect() as connection:
        connection.execute(f"ALTER DATABASE {copy} RENAME TO {world.database}")


def copied(world: SharedWorld) -> str:
    """As a backup takes it, while no broker runs."""
    world.hospital.broker.close()
    copy = world.server.database(world.database)
    world.hospital.start()
    return copy


def test_an_old_copy_is_put_back_under_a_running_broker(world: SharedWorld) -> None:
    """Or a standby takes over that lacks the last commits. What this process has seen of the log must be there."""
    copy = copied(world)
    workload = world.workload()
    cookie = workload.attested(world.hospital)
    world.lab.broker.agreements.revoke(world.contract.digest, "found a leak")
    world.hospital.broker.agreements.revoke(world.contract.digest, "found a leak")
    put_back(world, copy)
    unwrapped: list[bytes] = []
    world.hospital.broker.core.assets.unwrap_secret_dek = unwrapped.append  # type: ignore[assignment, method-assign]
    with pytest.raises(Untrusted) as refused:
        workload.fetch(world.hospital, cookie, world.data.digest)
    assert refused.value.code == "audit.rollback"
    assert unwrapped == []


def test_a_fork_that_grew_takes_the_databases_place(world: SharedWorld) -> None:
    """A stale standby was promoted and a replica went on there: its log is longer, and signed by us."""
    copy = copied(world)
    ledger = world.hospital.broker.core.ledger
    ledger.append("attest.ok", target="here", details={})
    fork = world.hospital.replica("fork", world.server.url(copy))
    for _ in range(3):
        fork.broker.core.ledger.append("attest.ok", target="there", details={})
    fork.broker.close()
    put_back(world, copy)
    for attempt in (ledger.log.head, lambda: ledger.append("attest.ok", target="here", details={})):
        with pytest.raises(Untrusted) as refused:
            attempt()
        assert refused.value.code == "audit.rollback"
    with pytest.raises(Untrusted), ledger.turn():
        ledger.commit("asset.held", target="x", details={}, changes=[])
    world.hospital.broker.close()
    with pytest.raises(Untrusted) as refused:
        world.hospital.start()
    assert refused.value.code == "audit.rollback", "the home remembers, too"


def test_an_old_copy_is_put_back_and_the_home_remembers(world: SharedWorld) -> None:
    """While no broker runs and no peer answers. Log and state in it are in step, so nothing else can tell."""
    copy = copied(world)
    world.hospital.broker.agreements.revoke(world.contract.digest, "found a leak")
    world.hospital.broker.close()
    put_back(world, copy)
    with pytest.raises(Untrusted) as refused:
        world.hospital.start()
    assert refused.value.code == "audit.rollback"
    # A home that saw nothing can't tell, and says that nobody confirmed anything.
    (world.hospital.home / "seen").unlink()
    world.hospital.start()
    assert any("No peer confirmed" in note for note in world.hospital.broker.notes())


def test_the_homes_note_is_of_another_log(world: SharedWorld) -> None:
    world.hospital.broker.close()
    (world.hospital.home / "seen").write_text(world.lab.broker.core.ledger.log.head())
    with pytest.raises(Untrusted):
        world.hospital.start()
    (world.hospital.home / "seen").write_bytes(b"\xff")
    with pytest.raises(Unavailable) as refused:
        world.hospital.start()
    assert refused.value.code == "replica.seen"


def test_an_old_copy_is_put_back_and_a_peer_remembers(world: SharedWorld) -> None:
    with serving(world.lab) as lab:
        introduce(world.hospital, world.lab, lab)
        copy = copied(world)
        world.hospital.broker.core.ledger.append("attest.ok", target="x", details={})
        assert world.hospital.broker.core.herald.show_all() == 1
        world.hospital.broker.close()
        put_back(world, copy)
        (world.hospital.home / "seen").unlink()
        with pytest.raises(Untrusted) as refused:
            world.hospital.start()
        assert refused.value.code == "state.rollback"
    world.lab.start()


CHANGES: dict[str, tuple[str, str]] = {
    "an entry is changed": ("UPDATE log_entries SET entry = entry || 'x'::bytea WHERE place = 1", "log.entry"),
    "an entry is removed": ("DELETE FROM log_entries WHERE place = 1", "log.missing_row"),
    "a hash is changed": (
        "UPDATE log_hashes SET hash = decode(repeat('ab', 32), 'hex') WHERE level = 0 AND place = 1", "log.root",
    ),
    "a hash is removed": ("DELETE FROM log_hashes WHERE level = 0 AND place = 1", "log.missing_row"),
    "the head is removed": ("DELETE FROM log_head", "log.missing_row"),
    "the head's size is changed": ("UPDATE log_head SET size = size - 1", "audit.rollback"),
    "the head is another": ("UPDATE log_head SET note = replace(note, 'hospital', 'hospice')", "note.unsigned"),
    "the state is older than the log": (
        "UPDATE progress SET value = (SELECT size - 2 FROM log_head)::text WHERE name = 'log_size'", "audit.rollback",
    ),
    "a logged table is gone": ("DROP TABLE permits", "state.unreachable"),
}  # fmt: skip


@pytest.mark.parametrize("change", sorted(CHANGES))
def test_the_database_is_edited(world: SharedWorld, folder: Path, change: str) -> None:
    """Found at the start where that reads it, and by the independent checker's export in any case."""
    statement, code = CHANGES[change]
    world.hospital.broker.close()
    with world.server.connect(world.database) as connection:
        connection.execute(statement)

    def look() -> None:
        world.hospital.start()
        checked(world.hospital, folder / "log")
        world.hospital.tables()

    with pytest.raises(CloisterError) as refused:
        look()
    assert refused.value.code == code


def test_a_head_that_was_signed_goes_back_with_all_its_rows(world: SharedWorld) -> None:
    """Everything after an older head is taken away, neatly: a process that saw more refuses, and so does a start."""
    ledger = world.hospital.broker.core.ledger
    note, size = ledger.log.head(), ledger.log.size
    ledger.append("attest.ok", target="x", details={})
    with ledger.turn():
        ledger.commit("asset.held", target="x", details={}, changes=[])
    with world.server.connect(world.database) as connection:
        connection.execute("DELETE FROM log_entries WHERE place >= %s", (size,))
        connection.execute("DELETE FROM log_hashes WHERE level = 0 AND place >= %s", (size,))
        connection.execute("UPDATE log_head SET size = %s, note = %s", (size, note))
    for attempt in (ledger.log.head, lambda: ledger.append("attest.ok", target="x", details={})):
        with pytest.raises(Untrusted) as refused:
            attempt()
        assert refused.value.code == "audit.rollback"
    world.hospital.broker.close()
    with pytest.raises(Untrusted) as refused:
        world.hospital.start()
    assert refused.value.code == "audit.rollback"


PLAIN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=80)
PLACES = st.integers(0, 299)
EDITS = st.one_of(
    st.tuples(st.just("UPDATE log_entries SET entry = %s WHERE place = %s"), st.binary(max_size=80), PLACES),
    st.tuples(
        st.just("UPDATE log_hashes SET hash = %s WHERE level = 0 AND place = %s"), st.binary(max_size=40), PLACES
    ),
    st.tuples(st.just("UPDATE log_hashes SET hash = %s WHERE level = 1 AND place = %s"), st.binary(), st.just(0)),
    st.tuples(st.just("UPDATE log_head SET note = %s WHERE id = %s"), PLAIN, st.just(1)),
    st.tuples(st.just("UPDATE log_head SET size = %s WHERE id = %s"), st.integers(-1, 2**62), st.just(1)),
)


@pytest.fixture(scope="module")
def long_log(fast_folder: Path, postgres: Postgres) -> Iterator[tuple[PostgresDatabase, str, list[bytes]]]:
    """Three hundred entries, and everything that is in the log's tables."""
    name = postgres.database()
    database = PostgresDatabase(address(fast_folder / "edited.url", postgres.url(name)), QUICK)
    with database.transaction() as connection:
        create_log(connection, origin="x.example/log", signer=KEY)
    entries = [b"entry %d" % number for number in range(300)]
    AuditLog(DatabaseStore(database, origin="x.example/log", signer=KEY, patience=1.0)).append_many(entries)
    yield database, name, entries
    database.close()
    postgres.drop(name)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edit=EDITS)
def test_any_edit_is_refused_with_a_reason_or_changes_nothing(
    long_log: tuple[PostgresDatabase, str, list[bytes]], postgres: Postgres, edit: tuple[str, Any, int]
) -> None:
    database, name, entries = long_log
    statement, value, place = edit
    column, table = statement.split(" SET ")[1].split(" ")[0], statement.split(" ")[1]
    look = f"SELECT {column} FROM {table} WHERE {statement.split(' WHERE ')[1]}"
    with postgres.connect(name) as connection:
        before = connection.execute(look, (place,)).fetchone()
        connection.execute(statement, (value, place))
        try:
            log = AuditLog(DatabaseStore(database, origin="x.example/log", signer=KEY, patience=1.0))
            found = log.entries(0, log.size)
            log.receipt(0).verify("x.example/log", KEY.public)
        except CloisterError:
            pass
        else:
            assert found == entries, "whatever is told is what was logged"
        finally:
            assert before is not None
            connection.execute(statement, (before[0], place))
