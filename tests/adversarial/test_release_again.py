"""An operator runs a job again and again to get many outputs for one unit of the budget."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.broker.state import Change
from cloister.contracts import Contract
from cloister.errors import Denied
from tests.broker_world import Party, Workload, World, nothing_granted

pytest_plugins = ["tests.broker_fixtures"]


def let_out(workload: Workload, folder: Path, *parties: Party) -> None:
    sealed = workload.output(folder)
    for party in parties:
        party.broker.permits.permit(sealed.envelope)


def refused_everywhere(world: World, workload: Workload, purpose: str) -> None:
    for party in (world.hospital, world.lab):
        with nothing_granted(party), pytest.raises(Denied) as refused:
            workload.attested(party, purpose)
        assert refused.value.code == "job.released"


def test_a_second_output_of_one_run(world: World, folder: Path) -> None:
    """Both owners have permitted one: a new instance of the job gets no key, neither anew nor to go on."""
    let_out(world.workload().run(), folder / "o", world.hospital, world.lab)
    refused_everywhere(world, world.workload(), "release")
    refused_everywhere(world, world.workload(), "resume")
    assert len(world.hospital.tables()["permits"]) == 1


def test_a_second_output_of_a_run_with_a_checkpoint(world: World, folder: Path) -> None:
    """The last checkpoint holds the trained weights: to resume from it would be the cheapest way to another output."""
    workload = world.workload().run()
    for party in (world.hospital, world.lab):
        party.broker.leases.checkpoint(workload.record(5))
    let_out(workload, folder / "o", world.hospital, world.lab)
    refused_everywhere(world, world.workload(), "resume")


def test_an_instance_that_attested_before_the_permit_asks_after_it(world: World, folder: Path) -> None:
    workload, late = world.workload().run(), world.workload()
    cookie = late.attested(world.hospital)
    let_out(workload, folder / "o", world.hospital)
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        late.fetch(world.hospital, cookie, world.data.digest)
    assert refused.value.code == "job.released"
    assert world.hospital.log()[-1].kind == "key.refused"


def test_one_owner_alone_ends_the_runs_of_a_job(world: World, folder: Path) -> None:
    """The operator keeps the other owner's permit back. That costs the run, and wins nothing."""
    let_out(world.workload().run(), folder / "a", world.hospital)
    second = world.workload()
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        second.attested(world.hospital)
    assert refused.value.code == "job.released"
    second.fetch(world.lab, second.attested(world.lab), world.base.digest)
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        let_out(second, folder / "b", world.hospital)
    assert refused.value.code == "lease.unknown"


def test_the_permitted_instance_itself_goes_on(world: World, folder: Path) -> None:
    """Between two owners' permits its leases must still be renewed, and a lost answer be fetched again."""
    workload = world.workload().run()
    let_out(workload, folder / "o", world.hospital)
    world.hospital.broker.leases.renew(workload.attested(world.hospital, "renew", 1))
    assert world.hospital.kinds()[-1] == "lease.renewed"


def test_one_output_a_unit_of_the_budget(world: World, folder: Path) -> None:
    contract: Contract = world.sign(world.contract_fields(name="once", runs=1))
    job, spare = world.make_job(contract), world.make_job(contract)
    let_out(world.workload(contract=contract, job=job).run(), folder / "o", world.hospital, world.lab)
    refused_everywhere(world, world.workload(contract=contract, job=job), "release")
    other = world.workload(contract=contract, job=spare)
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        other.attested(world.hospital)
    assert refused.value.code == "budget.runs"


def test_an_instance_from_before_the_rule_asks_for_a_second_permit(world: World, folder: Path) -> None:
    """Whatever let a second instance begin: there is one permit a job, and not one an instance."""
    first, second = world.workload().run(), world.workload().run()
    row = {"instance": first.instance.hex(), "output": "00" * 32, "issued": world.clock(), "entry": 0}
    put_permit(world.hospital, row)
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        let_out(second, folder / "b", world.hospital)
    assert refused.value.code == "job.released"


def put_permit(party: Party, row: dict[str, object]) -> None:
    ledger = party.broker.core.ledger
    with ledger.turn():
        ledger.commit("permit.issued", target="00" * 32, details={}, changes=[Change("permits", row)])
