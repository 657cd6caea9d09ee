"""``cloister data budget``, in this process against a real broker."""

from __future__ import annotations

import pytest

from cloister.broker.decision import JobRecord
from cloister.broker.knowledge import job_change
from cloister.client import operations
from cloister.contracts import parse_recipe
from tests.client_home import RECIPE, LocalHome, Run

pytest_plugins = ["tests.client_fixtures"]

NAME = "hospital/queries"


def admit(local: LocalHome, *changes: str) -> str:
    """A run that the hospital's broker has admitted, as a release does. Its digest."""
    contract = operations.show_contract(local.home, "intents", "hospital")
    job = local.home.agent("hospital").sign_job(
        contract.contract.envelope, parse_recipe(RECIPE, changes), "hospital/adapter"
    )
    core = local._brokers["hospital"][0].broker.core
    record = JobRecord(job.digest, job.to_bytes().decode(), bytes(16), None)
    with core.ledger.turn():
        change = job_change(contract.contract.digest, record)
        core.ledger.commit("key.released", target="00", details={}, changes=[change])
    return job.digest.hex()


def test_a_budget_is_set_shown_and_used(agreed: LocalHome, run: Run) -> None:
    shown = run("data", "budget", NAME)
    assert (shown.code, shown.out) == (0, f"{NAME} has no privacy budget; set one with --epsilon and --delta.\n")
    assert run("data", "budget", NAME, "--epsilon", "8").code == 2, "the first one needs both"
    open_job = admit(agreed)
    private = admit(agreed, "privacy.epsilon=2.5", "packing=off")
    done = run("data", "budget", NAME, "--epsilon", "8.0", "--delta", "1e-4", "--full")
    assert done.code == 0, done.err
    assert [line.split() for line in done.out.splitlines()[:3]] == [
        ["budget", "spent", "left"], ["epsilon", "8", "2.5", "5.5"], ["delta", "0.0001", "0.00001", "0.00009"],
    ]  # fmt: skip
    assert "1 more runs used the data without privacy" in done.out
    lines = {word: line for line in done.out.splitlines() for word in (open_job, private) if word in line}
    assert "no privacy" in lines[open_job]
    assert "intents serial 1" in lines[private]
    assert "epsilon 2.5, delta 0.00001, example" in lines[private]
    document = run("data", "budget", NAME, "--json").document
    assert document["budget"] == {
        "delta": "0.0001", "epsilon": "8", "left_delta": "0.00009", "left_epsilon": "5.5", "runs": 1,
        "spent_delta": "0.00001", "spent_epsilon": "2.5", "unbounded": 1, "unit": "example",
    }  # fmt: skip
    assert {job["job"]: job["counted"] for job in document["jobs"]} == {open_job: False, private: True}
    assert agreed.home.agent("hospital")._get("/v1/budgets") == {"budgets": {NAME: document["budget"]}}
    raised = run("data", "budget", NAME, "--unit", "user", "--json").document["budget"]
    assert (raised["unit"], raised["unbounded"], raised["spent_epsilon"]) == ("user", 2, "2.5")


@pytest.mark.parametrize(
    "words",
    [
        *(("--epsilon", text, "--delta", "1") for text in ("much", "1e9", "-1", "9999999", "")),
        ("--epsilon", "1", "--delta", "1e-13"), ("--unit", "row"),
    ],
)  # fmt: skip
def test_what_no_budget_can_be(agreed: LocalHome, run: Run, words: tuple[str, ...]) -> None:
    before = run("data", "budget", NAME, "--json").document
    refused = run("data", "budget", NAME, *words)
    assert refused.code == 2, refused.err
    assert run("data", "budget", NAME, "--json").document == before


def test_only_datasets_of_ours_have_a_budget(agreed: LocalHome, run: Run) -> None:
    assert run("data", "budget", "hospital/nothing").code == 2
    assert run("data", "budget", "lab/minilm").code == 2, "a model has no rows"
