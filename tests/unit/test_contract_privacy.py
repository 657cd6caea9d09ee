"""The privacy rule of a contract, and the decimals that budgets and rules are told in."""

from __future__ import annotations

from contextlib import suppress
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.client.describe import describe
from cloister.client.proposal import read_draft
from cloister.contracts import (
    CONTRACT_TYPE,
    UNITS,
    PrivacyRule,
    amount,
    check_work,
    contract_document,
    covers,
    decimal_text,
    job_envelope,
    parse_recipe,
    read_contract,
    read_job,
    total,
)
from cloister.crypto import sign_document
from cloister.errors import Denied, Malformed, Misuse
from tests.broker_world import NOW, OUTPUT, World
from tests.broker_world import recipe as fields

pytest_plugins = ["tests.broker_fixtures"]

RULE = {"max_delta": "0.00001", "max_epsilon": "8", "unit": "example"}


def private(epsilon: str, delta: str = "0.00001", unit: str = "example") -> dict[str, Any]:
    columns = {"text": "text", "label": "category", **({"user": "patient"} if unit == "user" else {})}
    return {"privacy": {"epsilon": epsilon, "delta": delta, "unit": unit}, "packing": "off", "columns": columns}


def with_rule(world: World, rule: Any, **changes: Any) -> dict[str, Any]:
    written = world.contract_fields(serial=2, **changes)
    return {**written, "recipes": {**written["recipes"], "privacy": rule}}


def test_a_job_keeps_to_the_contracts_privacy(calm: World) -> None:
    contract = read_contract(calm.unsigned(with_rule(calm, RULE)))
    signing = calm.hospital.broker.core.parties.signing

    def ask(**recipe: Any) -> None:
        check_work(contract, _job(calm, contract, signing, **recipe))

    ask(**private("8"))
    ask(**private("0.01", "0.000000000001", "user"))
    for recipe in ({}, private("8.000000000001"), private("1", "0.000010000001")):
        with pytest.raises(Denied) as refused:
            ask(**recipe)
        assert refused.value.code == "recipe.privacy"
    contract = read_contract(calm.unsigned(with_rule(calm, {**RULE, "unit": "user"})))
    ask(**private("8", unit="user"))
    with pytest.raises(Denied, match="each user"):
        ask(**private("8"))


def _job(world: World, contract: Any, key: Any, **recipe: Any) -> Any:
    asked = parse_recipe(fields(**recipe))
    envelope = job_envelope(contract, "hospital", asked, OUTPUT, key, now=1, salt=bytes(16))
    return read_job(envelope, contract)


def test_with_a_rule_nobody_accepts_unbounded_memorization(calm: World) -> None:
    contract = read_contract(calm.unsigned(with_rule(calm, RULE, unbounded_memorization=[])))
    rows = dict(describe(contract))
    assert "epsilon at most 8, delta at most 0.00001" in rows["privacy"]
    assert "beyond what differential privacy lets through" in rows["rows"]
    with pytest.raises(Malformed) as refused:
        read_contract(calm.unsigned(calm.contract_fields(unbounded_memorization=[])))
    assert refused.value.code == "contract.memorization"


DRAFT = """
name: intents
parties: [hospital, lab]
assets: [hospital/queries, lab/minilm]
purpose: tests
recipes:
  tasks: [classification]
  methods: [lora]
  max_epochs: 5
  privacy: {max_epsilon: 8, max_delta: 0.00001, unit: example}
runs: 5
outputs: []
expires: 90d
"""


def test_the_rule_in_a_contract_file() -> None:
    assert read_draft(DRAFT, now=NOW).fields["recipes"]["privacy"] == RULE
    for wrong, code in (("unit: example", "contract.value"), ("max_epsilon: 8", "contract.value")):
        with pytest.raises(Misuse) as refused:
            read_draft(DRAFT.replace(f"{wrong}", "").replace("{, ", "{").replace(", }", "}"), now=NOW)
        assert refused.value.code == code
    with pytest.raises(Misuse) as refused:
        read_draft(DRAFT.replace("max_delta", "delta"), now=NOW)
    assert "'max_delta'" in refused.value.message
    with pytest.raises(Misuse):
        read_draft(DRAFT.replace("{max_epsilon: 8, max_delta: 0.00001, unit: example}", "[8]"), now=NOW)


def test_general_text_is_outside_of_the_rule(calm: World) -> None:
    """It gets no noise, so its owner accepts that knowingly, as ever."""
    written = with_rule(calm, RULE, unbounded_memorization=[])
    assets = [*written["assets"], {**written["assets"][0], "digest": "ab" * 32, "name": "lab/notes", "owner": "lab"}]
    assets[-1]["use"] = "general"
    with pytest.raises(Malformed) as refused:
        read_contract(calm.unsigned({**written, "assets": assets}))
    assert refused.value.code == "contract.memorization"
    read_contract(calm.unsigned({**written, "assets": assets, "unbounded_memorization": ["lab"]}))


def test_a_contract_without_the_rule_is_what_it_was(calm: World) -> None:
    assert calm.contract.recipes.privacy is None
    assert b'"privacy"' not in calm.contract.envelope.payload
    assert "privacy" not in dict(describe(calm.contract))


@pytest.mark.parametrize(
    "rule",
    [
        None, {}, [], "8", {**RULE, "unit": "row"}, {**RULE, "more": "1"}, {"unit": "user", "max_delta": "0.00001"},
        *({**RULE, "max_epsilon": value} for value in ("0", 8, "1001", "8.0", "Infinity", None)),
        *({**RULE, "max_delta": value} for value in ("0", "0.1", 0)),
    ],
)  # fmt: skip
def test_a_rule_that_is_none(calm: World, rule: Any) -> None:
    cards = {name: party.broker.card for name, party in calm.parties.items()}
    with pytest.raises(Malformed):
        read_contract(sign_document(CONTRACT_TYPE, contract_document(with_rule(calm, rule), cards)))


NONE = ["", "-1", "1e3", "NaN", "Infinity", "08", "8.0", "+8", " 8", "8\n", "٨", "1" * 30, "8.", ".5", "0." + 13 * "1"]


@pytest.mark.parametrize("text", NONE)
def test_no_plain_amount(text: str) -> None:
    with pytest.raises(Malformed):
        amount(text, high="1000000")


@given(st.text(max_size=40) | st.from_regex(r"[0-9]{1,4}(\.[0-9]{0,14})?", fullmatch=True))
def test_any_text_is_an_amount_in_its_one_spelling_or_malformed(text: str) -> None:
    with suppress(Malformed):
        assert decimal_text(amount(text, high="1000")) == text


@given(st.lists(st.integers(0, 10**16), max_size=50))
def test_sums_are_exact(parts: list[int]) -> None:
    """In units of 10^-12, the last place that an amount has."""
    found = total(*(Decimal(part).scaleb(-12) for part in parts))
    assert found.scaleb(12) == sum(parts)


def test_who_hides_a_user_hides_each_row() -> None:
    assert [covers(unit, "user") for unit in UNITS] == [False, True]
    assert [covers(unit, "example") for unit in UNITS] == [True, True]
    assert PrivacyRule.read(RULE) == PrivacyRule(Decimal(8), Decimal("0.00001"), "example")
