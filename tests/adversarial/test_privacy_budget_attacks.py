"""Attacks on a dataset's privacy budget: spend more than there is, twice at once, again after an end, or unnoticed.

The owner is the hospital; ``EIGHT`` is its budget. A refused run gets nothing at all: no key, no lease, no share.
"""

from __future__ import annotations

import base64
import threading
from contextlib import suppress
from decimal import Decimal
from typing import Any

import pytest

from cloister.broker.knowledge import budgets_change
from cloister.contracts import Contract, Job, job_envelope, parse_recipe, read_job
from cloister.crypto import random_bytes
from cloister.errors import CloisterError, Denied, Malformed, Misuse
from tests.broker_world import LEASE, OUTPUT, Party, Workload, World, nothing_granted, recipe
from tests.key_chores import Killed, dies_at

pytest_plugins = ["tests.broker_fixtures"]

NAME = "hospital/queries"
EIGHT = ("8", "0.00001", "example")


def private(epsilon: str = "3", delta: str = "0.000001", unit: str = "example") -> dict[str, Any]:
    columns = {"text": "text", "label": "category", **({"user": "patient"} if unit == "user" else {})}
    return {"privacy": {"epsilon": epsilon, "delta": delta, "unit": unit}, "packing": "off", "columns": columns}


def signed_by_lab(world: World, contract: Contract | None = None, **changes: Any) -> Job:
    """Another party's job: what it asks for passed nobody's broker before it knocks at the hospital's."""
    contract = contract or world.contract
    asked = parse_recipe(recipe(**changes))
    key = world.lab.broker.core.parties.signing
    envelope = job_envelope(contract, "lab", asked, OUTPUT, key, now=world.clock(), salt=random_bytes(16))
    return read_job(envelope, contract)


def spent(world: World) -> tuple[str, str, int]:
    budget = world.hospital.broker.budgets.show(NAME)["budget"]
    return budget["spent_epsilon"], budget["spent_delta"], budget["runs"]


def refused(world: World, job: Job, code: str, contract: Contract | None = None) -> None:
    with nothing_granted(world.hospital), pytest.raises(Denied) as found:
        world.workload(job=job, contract=contract or world.contract).attested(world.hospital)
    assert found.value.code == code


def begin(world: World, job: Job, contract: Contract | None = None) -> Workload:
    """The data's key at the hospital."""
    workload = world.workload(job=job, contract=contract or world.contract)
    workload.fetch(world.hospital, workload.attested(world.hospital), job.data)
    return workload


def last(party: Party, kind: str) -> dict[str, Any]:
    return dict(next(facts for facts in reversed(party.log()) if facts.kind == kind).details)


@pytest.fixture
def budgeted(world: World) -> World:
    """Ten runs, and a budget of epsilon 8."""
    world.contract = world.sign(world.contract_fields(serial=2, runs=10))
    world.hospital.broker.budgets.set(NAME, *EIGHT)
    return world


def test_a_job_that_would_exceed_the_budget(budgeted: World) -> None:
    world = budgeted
    begin(world, signed_by_lab(world, **private("5")))
    refused(world, signed_by_lab(world, **private("3.000000000001")), "privacy.budget")
    details = last(world.hospital, "attest.refused")
    assert (details["left_epsilon"], details["left_delta"], details["budget"]) == ("3", "0.000009", NAME)
    begin(world, signed_by_lab(world, **private("3")))
    assert last(world.hospital, "key.released")["left_epsilon"] == "0"
    refused(world, signed_by_lab(world, **private("0.01")), "privacy.budget")
    assert spent(world) == ("8", "0.000002", 2)


def test_delta_is_used_up_first(budgeted: World) -> None:
    begin(budgeted, signed_by_lab(budgeted, **private("0.01", "0.00001")))
    refused(budgeted, signed_by_lab(budgeted, **private("0.01", "0.000000000001")), "privacy.budget")


def test_many_small_runs_add_up_exactly(budgeted: World) -> None:
    """As floats, ten times 0.1 is less than 1."""
    world = budgeted
    world.hospital.broker.budgets.set(NAME, "1", "0.00001", None)
    for _ in range(10):
        begin(world, signed_by_lab(world, **private("0.1")))
    budget = world.hospital.broker.budgets.show(NAME)["budget"]
    assert (budget["spent_epsilon"], budget["left_epsilon"]) == ("1", "0")
    told = [facts.details["reserved_epsilon"] for facts in world.hospital.log() if "budget" in facts.details]
    assert (len(told), sum(map(Decimal, map(str, told)))) == (10, 1), "the log alone gives the account"
    world.contract = world.sign(world.contract_fields(serial=3, runs=10))
    refused(world, signed_by_lab(world, **private("0.01")), "privacy.budget")


def test_two_contracts_over_one_dataset(budgeted: World) -> None:
    world = budgeted
    other = world.sign(world.contract_fields(name="others", runs=1))
    begin(world, signed_by_lab(world, **private("5")))
    refused(world, signed_by_lab(world, other, **private("5")), "privacy.budget", other)
    begin(world, signed_by_lab(world, other, **private("3")), other)
    refused(world, signed_by_lab(world, **private("0.01")), "privacy.budget")


def test_an_ended_contract_gives_nothing_back(budgeted: World) -> None:
    world = budgeted
    begin(world, signed_by_lab(world, **private("5")))
    first = world.contract
    world.contract = world.sign(world.contract_fields(serial=3, runs=10))  # supersedes it
    world.hospital.broker.agreements.revoke(first.digest, "over")
    refused(world, signed_by_lab(world, **private("5")), "privacy.budget")
    world.hospital.restart()
    refused(world, signed_by_lab(world, **private("5")), "privacy.budget")
    assert spent(world) == ("5", "0.000001", 1)


def test_a_new_version_of_the_dataset_resets_nothing(budgeted: World) -> None:
    world = budgeted
    begin(world, signed_by_lab(world, **private("5")))
    world.data = world.hospital.seal(world.folder / "data-2", NAME, "dataset")
    world.contract = world.sign(world.contract_fields(serial=3, runs=10))
    refused(world, signed_by_lab(world, **private("5")), "privacy.budget")
    begin(world, signed_by_lab(world, **private("3")))
    assert spent(world) == ("8", "0.000002", 2)


def test_the_same_job_again_is_not_charged_again_nor_free_for_others(budgeted: World) -> None:
    """Renewals, more keys, a replay by another instance and a resume are one run; its twin with another salt isn't."""
    world = budgeted
    job = signed_by_lab(world, **private("5"))
    first = begin(world, job)
    again = first.attested(world.hospital)
    first.fetch(world.hospital, again, job.data)
    world.hospital.broker.releases.resource(again, "hospital", "state-share", "checkpoint")
    world.hospital.broker.leases.renew(first.attested(world.hospital, "renew", 1))
    world.hospital.broker.leases.checkpoint(first.record(1))
    resumed = world.workload(job=job, contract=world.contract)
    resumed.fetch(world.hospital, resumed.attested(world.hospital, "resume"), job.data)
    assert spent(world) == ("5", "0.000001", 1)
    charged = [facts for facts in world.hospital.log() if "reserved_epsilon" in facts.details]
    assert len(charged) == 1
    assert dict(charged[0].details)["reserved_epsilon"] == "5"
    refused(world, signed_by_lab(world, **private("5")), "privacy.budget")


def test_a_share_of_the_checkpoints_key_is_charged_like_the_data(budgeted: World) -> None:
    world = budgeted
    job = signed_by_lab(world, **private("5"))
    workload = world.workload(job=job, contract=world.contract)
    cookie = workload.attested(world.hospital)
    world.hospital.broker.releases.resource(cookie, "hospital", "state-share", "checkpoint")
    assert spent(world) == ("5", "0.000001", 1)
    workload.fetch(world.hospital, cookie, job.data)
    assert spent(world) == ("5", "0.000001", 1)


def test_a_recipe_without_privacy(budgeted: World) -> None:
    refused(budgeted, signed_by_lab(budgeted), "privacy.required")
    with pytest.raises(Denied) as early:
        budgeted.make_job(budgeted.contract)
    assert early.value.code == "privacy.required", "the owner hears it when it signs"


def test_a_weaker_unit(budgeted: World) -> None:
    world = budgeted
    world.hospital.broker.budgets.set(NAME, None, None, "user")
    refused(world, signed_by_lab(world, **private(unit="example")), "privacy.unit")
    begin(world, signed_by_lab(world, **private(unit="user")))
    world.hospital.broker.budgets.set(NAME, None, None, "example")
    begin(world, signed_by_lab(world, **private(unit="user")))
    begin(world, signed_by_lab(world, **private("2", unit="example")))
    assert spent(world)[0] == "8"


def test_a_unit_made_stronger_afterwards_forgets_nothing(budgeted: World) -> None:
    """Runs that hid rows hid no users: they are told, and what was counted stays counted."""
    world = budgeted
    begin(world, signed_by_lab(world, **private("5")))
    shown = world.hospital.broker.budgets.set(NAME, None, None, "user")["budget"]
    assert (shown["unbounded"], shown["runs"], shown["spent_epsilon"]) == (1, 0, "5")
    back = world.hospital.broker.budgets.set(NAME, None, None, "example")["budget"]
    assert (back["unbounded"], back["runs"], back["spent_epsilon"]) == (0, 1, "5")
    refused(world, signed_by_lab(world, **private("5")), "privacy.budget")


def test_two_requests_for_the_last_of_it(budgeted: World) -> None:
    world = budgeted
    racers = [world.workload(job=signed_by_lab(world, **private("5"))) for _ in range(4)]
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
    assert sorted(outcome) == ["key", *["privacy.budget"] * 3]
    assert spent(world) == ("5", "0.000001", 1)


@pytest.mark.parametrize("step", range(1, 9))
def test_the_broker_dies_while_it_charges(budgeted: World, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the log has is spent, whatever it lacks is not, and the same run is charged once in the end."""
    world = budgeted
    job = signed_by_lab(world, **private("5"))
    workload = world.workload(job=job, contract=world.contract)
    cookie = workload.attested(world.hospital)
    with monkeypatch.context() as patch, dies_at(step, patch), suppress(Killed, CloisterError):
        workload.fetch(world.hospital, cookie, job.data)
    world.hospital.restart()
    logged = [facts for facts in world.hospital.log() if "reserved_epsilon" in facts.details]
    assert len(logged) == len(world.hospital.tables()["jobs"]) == spent(world)[2] <= 1
    world.clock.pass_seconds(LEASE)
    begin(world, job)
    assert spent(world) == ("5", "0.000001", 1)
    refused(world, signed_by_lab(world, **private("5")), "privacy.budget")


def test_a_restart_forgets_nothing(budgeted: World) -> None:
    world = budgeted
    begin(world, signed_by_lab(world, **private("5")))
    world.hospital.restart()
    assert spent(world) == ("5", "0.000001", 1)
    refused(world, signed_by_lab(world, **private("5")), "privacy.budget")
    refused(world, signed_by_lab(world), "privacy.required")


def test_lowering_stops_what_comes_and_raising_is_logged(budgeted: World) -> None:
    world = budgeted
    job = signed_by_lab(world, **private("5"))
    running = begin(world, job)
    world.hospital.broker.budgets.set(NAME, "4", None, None)
    refused(world, signed_by_lab(world, **private("0.01")), "privacy.budget")
    assert world.hospital.broker.budgets.show(NAME)["budget"]["left_epsilon"] == "-1"
    world.hospital.broker.leases.renew(running.attested(world.hospital, "renew", 1))  # what is spent is spent
    world.hospital.broker.budgets.set(NAME, "6", None, None)
    details = last(world.hospital, "budget.set")
    assert (details["before_epsilon"], details["epsilon"], details["spent_epsilon"]) == ("4", "6", "5")
    begin(world, signed_by_lab(world, **private("1")))


def test_a_budget_stops_the_unbounded_run_that_is_under_way(world: World) -> None:
    """And what it learned before is told, though no sum can hold it."""
    running = world.workload().run()
    answer = world.hospital.broker.budgets.set(NAME, *EIGHT)
    assert (answer["budget"]["unbounded"], answer["budget"]["runs"]) == (1, 0)
    with pytest.raises(Denied) as found:
        running.attested(world.hospital, "renew", 1)
    assert found.value.code == "privacy.required"


def test_runs_from_before_the_budget_count(world: World) -> None:
    begin(world, signed_by_lab(world, **private("5")))
    answer = world.hospital.broker.budgets.set(NAME, *EIGHT)
    assert (answer["budget"]["spent_epsilon"], answer["budget"]["runs"]) == ("5", 1)
    refused(world, signed_by_lab(world, **private("5")), "privacy.budget")


def test_a_job_that_cannot_be_read_any_more_is_no_refund(budgeted: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world = budgeted
    begin(world, signed_by_lab(world, **private("5")))

    def lost(*_: object) -> Job:
        raise Malformed("recipe.kind", "A recipe of another age.")

    with monkeypatch.context() as patch:
        patch.setattr("cloister.broker.budgets.read_job", lost)
        budget = world.hospital.broker.budgets.set(NAME, "9", None, None)["budget"]
    assert (budget["spent_epsilon"], budget["unbounded"]) == ("5", 1)
    refused(world, signed_by_lab(world, **private("5")), "privacy.budget")


def test_a_contract_that_lets_stock_guests_in(world: World) -> None:
    """Any number of guests may come with one job, each with noise of its own."""
    platform = {**world.contract_fields()["platform"], "stock_guests": True}
    contract = world.sign(world.contract_fields(serial=2, platform=platform))
    begin(world, signed_by_lab(world, contract, **private()), contract)
    budget = world.hospital.broker.budgets.set(NAME, *EIGHT)["budget"]
    assert (budget["runs"], budget["unbounded"]) == (0, 1), "one job was perhaps many runs"
    refused(world, signed_by_lab(world, contract, **private()), "privacy.guests", contract)


def test_a_dataset_with_a_budget_as_general_text(world: World) -> None:
    """It would be read without noise, beside other rows that get some, or none."""
    fields = world.contract_fields(serial=2)
    held = world.hospital.seal(world.folder / "notes", "hospital/notes", "dataset")
    entry = {**fields["assets"][0], "digest": held.digest.hex(), "name": "hospital/notes", "use": "general"}
    contract = world.sign({**fields, "assets": [*fields["assets"], entry]})
    world.hospital.broker.budgets.set("hospital/notes", *EIGHT)
    for more in ({}, private()):
        job = signed_by_lab(world, contract, general="hospital/notes", **more)
        refused(world, job, "privacy.required", contract)


def test_a_contract_that_gives_the_dataset_another_name(budgeted: World) -> None:
    """The account is found by the name, so a name must be the asset's own."""
    world = budgeted
    fields = world.contract_fields(serial=3)
    fields["assets"][0]["name"] = "hospital/spare"
    with nothing_granted(world.hospital), pytest.raises(CloisterError) as found:
        world.hospital.broker.agreements.sign(world.unsigned(fields))
    assert found.value.code == "contract.asset"


def test_the_other_partys_asset_is_not_ours_to_count(budgeted: World) -> None:
    """A budget binds where the owner's broker gives the key; the lab's broker keeps none for the hospital."""
    world = budgeted
    job = signed_by_lab(world)
    workload = world.workload(job=job, contract=world.contract)
    workload.fetch(world.lab, workload.attested(world.lab), job.base)
    refused(world, job, "privacy.required")


@pytest.mark.parametrize("name", ["hospital/nothing", "lab/minilm"])
def test_a_budget_for_no_dataset_of_ours(world: World, name: str) -> None:
    with nothing_granted(world.hospital), pytest.raises(Misuse) as found:
        world.hospital.broker.budgets.set(name, *EIGHT)
    assert found.value.code == "budget.dataset"


def test_a_damaged_ledger_releases_nothing(budgeted: World) -> None:
    world = budgeted
    change = budgets_change({})
    state = world.hospital.broker.core.ledger.state
    broken = change.row | {"value": '{"hospital/queries":{"epsilon":"-8"}}'}
    with state._database.transaction() as connection:  # as somebody with the database's password could
        connection.exec_driver_sql("UPDATE facts SET value = ? WHERE name = ?", (broken["value"], broken["name"]))
    world.hospital.restart()
    with pytest.raises(CloisterError) as found:
        world.workload(job=signed_by_lab(world, **private()), contract=world.contract).attested(world.hospital)
    assert found.value.code == "state.damaged"


def test_a_lying_control_plane_changes_nothing(budgeted: World) -> None:
    """It hands on documents. A job that it changed is nobody's, and amounts stand in the signed recipe alone."""
    world = budgeted
    job = signed_by_lab(world, **private("5"))
    workload = world.workload(job=job, contract=world.contract)
    asked = workload.request()
    text = asked["extra-params"]["cloister"]["job"]
    forged = job.envelope.payload.replace(b'"epsilon":"5"', b'"epsilon":"1"')
    assert forged != job.envelope.payload
    changed = text.replace(base64.b64encode(job.envelope.payload).decode(), base64.b64encode(forged).decode())
    assert changed != text
    with nothing_granted(world.hospital), pytest.raises(CloisterError):
        world.hospital.broker.releases.challenge(workload.request(job=changed))
    with nothing_granted(world.hospital), pytest.raises(CloisterError):
        world.hospital.broker.releases.challenge(workload.request(epsilon="0.01"))
    assert Decimal(spent(world)[0]) == 0
