"""A measurement that turned out vulnerable is still named by the contract, and somebody goes on running it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.errors import CloisterError, Denied
from tests.broker_world import AGENT, LEASE, MEASUREMENT, Party, Workload, World, nothing_granted

pytest_plugins = ["tests.broker_fixtures"]


def revoke(party: Party, measurement: bytes = MEASUREMENT) -> int:
    return int(party.broker.measurements.revoke(measurement.hex(), "a hole in the parser")["leases_cut"])


def refused(party: Party, workload: Workload, *args: object) -> CloisterError:
    with nothing_granted(party), pytest.raises(Denied) as caught:
        workload.attested(party, *args)  # type: ignore[arg-type]
    return caught.value


@pytest.mark.parametrize("what", [MEASUREMENT, AGENT])
def test_a_revoked_measurement_that_the_contract_names(world: World, what: bytes) -> None:
    revoke(world.hospital, what)
    assert refused(world.hospital, world.workload()).code == "measurement.revoked"
    workload = world.workload()
    workload.fetch(world.lab, workload.attested(world.lab), world.base.digest)  # each owner decides for itself


def test_a_session_of_before_fetches_a_key_after(world: World) -> None:
    workload = world.workload()
    cookie = workload.attested(world.hospital)
    revoke(world.hospital)
    with nothing_granted(world.hospital), pytest.raises(Denied) as caught:
        workload.fetch(world.hospital, cookie, world.data.digest)
    assert caught.value.code == "measurement.revoked"


def test_a_running_job_stops_within_a_lease(world: World, folder: Path) -> None:
    workload = world.workload().run()
    world.clock.pass_seconds(LEASE // 2)
    cookie = workload.attested(world.hospital, "renew", 1)
    assert revoke(world.hospital) == 1
    with nothing_granted(world.hospital):
        with pytest.raises(Denied) as caught:
            world.hospital.broker.leases.renew(cookie)
        assert caught.value.code == "lease.cut"
        for purpose, sequence in (("renew", 1), ("resume", 0)):
            with pytest.raises(Denied):
                workload.attested(world.hospital, purpose, sequence)
        # Nor does anything of it come out meanwhile.
        with pytest.raises(Denied):
            world.hospital.broker.leases.checkpoint(workload.record(1))
        with pytest.raises(Denied):
            world.hospital.broker.permits.permit(workload.output(folder / "out").envelope)
    world.lab.broker.leases.renew(workload.attested(world.lab, "renew", 1))


def test_a_new_instance_resumes_what_was_revoked(world: World) -> None:
    world.workload().run()
    revoke(world.hospital)
    assert refused(world.hospital, world.workload(), "resume", 0).code == "measurement.revoked"


def test_a_restart_or_a_second_word_forgets_nothing(world: World) -> None:
    revoke(world.hospital)
    (entry,) = [facts for facts in world.hospital.log() if facts.kind == "measurement.revoked"]
    assert (entry.target, entry.details["reason"]) == (MEASUREMENT.hex(), "a hole in the parser")
    with nothing_granted(world.hospital):
        again = world.hospital.broker.measurements.revoke(MEASUREMENT.hex(), "another reason")
    assert again["reason"] == "a hole in the parser"
    world.hospital.restart()
    assert refused(world.hospital, world.workload()).code == "measurement.revoked"


def test_runs_of_other_contracts_go_on(world: World) -> None:
    workload = world.workload().run()
    assert revoke(world.hospital, b"\x77" * 32) == 0
    world.hospital.broker.leases.renew(workload.attested(world.hospital, "renew", 1))
