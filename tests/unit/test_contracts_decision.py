"""The pure decision, rule by rule; every rule denies with its own code."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.contracts import ContractState, Recipe, check_contract, check_job, check_statements, parse_recipe
from cloister.errors import CloisterError, Denied
from tests.bundles import NOW, PINS, make_contract, make_job

CONTRACT = make_contract()
JOB = make_job(CONTRACT)
STATE = ContractState(PINS, frozenset(), None, 1, frozenset())


def recipe(**changes: Any) -> Recipe:
    fields = {
        "task": "classification",
        "method": "lora",
        "data": "hospital/queries",
        "base": "lab/minilm",
        "columns": {"text": "text", "label": "category"},
    }
    return parse_recipe({**fields, **changes})


def test_a_contract_in_force() -> None:
    check_contract(CONTRACT, STATE, now=NOW)
    check_contract(CONTRACT, STATE, now=CONTRACT.not_before)
    check_contract(CONTRACT, STATE, now=CONTRACT.expires - 1)
    check_job(CONTRACT, JOB, STATE)


@pytest.mark.parametrize(
    ("state", "now", "code"),
    [
        (replace(STATE, compromised=frozenset({"lab"})), NOW, "party.compromised"),
        (replace(STATE, revoked_by="lab"), NOW, "contract.revoked"),
        (replace(STATE, newest_serial=2), NOW, "contract.superseded"),
        (STATE, CONTRACT.not_before - 1, "contract.early"),
        (STATE, CONTRACT.expires, "contract.expired"),
        (replace(STATE, pinned={}), NOW, "contract.unpinned"),
    ],
)
def test_a_contract_that_is_not(state: ContractState, now: int, code: str) -> None:
    with pytest.raises(Denied) as refused:
        check_contract(CONTRACT, state, now=now)
    assert refused.value.code == code


def test_somebody_elses_compromise_does_not_matter() -> None:
    check_contract(CONTRACT, replace(STATE, compromised=frozenset({"mallory"})), now=NOW)


@given(st.sets(st.sampled_from(["hospital", "lab", "mallory"])))
def test_statements_of_all_parties_are_needed(fresh: set[str]) -> None:
    if {"hospital", "lab"} <= fresh:
        check_statements(CONTRACT, fresh)
        return
    with pytest.raises(Denied) as refused:
        check_statements(CONTRACT, fresh)
    assert refused.value.code == "status.missing"
    assert refused.value.details["party"] not in fresh


ASSETS = {asset.use: asset for asset in CONTRACT.assets}


@pytest.mark.parametrize(
    ("job", "code"),
    [
        (replace(JOB, data=bytes(32)), "contract.asset"),
        (replace(JOB, base=bytes(32)), "contract.asset"),
        (replace(JOB, data=JOB.base, base=JOB.data), "job.assets"),
        (
            replace(JOB, recipe=recipe(data="lab/minilm", base="hospital/queries"), data=JOB.base, base=JOB.data),
            "job.use",
        ),
        (replace(JOB, recipe=recipe(data="hospital/other")), "job.assets"),
        (replace(JOB, recipe=recipe(method="full")), "recipe.method"),
        (replace(JOB, recipe=recipe(epochs=6)), "recipe.epochs"),
        (replace(JOB, output="hospital/other"), "job.output"),
        (
            replace(
                JOB,
                recipe=recipe(task="generation", columns={"prompt": "text", "completion": "category"}),
            ),
            "recipe.method",
        ),
    ],
)
def test_jobs_that_the_contract_does_not_permit(job: Any, code: str) -> None:
    with pytest.raises(Denied) as refused:
        check_job(CONTRACT, job, STATE)
    assert refused.value.code == code


def test_a_method_that_makes_another_form_than_the_output_has() -> None:
    wide = make_contract(recipes={"tasks": ["classification"], "methods": ["lora", "full"], "max_epochs": 5})
    job = replace(make_job(wide), recipe=recipe(method="full"))
    with pytest.raises(Denied) as refused:
        check_job(wide, job, STATE)
    assert refused.value.code == "job.form"


@given(st.sets(st.binary(min_size=32, max_size=32), max_size=4), st.booleans())
def test_the_budget_counts_jobs_and_not_attempts(jobs: set[bytes], admitted: bool) -> None:
    known = frozenset(jobs | ({JOB.digest} if admitted else set()))
    state = replace(STATE, jobs=known)
    if admitted or len(known) < CONTRACT.runs:
        check_job(CONTRACT, JOB, state)
        return
    with pytest.raises(Denied) as refused:
        check_job(CONTRACT, JOB, state)
    assert refused.value.code == "budget.runs"


@pytest.mark.parametrize("name", ["tasks", "methods"])
def test_an_empty_list_permits_nothing(name: str) -> None:
    rule = {"tasks": ["classification"], "methods": ["lora"], "max_epochs": 5, name: []}
    with pytest.raises(CloisterError) as refused:
        check_job(make_contract(recipes=rule), JOB, STATE)
    assert refused.value.code == "recipe.method"
