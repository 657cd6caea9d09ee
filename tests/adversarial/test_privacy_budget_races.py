"""Two replicas of one owner's broker, and one dataset's privacy budget between them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cloister.errors import CloisterError, Denied
from tests.broker_world import LEASE, Workload
from tests.key_chores import Killed
from tests.replicas import SharedParty, SharedWorld, checked

pytest_plugins = ["tests.broker_fixtures", "tests.postgres_fixtures"]

NAME = "hospital/queries"
FIVE = {"privacy": {"epsilon": "5"}}


@pytest.fixture
def world(shared_world: SharedWorld) -> SharedWorld:
    shared_world.contract = shared_world.sign(shared_world.contract_fields(serial=2, runs=10))
    shared_world.hospital.broker.budgets.set(NAME, "8", "0.001", None)
    return shared_world


@pytest.fixture
def other(world: SharedWorld) -> Iterator[SharedParty]:
    party = world.hospital.replica()
    yield party
    party.broker.close()


def test_two_replicas_race_for_the_last_of_the_budget(world: SharedWorld, other: SharedParty, folder: Path) -> None:
    racers = [(world.workload(job=world.make_job(**FIVE)), party) for party in (world.hospital, other) * 2]
    cookies = [racer.attested(party) for racer, party in racers]
    outcome: list[str] = []
    start = threading.Barrier(len(racers))

    def race(racer: Workload, party: SharedParty, cookie: str) -> None:
        start.wait()
        try:
            racer.fetch(party, cookie, world.data.digest)
            outcome.append("key")
        except CloisterError as error:
            outcome.append(error.code)

    threads = [threading.Thread(target=race, args=(*who, cookie)) for who, cookie in zip(racers, cookies, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcome) == ["key", *["privacy.budget"] * 3]
    for party in (world.hospital, other):
        kept = party.broker.budgets.listing()[NAME]
        assert (kept["spent_epsilon"], kept["runs"]) == ("5", 1)
    checked(world.hospital, folder / "log")


def test_a_budget_that_one_replica_lowers_binds_at_the_other(world: SharedWorld, other: SharedParty) -> None:
    workload = world.workload(job=world.make_job(**FIVE))
    cookie = workload.attested(other)
    world.hospital.broker.budgets.set(NAME, "4", None, None)
    with pytest.raises(Denied) as refused:
        workload.fetch(other, cookie, world.data.digest)
    assert refused.value.code == "privacy.budget"


def test_a_replica_dies_before_it_answers_and_the_other_charges_nothing_more(
    world: SharedWorld, other: SharedParty, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = world.make_job(**FIVE)
    workload = world.workload(job=job)
    cookie = workload.attested(world.hospital)

    def dies(_: bytes) -> bytes:
        raise Killed

    with monkeypatch.context() as patch, suppress(Killed):
        patch.setattr(world.hospital.broker.core.assets, "unwrap_secret_dek", dies)
        workload.fetch(world.hospital, cookie, job.data)
    world.clock.pass_seconds(LEASE)
    again = world.workload(job=job)
    again.fetch(other, again.attested(other), job.data)
    kept = other.broker.budgets.listing()[NAME]
    assert (kept["spent_epsilon"], kept["runs"]) == ("5", 1)
