"""The way to the database is cut while a release is committed: perhaps it was, perhaps not. The broker finds out."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from cloister.broker.state import Change
from cloister.errors import Unavailable
from tests.cutting_proxy import Proxy, proxied
from tests.patience import until
from tests.replicas import QUICK, SharedParty, SharedWorld, checked

pytest_plugins = ["tests.broker_fixtures", "tests.postgres_fixtures"]


@pytest.fixture
def world(shared_world: SharedWorld) -> SharedWorld:
    return shared_world


@pytest.fixture
def proxy(world: SharedWorld) -> Iterator[Proxy]:
    with proxied(world.server.port) as found:
        yield found


@pytest.fixture
def far(world: SharedWorld, proxy: Proxy) -> Iterator[SharedParty]:
    """A replica whose way to the database can be cut."""
    world.hospital.limits = replace(QUICK, turn_seconds=0.5)
    party = world.hospital.replica("far", world.server.url(world.database, port=proxy.port))
    yield party
    party.broker.close()


@contextmanager
def cut_at_commit(proxy: Proxy, fate: str, *, away: bool = False) -> Iterator[list[str]]:
    """The next commit of the far replica's is the last thing that its connection carries. Yields what happened."""
    happened: list[str] = []

    def before(connection: Any, _: Any, statement: str, *__: Any) -> None:
        if statement == "COMMIT" and connection.engine.url.port == proxy.port and not happened:
            with socket.socket(fileno=os.dup(connection.connection.dbapi_connection.fileno())) as own:
                proxy.doomed[own.getsockname()[1]] = fate
            if away:
                proxy.away.set()
            happened.append(fate)

    event.listen(Engine, "before_cursor_execute", before)
    try:
        yield happened
    finally:
        event.remove(Engine, "before_cursor_execute", before)
        proxy.away.clear()


def test_the_commit_never_arrived(world: SharedWorld, far: SharedParty, proxy: Proxy, folder: Path) -> None:
    workload, digest = world.workload(), world.data.digest
    cookie = workload.attested(far)
    before = world.hospital.tables()
    with cut_at_commit(proxy, "lost") as happened, pytest.raises(Unavailable) as refused:
        workload.fetch(far, cookie, digest)
    assert happened == ["lost"]
    assert refused.value.code == "state.unreachable"
    assert world.hospital.tables() == before
    assert "key.released" not in world.hospital.kinds()
    workload.open(workload.fetch(far, cookie, digest), digest)
    assert world.hospital.kinds().count("key.released") == 1
    checked(world.hospital, folder / "log")


def test_only_the_answer_was_lost(world: SharedWorld, far: SharedParty, proxy: Proxy, folder: Path) -> None:
    """The release is in the log: the key goes out with that very entry, and not with a second one."""
    workload, digest = world.workload(), world.data.digest
    cookie = workload.attested(far)
    with cut_at_commit(proxy, "unheard") as happened:
        _, body = workload.open(workload.fetch(far, cookie, digest), digest)
    assert happened == ["unheard"]
    kinds = world.hospital.kinds()
    assert kinds.count("key.released") == 1
    assert kinds[body["receipt"]["index"]] == "key.released"
    assert len(world.hospital.tables()["jobs"]) == 1
    checked(world.hospital, folder / "log")


@pytest.mark.parametrize("fate", ["lost", "unheard"])
def test_nobody_can_tell_for_long(world: SharedWorld, far: SharedParty, proxy: Proxy, folder: Path, fate: str) -> None:
    """Cut off, the broker gives nothing. When it is back, the run counts once, whatever had been committed."""
    workload, digest = world.workload(), world.data.digest
    cookie = workload.attested(far)
    unwrapped = far.broker.core.assets.unwrap_secret_dek
    touched: list[bytes] = []
    far.broker.core.assets.unwrap_secret_dek = touched.append  # type: ignore[assignment, method-assign]
    with cut_at_commit(proxy, fate, away=True), pytest.raises(Unavailable) as refused:
        workload.fetch(far, cookie, digest)
    far.broker.core.assets.unwrap_secret_dek = unwrapped  # type: ignore[method-assign]
    assert refused.value.code in ("state.outcome", "state.unreachable")
    assert touched == []
    logged = world.hospital.kinds().count("key.released")
    assert logged == (fate == "unheard")
    workload.open(workload.fetch(far, cookie, digest), digest)
    assert world.hospital.kinds().count("key.released") == logged + 1
    assert len(world.hospital.tables()["jobs"]) == len(world.hospital.tables()["instances"]) == 1
    checked(world.hospital, folder / "log")


def test_an_entry_outside_a_turn(world: SharedWorld, far: SharedParty, proxy: Proxy) -> None:
    """Appends find out as well: what was acknowledged is there once, what was refused is not."""
    for fate, count in (("unheard", 1), ("lost", 0)):
        with cut_at_commit(proxy, fate) as happened:
            try:
                far.broker.core.ledger.append("attest.ok", target=fate, details={})
                appended = 1
            except Unavailable:
                appended = 0
        assert happened == [fate]
        assert appended == count
        assert [f.target for f in world.hospital.log()].count(fate) == count


def test_a_database_that_says_nothing(world: SharedWorld, folder: Path) -> None:
    """Its processes stand still: connections stay open, and no answer comes. Their statements end nevertheless, and the
    release goes on over new connections, once."""
    world.hospital.limits = replace(QUICK, database_seconds=0.3)
    world.hospital.restart()
    workload, digest = world.workload(), world.data.digest
    cookie = workload.attested(world.hospital)
    with world.server.connect() as connection:
        found = connection.execute("SELECT pid FROM pg_stat_activity WHERE datname = %s", (world.database,)).fetchall()
    try:
        for (pid,) in found:
            os.kill(pid, signal.SIGSTOP)
        workload.open(workload.fetch(world.hospital, cookie, digest), digest)
    finally:
        for (pid,) in found:
            os.kill(pid, signal.SIGCONT)
    assert found
    assert world.hospital.kinds().count("key.released") == 1
    assert len(world.hospital.tables()["jobs"]) == 1
    checked(world.hospital, folder / "log")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_database_crashes_again_and_again(world: SharedWorld, folder: Path) -> None:
    """Two replicas append and change state meanwhile. What was acknowledged is there, once, and the log is one."""
    other = world.hospital.replica()
    ledgers = [world.hospital.broker.core.ledger, other.broker.core.ledger]
    head = ledgers[0].log.head()
    acknowledged: dict[str, int] = {}
    refused = [0]
    ending = threading.Event()

    def work(number: int) -> None:
        ledger = ledgers[number % 2]
        for count in itertools.count():
            if ending.is_set():
                return
            name = f"{number}/{count}"
            try:
                if count % 2:
                    receipt = ledger.append("attest.ok", target=name, details={})
                else:
                    with ledger.turn():
                        change = Change("facts", {"name": f"t{number}", "value": name})
                        receipt = ledger.commit("asset.held", target=name, details={}, changes=[change])
                acknowledged[name] = receipt.index
            except Unavailable:
                refused[0] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        before = len(acknowledged)
        until("some work", lambda: len(acknowledged) > before + 40)  # noqa: B023 - called before the next round
        world.server.stop("immediate")
        world.server.launch()
    before = len(acknowledged)
    until("some work", lambda: len(acknowledged) > before + 40)
    ending.set()
    for thread in threads:
        thread.join()
    assert refused[0] > 0
    targets = [facts.target for facts in other.log()]
    for name, index in acknowledged.items():
        assert targets[index] == name
        assert targets.count(name) == 1, "acknowledged once, logged once"
    for number in range(4):
        last = [t for t in targets if t.startswith(f"{number}/") and int(t.split("/")[1]) % 2 == 0][-1]
        row = other.broker.core.ledger.state.row("facts", name=f"t{number}")
        assert row is not None
        assert row["value"] == last, "state and log are in step"
    checked(other, folder / "log", older=head)
    other.broker.close()
