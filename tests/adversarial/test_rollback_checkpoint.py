"""Training state is put back, or another state is passed off as the newest."""

from __future__ import annotations

from typing import Any

import pytest

from cloister.crypto import SigningKey
from cloister.errors import CloisterError, Denied, Malformed, Untrusted
from tests.broker_world import World, nothing_granted

pytest_plugins = ["tests.broker_fixtures"]


def test_steps_grow_and_a_retry_changes_nothing(world: World) -> None:
    workload = world.workload().run()
    leases = world.hospital.broker.leases
    first = leases.checkpoint(workload.record(10))
    with nothing_granted(world.hospital):
        again = leases.checkpoint(workload.record(10))
    assert (again.index, again.leaf) == (first.index, first.leaf)
    assert leases.checkpoint(workload.record(20)).index > first.index


@pytest.mark.parametrize("step", [1, 9, 10])
def test_a_checkpoint_goes_back(world: World, step: int) -> None:
    workload = world.workload().run()
    world.hospital.broker.leases.checkpoint(workload.record(10))
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        world.hospital.broker.leases.checkpoint(workload.record(step, b"\x02" * 32))
    assert refused.value.code == "checkpoint.rollback"


def test_a_checkpoint_that_the_instance_did_not_sign(world: World) -> None:
    workload = world.workload().run()
    record = workload.record(10)
    workload.signing = SigningKey.generate()
    for forged in (workload.record(10), record.__class__(record.payload_type, record.payload, ())):
        with nothing_granted(world.hospital), pytest.raises(Untrusted) as refused:
            world.hospital.broker.leases.checkpoint(forged)
        assert refused.value.code == "dsse.unsigned"


@pytest.mark.parametrize(
    ("changes", "error", "code"),
    [
        ({"job": "00" * 32}, Denied, "lease.unknown"),
        ({"contract": "00" * 32}, Denied, "lease.unknown"),
        ({"instance": "00" * 16}, Denied, "lease.unknown"),
        ({"step": 0}, Malformed, "form.field"),
        ({"type": "checkpoint/v2"}, Malformed, "form.field"),
        ({"more": 1}, Malformed, "form.unknown"),
    ],
)
def test_a_checkpoint_of_something_else(
    world: World, changes: dict[str, Any], error: type[CloisterError], code: str
) -> None:
    workload = world.workload().run()
    with nothing_granted(world.hospital), pytest.raises(error) as refused:
        world.hospital.broker.leases.checkpoint(workload.record(**{"step": 1, **changes}))
    assert refused.value.code == code


def test_a_run_is_begun_anew_over_its_checkpoint(world: World) -> None:
    first = world.workload().run()
    for party in world.parties.values():
        party.broker.leases.checkpoint(first.record(10))
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        world.workload().attested(world.hospital)
    assert refused.value.code == "job.checkpointed"


def test_a_resumed_run_is_told_the_newest_checkpoint(world: World) -> None:
    first = world.workload().run()
    world.hospital.broker.leases.checkpoint(first.record(10))
    world.hospital.broker.leases.checkpoint(first.record(20, b"\x05" * 32))
    world.hospital.restart()
    second = world.workload()
    cookie = second.attested(world.hospital, "resume")
    _, body = second.open(second.fetch(world.hospital, cookie, world.data.digest), world.data.digest)
    assert body["checkpoint"] == {"root": "05" * 32, "step": 20}


def test_the_old_instance_records_after_a_new_one_began(world: World) -> None:
    old = world.workload().run()
    world.workload().run("resume")
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        world.hospital.broker.leases.checkpoint(old.record(10))
    assert refused.value.code == "lease.cut"


def test_the_share_is_the_jobs_and_not_the_instances(world: World) -> None:
    """Else a resumed run could not open what was sealed; and another job's share must tell nothing about it."""
    keys = world.hospital.broker.core.keys
    args = ("hospital", world.contract.digest, world.job.digest, "checkpoint")
    share = keys.checkpoint_share(*args)
    assert share == keys.checkpoint_share(*args)
    others = {
        keys.checkpoint_share("lab", *args[1:]),
        keys.checkpoint_share("hospital", b"\x00" * 32, *args[2:]),
        keys.checkpoint_share("hospital", args[1], b"\x00" * 32, args[3]),
        keys.checkpoint_share(*args[:3], "artifact"),
        world.lab.broker.core.keys.checkpoint_share(*args),
    }
    assert len(others | {share}) == 6
