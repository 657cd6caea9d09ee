"""Two replicas at the same moment, and a replica that stood still while the other one went on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from cloister.audit import Receipt, verify_quorum
from cloister.broker import shared
from cloister.contracts import Card
from cloister.errors import CloisterError, Denied, Unavailable
from tests.broker_world import Workload, introduce, serving
from tests.replicas import QUICK, SharedParty, SharedWorld, checked

pytest_plugins = ["tests.broker_fixtures", "tests.postgres_fixtures"]


@pytest.fixture
def world(shared_world: SharedWorld) -> SharedWorld:
    return shared_world


@pytest.fixture
def other(world: SharedWorld) -> Iterator[SharedParty]:
    party = world.hospital.replica()
    yield party
    party.broker.close()


def last_run(world: SharedWorld) -> None:
    """One run of the two is taken."""
    first = world.workload(job=world.make_job())
    first.fetch(world.hospital, first.attested(world.hospital), world.data.digest)


def test_two_replicas_race_for_the_last_run(world: SharedWorld, other: SharedParty, folder: Path) -> None:
    last_run(world)
    racers = [(world.workload(job=world.make_job()), party) for party in (world.hospital, other) * 3]
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
    assert sorted(outcome) == ["budget.runs"] * 5 + ["key"]
    assert len(other.tables()["jobs"]) == world.contract.runs
    assert world.hospital.kinds().count("key.released") == 2
    assert world.hospital.log() == other.log()
    checked(world.hospital, folder / "log")


def test_a_retry_at_the_other_replica_counts_once(world: SharedWorld, other: SharedParty) -> None:
    """Sessions stay in the process that made them: elsewhere one begins anew, with the same lease and the same unit."""
    workload, digest = world.workload(), world.data.digest
    cookie = workload.attested(world.hospital)
    key, first = workload.open(workload.fetch(world.hospital, cookie, digest), digest)
    with pytest.raises(Denied) as refused:
        workload.fetch(other, cookie, digest)
    assert refused.value.code == "session.absent"
    again, second = workload.open(workload.fetch(other, workload.attested(other), digest), digest)
    assert again == key
    assert first["lease"] == second["lease"]
    assert len(other.tables()["jobs"]) == len(other.tables()["instances"]) == 1
    assert [f.kind for f in other.log()].count("key.released") == 2, "each delivery has its entry"


def test_a_challenge_of_one_replica_is_answered_at_the_other(world: SharedWorld, other: SharedParty) -> None:
    workload = world.workload()
    cookie, challenge = workload.world.hospital.broker.releases.challenge(workload.request())
    with pytest.raises(Denied) as refused:
        other.broker.releases.attest(cookie, workload.attestation(challenge["nonce"]))
    assert refused.value.code == "session.absent"


def test_what_one_replica_revokes_the_other_refuses(world: SharedWorld, other: SharedParty) -> None:
    workload = world.workload()
    cookie = workload.attested(world.hospital)
    other.broker.agreements.revoke(world.contract.digest, "found a leak")
    with pytest.raises(Denied) as refused:
        workload.fetch(world.hospital, cookie, world.data.digest)
    assert refused.value.code == "contract.revoked"


def test_a_renewal_at_either_replica(world: SharedWorld, other: SharedParty) -> None:
    workload = world.workload().run()
    for sequence, party in ((1, other), (2, world.hospital), (3, other)):
        party.broker.leases.renew(workload.attested(party, "renew", sequence))
    with pytest.raises(Denied):
        workload.attested(world.hospital, "renew", 3)
    (row,) = other.tables()["instances"]
    assert row["sequence"] == 3


@pytest.mark.parametrize("kicked", [False, True])
def test_a_replica_stood_still_in_its_turn(
    world: SharedWorld, folder: Path, monkeypatch: pytest.MonkeyPatch, kicked: bool
) -> None:
    """It has decided, and stops. The server ends its turn, the other replica takes the last run, and it wakes up."""
    world.hospital.limits = replace(QUICK, turn_seconds=0.3)
    world.hospital.restart()
    other = world.hospital.replica()
    last_run(world)
    slow, quick = world.workload(job=world.make_job()), world.workload(job=world.make_job())
    slow_cookie, quick_cookie = slow.attested(world.hospital), quick.attested(other)
    real = world.hospital.broker.core.assets.epoch
    unwrapped: list[bytes] = []
    monkeypatch.setattr(world.hospital.broker.core.assets, "unwrap_secret_dek", unwrapped.append)

    def stands_still(digest: bytes) -> int | None:
        if kicked:
            world.server.kick(world.database)
        quick.fetch(other, quick_cookie, world.data.digest)  # waits for the turn, which the server gives it
        return real(digest)

    with monkeypatch.context() as patch:
        patch.setattr(world.hospital.broker.core.assets, "epoch", stands_still)
        with pytest.raises(Unavailable) as lost:
            slow.fetch(world.hospital, slow_cookie, world.data.digest)
    assert lost.value.code == "state.unreachable"
    assert unwrapped == []
    assert {row["digest"] for row in other.tables()["jobs"]} >= {quick.job.digest.hex()}
    assert len(other.tables()["jobs"]) == world.contract.runs
    with pytest.raises(Denied) as refused:
        slow.fetch(world.hospital, slow_cookie, world.data.digest)
    assert refused.value.code == "budget.runs"
    checked(other, folder / "log")
    other.broker.close()


def test_a_turn_is_overtaken_where_locks_do_not_hold(
    world: SharedWorld, other: SharedParty, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pooler that hands sessions around gives one lock to two replicas."""
    last_run(world)
    slow, quick = world.workload(job=world.make_job()), world.workload(job=world.make_job())
    slow_cookie, quick_cookie = slow.attested(world.hospital), quick.attested(other)
    assets = world.hospital.broker.core.assets
    real, once = assets.epoch, [True]

    def no_lock(what: str) -> str:
        return what.replace("pg_advisory_lock(:turn)", ":turn").replace("pg_advisory_xact_lock(:turn)", ":turn")

    ask = shared._ask

    def overtaken(digest: bytes) -> int | None:
        if once.pop():
            once.append(False)
            quick.fetch(other, quick_cookie, world.data.digest)
        return real(digest)

    monkeypatch.setattr(shared, "_ask", lambda session, what, **values: ask(session, no_lock(what), **values))
    monkeypatch.setattr(assets, "epoch", overtaken)
    with pytest.raises(Unavailable) as refused:
        slow.fetch(world.hospital, slow_cookie, world.data.digest)
    assert refused.value.code == "state.overtaken"
    assert len(other.tables()["jobs"]) == world.contract.runs
    with pytest.raises(Denied) as denied:
        slow.fetch(world.hospital, slow_cookie, world.data.digest)
    assert denied.value.code == "budget.runs"
    checked(other, folder / "log")


def test_a_stale_replica_appends_to_the_newest_head(world: SharedWorld, other: SharedParty, folder: Path) -> None:
    """Each believes in the head that it saw last, and both append: the head's row decides, and no entry is lost."""
    ledgers = [world.hospital.broker.core.ledger, other.broker.core.ledger]
    before = ledgers[0].log.size
    start = threading.Barrier(6)

    def append(number: int) -> None:
        start.wait()
        for count in range(10):
            details = {"count": count, "thread": number}
            receipt = ledgers[number % 2].append("attest.ok", target="x", details=details)
            receipt.verify(ledgers[0].log.origin, world.hospital.broker.card.keys.receipt)

    threads = [threading.Thread(target=append, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    own = [(f.details["thread"], f.details["count"]) for f in other.log()[before:]]
    assert sorted(own) == [(thread, count) for thread in range(6) for count in range(10)]
    checked(other, folder / "log")


def test_a_replica_shows_a_witness_a_newer_head_meanwhile(
    world: SharedWorld, other: SharedParty, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A witness takes no older head then: the release shows the newest one, which covers its entry as well."""
    platform = {**world.contract_fields()["platform"], "witness_quorum": 1}
    contract = world.sign(world.contract_fields(serial=2, platform=platform))
    workload = world.workload(contract=contract, job=world.make_job(contract))
    cookie = workload.attested(world.hospital)
    herald = world.hospital.broker.core.herald
    real, overtaken = herald._show, [False]

    def overtake(card: Card, shown: str) -> str:
        if not overtaken[0]:
            overtaken[0] = True
            other.broker.core.ledger.append("attest.ok", target="x", details={})
            assert other.broker.core.herald.show_all() == 1
        return real(card, shown)

    with serving(world.lab) as lab:
        introduce(world.hospital, world.lab, lab)
        monkeypatch.setattr(herald, "_show", overtake)
        _, body = workload.open(workload.fetch(world.hospital, cookie, world.data.digest), world.data.digest)
    witness = world.lab.broker.card
    receipt = Receipt.from_wire(body["receipt"])
    receipt.verify(world.hospital.broker.card.log_origin, contract.parties["hospital"].receipt)
    verify_quorum(receipt.checkpoint, {witness.log_origin: witness.keys.receipt}, 1, not_before=world.clock() - 60)
    world.lab.start()


def test_a_database_that_restarted_is_found_again(world: SharedWorld) -> None:
    world.server.kick(world.database)
    world.workload().run()
    world.server.kick(world.database)
    world.hospital.broker.core.ledger.append("attest.ok", target="x", details={})
    assert world.hospital.kinds()[-1] == "attest.ok"


def test_a_commit_that_failed_leaves_nothing(world: SharedWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry was made, and then the rows could not be changed: in one transaction, so there is neither."""
    workload = world.workload()
    cookie = workload.attested(world.hospital)
    before, size = world.hospital.tables(), len(world.hospital.log())

    def full(*_: object) -> NoReturn:
        raise Unavailable("storage.full", "The database's disk is full; free space, then try again.")

    with monkeypatch.context() as patch:
        patch.setattr("cloister.broker.state.State.apply_within", full)
        with pytest.raises(Unavailable):
            workload.fetch(world.hospital, cookie, world.data.digest)
    kinds = world.hospital.kinds()
    assert "key.released" not in kinds
    assert (world.hospital.tables(), kinds[size:]) == (before, ["key.refused"])
    workload.fetch(world.hospital, cookie, world.data.digest)
    assert world.hospital.kinds().count("key.released") == 1
