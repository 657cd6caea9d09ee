"""A genuine, attested workload asks for more than the contract gives: more runs, other assets, old versions."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from cloister.errors import CloisterError, Denied
from tests.broker_world import NOW, TERMS, Workload, World, nothing_granted

pytest_plugins = ["tests.broker_fixtures"]


def test_one_run_more_than_the_budget(world: World) -> None:
    for _ in range(world.contract.runs):
        workload = world.workload(job=world.make_job())
        workload.fetch(world.hospital, workload.attested(world.hospital), world.data.digest)
    one_more = world.workload(job=world.job)
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        one_more.attested(world.hospital)
    assert refused.value.code == "budget.runs"


def test_a_restarted_run_costs_no_second_unit(world: World) -> None:
    world.workload().run()
    world.workload().run()
    assert len(world.hospital.tables()["jobs"]) == 1


def test_two_requests_race_for_the_last_unit(world: World) -> None:
    """Both have attested before either asked; only one may get the last run."""
    first = world.workload(job=world.make_job())
    first.fetch(world.hospital, first.attested(world.hospital), world.data.digest)
    racers = [world.workload(job=world.make_job()) for _ in range(4)]
    cookies = [racer.attested(world.hospital) for racer in racers]
    outcome: list[str] = []
    start = threading.Barrier(len(racers))

    def race(racer: Workload, cookie: str) -> None:
        start.wait()
        try:
            racer.fetch(world.hospital, cookie, world.data.digest)
            outcome.append("key")
        except CloisterError as error:
            outcome.append(error.code)

    threads = [threading.Thread(target=race, args=pair) for pair in zip(racers, cookies, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcome) == ["budget.runs"] * 3 + ["key"]
    assert len(world.hospital.tables()["jobs"]) == world.contract.runs


def test_an_asset_that_the_job_does_not_use(world: World) -> None:
    other = world.hospital.seal(world.folder / "other", "hospital/other", "dataset")
    fields = world.contract_fields(serial=2)
    extra = {**fields["assets"][0], "digest": other.digest.hex(), "name": "hospital/other"}
    contract = world.sign({**fields, "assets": [*fields["assets"], extra]})
    workload = world.workload(contract=contract, job=world.make_job(contract))
    cookie = workload.attested(world.hospital)
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        workload.fetch(world.hospital, cookie, other.digest)
    assert refused.value.code == "job.asset"


def test_an_asset_that_the_contract_does_not_name(world: World) -> None:
    other = world.hospital.seal(world.folder / "other", "hospital/other", "dataset")
    workload = world.workload()
    cookie = workload.attested(world.hospital)
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        workload.fetch(world.hospital, cookie, other.digest)
    assert refused.value.code == "contract.asset"


def test_the_asset_of_another_owner(world: World) -> None:
    workload = world.workload()
    cookie = workload.attested(world.hospital)
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        workload.fetch(world.hospital, cookie, world.base.digest)
    assert refused.value.code == "asset.owner"


def test_an_old_version_of_an_asset(world: World) -> None:
    workload = world.workload()
    cookie = workload.attested(world.hospital)
    world.hospital.seal(world.folder / "v2", "hospital/queries", "dataset", content=b"without one patient")
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        workload.fetch(world.hospital, cookie, world.data.digest)
    assert refused.value.code == "asset.old"


def test_an_asset_after_the_time_for_which_it_may_be_kept(world: World) -> None:
    terms = replace(TERMS, keep_until=NOW + 5)
    data = world.hospital.seal(world.folder / "brief", "hospital/brief", "dataset", terms=terms)
    fields = world.contract_fields(serial=2)
    brief = {**fields["assets"][0], "digest": data.digest.hex(), "name": "hospital/brief", "terms": terms.document()}
    contract = world.sign({**fields, "assets": [brief, fields["assets"][1]]})
    workload = world.workload(contract=contract, job=world.make_job(contract, data="hospital/brief"))
    cookie = workload.attested(world.hospital)
    world.clock.pass_seconds(5)
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        workload.fetch(world.hospital, cookie, data.digest)
    assert refused.value.code == "asset.retention"


@pytest.mark.parametrize(
    ("party", "kind", "tag"),
    [
        ("lab", "asset-key", "00" * 32),
        ("hospital", "vault-key", "00" * 32),
        ("hospital", "state-share", "other"),
        ("hospital", "state-share", "checkpoint-root"),
    ],
)
def test_a_resource_that_is_none(world: World, party: str, kind: str, tag: str) -> None:
    cookie = world.workload().attested(world.hospital)
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        world.hospital.broker.releases.resource(cookie, party, kind, tag)
    assert refused.value.code == "resource.unknown"


def test_more_answers_than_a_session_may_hold(world: World) -> None:
    workload = world.workload()
    cookie = workload.attested(world.hospital)
    session, _ = world.hospital.broker.sessions.attested(cookie, now=world.clock())
    for number in range(world.hospital.limits.answers):
        session.once(str(number), lambda: b"", limit=world.hospital.limits.answers)
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        workload.fetch(world.hospital, cookie, world.data.digest)
    assert refused.value.code == "session.answers"


def test_a_session_for_renewal_asks_for_a_key(world: World) -> None:
    workload = world.workload().run()
    cookie = workload.attested(world.hospital, "renew", 1)
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        workload.fetch(world.hospital, cookie, world.data.digest)
    assert refused.value.code == "session.purpose"


def test_a_run_is_resumed_that_never_began(world: World) -> None:
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        world.workload().attested(world.hospital, "resume")
    assert refused.value.code == "job.unknown"


def test_a_contract_above_level_none_while_nobody_confirmed_our_state(world: World) -> None:
    """Also a contract that everybody signed: without a witness at start, an older copy could be serving it."""
    workload = world.strict_workload(2)
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        workload.attested(world.hospital)
    assert refused.value.code == "witness.absent"


def test_evidence_below_the_level_of_the_contract(world: World) -> None:
    workload = world.strict_workload(2)
    world.hospital.broker.core.knowledge.witnessed = True
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        workload.attested(world.hospital)
    assert refused.value.code == "appraisal.level"


def test_fewer_witnesses_than_the_contract_asks_for(world: World) -> None:
    """The key is not given out; the log says that it was about to be, which is the honest order."""
    platform = {**world.contract_fields()["platform"], "witness_quorum": 1}
    contract = world.sign(world.contract_fields(serial=2, platform=platform))
    workload = world.workload(contract=contract, job=world.make_job(contract))
    cookie = workload.attested(world.hospital)
    with pytest.raises(CloisterError) as refused:
        workload.fetch(world.hospital, cookie, world.data.digest)
    assert refused.value.code == "witness.quorum"
    assert world.hospital.kinds()[-2:] == ["key.released", "key.refused"]
