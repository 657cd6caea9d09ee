"""A broker remembers how a run stood a moment ago. Something happens, and the workload asks by what was true before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cloister.broker import decided
from cloister.broker.decided import Decided
from cloister.broker.decision import Standing
from cloister.broker.state import Change, Intent, State
from cloister.crypto import Envelope, canonical_json
from cloister.errors import CloisterError, Denied
from tests.broker_world import LEASE, MEASUREMENT, NOW, Party, Workload, World, nothing_granted
from tests.replicas import SharedWorld

pytest_plugins = ["tests.broker_fixtures", "tests.postgres_fixtures"]


def standing(party: Party, workload: Workload) -> Standing:
    return party.broker.core.knowledge.standing(workload.contract, workload.job.digest, workload.instance)


def remembered(world: World, workload: Workload | None = None) -> tuple[Workload, str]:
    """A workload that attested, and whose standing the broker now remembers."""
    workload = workload or world.workload()
    cookie = workload.attested(world.hospital)
    assert standing(world.hospital, workload) is standing(world.hospital, workload)
    return workload, cookie


def refused(world: World, workload: Workload, cookie: str) -> CloisterError:
    with nothing_granted(world.hospital), pytest.raises(Denied) as caught:
        workload.fetch(world.hospital, cookie, world.data.digest)
    return caught.value


def revoke(world: World) -> None:
    world.hospital.broker.agreements.revoke(world.contract.digest, "over")


def revoke_elsewhere(world: World) -> None:
    _, envelope = world.lab.broker.agreements.revoke(world.contract.digest, "over")
    world.hospital.broker.agreements.accept_revocation(world.contract.envelope, Envelope.from_bytes(envelope.encode()))


def lose_a_partner(world: World) -> None:
    world.hospital.broker.core.parties.distrust("lab", None)


def lose_our_keys(world: World) -> None:
    world.hospital.broker.core.parties.declare_compromised()


def supersede(world: World) -> None:
    world.sign(world.contract_fields(serial=2))


def use_up(world: World) -> None:
    for _ in range(world.contract.runs):
        other = world.workload(job=world.make_job())
        other.fetch(world.hospital, other.attested(world.hospital), world.data.digest)


def policy(level: str) -> bytes:
    fields = {"default": True, "least_level": level, "name": level, "platforms": {}, "type": "appraisal-policy/v1"}
    return canonical_json(fields)


STRICT, LAX = policy("tpm"), policy("none")


def tighten(world: World) -> None:
    world.hospital.broker.policies.set(STRICT)


def find_a_hole(world: World) -> None:
    world.hospital.broker.measurements.revoke(MEASUREMENT.hex(), "a hole")


def shred(world: World) -> None:
    world.hospital.broker.lifecycle.shredder.shred("hospital/queries", None, "no consent")


def end_retention(world: World) -> None:
    world.hospital.broker.lifecycle.retention.retain("hospital/queries", None, NOW + 5)
    world.clock.pass_seconds(5)


def outlive_statements(world: World) -> None:
    world.clock.pass_seconds(LEASE + 1)


HAPPENED: list[tuple[Callable[[World], None], str]] = [
    (revoke, "contract.revoked"),
    (revoke_elsewhere, "contract.revoked"),
    (lose_a_partner, "party.compromised"),
    (lose_our_keys, "party.compromised"),
    (supersede, "contract.superseded"),
    (use_up, "budget.runs"),
    (tighten, "policy"),
    (find_a_hole, "measurement.revoked"),
    (shred, "asset.shredded"),
    (end_retention, "asset.retention"),
    (outlive_statements, "status.stale"),
]


@pytest.mark.parametrize(("happen", "code"), HAPPENED, ids=[happen.__name__ for happen, _ in HAPPENED])
def test_what_happened_between_evidence_and_key(world: World, happen: Callable[[World], None], code: str) -> None:
    workload, cookie = remembered(world)
    happen(world)
    assert refused(world, workload, cookie).code.startswith(code)


AGAIN = [(happen, code) for happen, code in HAPPENED if happen is not use_up]  # the run has its own unit by then


@pytest.mark.parametrize(("happen", "code"), AGAIN, ids=[happen.__name__ for happen, _ in AGAIN])
def test_what_happened_between_two_times_the_same_key(world: World, happen: Callable[[World], None], code: str) -> None:
    """Also what was given out already is not handed out again."""
    workload, cookie = remembered(world)
    workload.fetch(world.hospital, cookie, world.data.digest)
    assert standing(world.hospital, workload) is standing(world.hospital, workload)
    happen(world)
    assert refused(world, workload, cookie).code.startswith((code, "lease.cut"))


def test_a_newer_instance_of_the_job(world: World) -> None:
    workload, cookie = remembered(world)
    workload.fetch(world.hospital, cookie, world.data.digest)
    newer, its_cookie = remembered(world, world.workload())
    newer.fetch(world.hospital, its_cookie, world.data.digest)
    assert refused(world, workload, cookie).code == "lease.cut"


def test_an_output_was_permitted_to_another_instance(world: World, folder: Any) -> None:
    first = world.workload().run()
    second, cookie = remembered(world, world.workload())
    world.hospital.broker.permits.permit(first.output(folder / "out").envelope)
    assert refused(world, second, cookie).code == "job.released"


def test_a_lease_ends_though_nothing_changes(world: World) -> None:
    workload, cookie = remembered(world)
    workload.fetch(world.hospital, cookie, world.data.digest)
    known = standing(world.hospital, workload)
    world.clock.pass_seconds(LEASE)
    assert refused(world, workload, cookie).code == "lease.expired"
    assert standing(world.hospital, workload) is known


def test_a_refusal_is_not_remembered_either(world: World) -> None:
    workload = world.workload()
    world.hospital.broker.policies.set(STRICT)
    with pytest.raises(Denied):
        workload.attested(world.hospital)
    world.hospital.broker.policies.set(LAX)
    workload.fetch(world.hospital, workload.attested(world.hospital), world.data.digest)


# Who else changes the state.


def test_another_replica_revokes(shared_world: SharedWorld) -> None:
    workload, cookie = remembered(shared_world)
    other = shared_world.hospital.replica()
    try:
        other.broker.agreements.revoke(shared_world.contract.digest, "over")
    finally:
        other.broker.close()
    assert refused(shared_world, workload, cookie).code == "contract.revoked"


def test_another_replica_uses_the_budget_up(shared_world: SharedWorld) -> None:
    workload, cookie = remembered(shared_world)
    other = shared_world.hospital.replica()
    try:
        for _ in range(shared_world.contract.runs):
            run = shared_world.workload(job=shared_world.make_job())
            run.fetch(other, run.attested(other), shared_world.data.digest)
    finally:
        other.broker.close()
    assert refused(shared_world, workload, cookie).code == "budget.runs"


def test_a_change_that_this_process_did_not_make(world: World) -> None:
    """Whoever writes to the state besides: what was remembered of any table is read anew."""
    workload, cookie = remembered(world)
    ours = world.hospital.broker.core.ledger.state
    theirs = State.open(world.hospital.settings.state, create=False)
    try:
        row = theirs.row("pins", name="lab")
        before = ours.progress()
        assert row is not None
        intent = theirs.intend([Change("pins", {**row, "compromised": 1})])
        theirs.apply(intent, 0, before.log_size, before.log_root)
    finally:
        theirs.close()
    assert ours.touched(before.revision, ours.mark()[0]) is None
    assert refused(world, workload, cookie).code == "party.compromised"


def test_another_revision_of_the_same_number(world: World) -> None:
    """A copy that lacked the newest change took over, and a change of its own got that number."""
    workload, cookie = remembered(world)
    ours = world.hospital.broker.core.ledger.state
    theirs = State.open(world.hospital.settings.state, create=False)
    try:
        row = theirs.row("pins", name="lab")
        assert row is not None
        before = ours.progress()
        intent = Intent(before.revision, (Change("pins", {**row, "compromised": 1}),))
        theirs.apply(intent, before.log_size - 1, before.log_size, bytes(32), kept=True)
    finally:
        theirs.close()
    assert ours.mark() == (before.revision, bytes(32).hex())
    assert refused(world, workload, cookie).code == "party.compromised"


# What is remembered, and what is not.


def test_what_all_runs_share_outlives_a_run_and_nothing_else(world: World) -> None:
    workload, cookie = remembered(world)
    first = standing(world.hospital, workload)
    workload.fetch(world.hospital, cookie, world.data.digest)
    second = standing(world.hospital, workload)
    assert second.instance is not None
    assert second.newest is first.newest, "a run changes no pin, no asset and no fact"
    find_a_hole(world)
    assert standing(world.hospital, workload).newest is not first.newest


def test_a_decision_is_made_anew_for_anything_else(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    workload, cookie = remembered(world)
    session = world.hospital.broker.sessions.live(cookie, now=NOW)
    request, known = session.request, standing(world.hospital, workload)
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(decided, "decide_knock", lambda *args, now: asked.append((*args, now)))
    mine = Decided()
    for _ in range(2):
        mine.knock(request, known, now=NOW)
    assert len(asked) == 1
    mine.knock(request, known, now=NOW + 1)
    mine.knock(request, replace(known), now=NOW + 1)  # an equal one is another one
    mine.knock(replace(request), known, now=NOW + 1)
    Decided().knock(request, known, now=NOW + 1)
    assert len(asked) == 5


def test_what_was_refused_is_asked_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    workload, cookie = remembered(world)
    request, known = world.hospital.broker.sessions.live(cookie, now=NOW).request, standing(world.hospital, workload)
    mine = Decided()
    for _ in range(2):
        with pytest.raises(Denied):
            mine.knock(request, known, now=NOW + LEASE + 1)


def test_what_is_remembered_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloister.broker.knowledge._MOST_KNOWN", 3)
    knowledge = world.hospital.broker.core.knowledge
    for number in range(10):
        knowledge.standing(world.contract, world.job.digest, number.to_bytes(16, "big"))
    assert len(knowledge._known[1]) == 3
