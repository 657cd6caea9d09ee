"""What a contract says of guests and key brokers that only speak KBS as published: openly, or not at all."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from cloister.client.describe import describe
from cloister.client.proposal import read_draft
from cloister.contracts import (
    CONTRACT_TYPE,
    Contract,
    ContractState,
    TrusteeEntry,
    check_job,
    check_statements,
    contract_document,
    job_envelope,
    parse_recipe,
    read_contract,
    read_job,
    read_trustee_key,
    trustee_key,
)
from cloister.crypto import canonical_json, parse_canonical, sign_document
from cloister.errors import CloisterError, Denied, Malformed, Misuse, Untrusted
from cloister.node.agent import reached
from tests.bundles import BASE, HOSPITAL, NOW, PINS, contract_fields, make_contract
from tests.unit.test_client_proposal import GOOD

PLATFORM = contract_fields()["platform"]
ENTRY = {"address": "kbs.example:8080", "repository": "cloister", "tls_pin": "ab" * 32, "unbound": True}


def contract_with(**changes: Any) -> Contract:
    document = contract_document(contract_fields(**changes), PINS)
    return read_contract(sign_document(CONTRACT_TYPE, document))


def refused(code: str, **changes: Any) -> str:
    with pytest.raises(Malformed) as caught:
        contract_with(**changes)
    assert caught.value.code == code
    return caught.value.message


def draft(**changes: Any) -> Any:
    return read_draft(yaml.safe_dump({**GOOD, **changes}), now=NOW)


# Stock guests


def test_a_contract_that_says_nothing_is_what_it_was() -> None:
    contract = make_contract()
    assert (contract.platform.stock_guests, contract.trustees) == (False, {})
    document = contract.envelope.document()
    assert "trustees" not in document
    assert "stock_guests" not in document["platform"]
    assert canonical_json(document) == contract.envelope.payload
    assert not [what for what, _ in describe(contract) if what in ("stock guests", "UNBOUND", "checkpoints")]
    assert contract.brokers() == contract.owners() == contract.speaking() == ("hospital", "lab")


def test_stock_guests_are_allowed_in_so_many_words() -> None:
    contract = contract_with(platform={**PLATFORM, "stock_guests": True})
    assert contract.platform.stock_guests
    assert dict(describe(contract))["stock guests"].startswith("allowed: ")


@pytest.mark.parametrize("word", [False, None, "true", 1, [True], {}])
def test_the_word_has_one_spelling(word: Any) -> None:
    """Else two contracts that mean the same would have two digests."""
    with pytest.raises(Malformed):
        contract_with(platform={**PLATFORM, "stock_guests": word})


def test_a_draft_carries_it_into_the_proposal() -> None:
    named = {"measurements": ["11" * 32], "agents": ["22" * 32], "attesters": ["33" * 32]}
    assert draft(platform={**named, "stock_guests": True}).platform_document(None)["stock_guests"] is True
    for platform in (named, {**named, "stock_guests": False}):
        assert "stock_guests" not in draft(platform=platform).platform_document(None)
    with pytest.raises(Misuse):
        draft(platform={**named, "stock_guests": "perhaps"})


# Stock key brokers


def test_a_party_may_keep_its_keys_in_a_stock_key_broker() -> None:
    contract = contract_with(trustees={"lab": ENTRY})
    assert contract.trustees == {
        "lab": TrusteeEntry(b"\xab" * 32, "cloister", unbound=True, address="kbs.example:8080")
    }
    assert contract.trustees["lab"].document() == ENTRY
    assert (contract.owners(), contract.brokers()) == (("hospital", "lab"), ("hospital",))
    assert contract.speaking() == ("hospital",)
    assert contract.witnesses("hospital") == {}


def test_whoever_signs_is_warned() -> None:
    shown = dict(describe(contract_with(trustees={"lab": ENTRY})))
    assert "lab keeps the keys of lab/minilm in a stock key broker" in shown["UNBOUND"]
    assert "ab" * 32 in shown["UNBOUND"]
    assert "kbs.example:8080" in shown["UNBOUND"]
    assert shown["checkpoints"].startswith("none")
    assert "hospital has heard of it" in shown["stops"]


@pytest.mark.parametrize(
    "changes",
    [
        {"unbound": False},
        {"unbound": "true"},
        {"unbound": None},
        {"repository": ""},
        {"repository": ".."},
        {"repository": "a/b"},
        {"repository": "a" * 129},
        {"tls_pin": "AB" * 32},
        {"tls_pin": "ab" * 31},
        {"more": 1},
        {"address": "kbs.example"},
        {"address": "kbs.example:0"},
        {"address": "kbs.example:65536"},
        {"address": "https://kbs.example:80"},
        {"address": "a b:80"},
        {"address": 8080},
    ],
)
def test_an_entry_of_another_form(changes: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        contract_with(trustees={"lab": {**ENTRY, **changes}})


@pytest.mark.parametrize("key", sorted(ENTRY))
def test_an_entry_is_whole(key: str) -> None:
    with pytest.raises(Malformed):
        contract_with(trustees={"lab": {k: v for k, v in ENTRY.items() if k != key}})


def test_what_can_not_work_is_refused_when_it_is_read() -> None:
    assert "bound to no contract" in refused("contract.trustee", trustees={"lab": {**ENTRY, "unbound": False}})
    assert "leaves 'trustees' out" in refused("contract.trustee", trustees={})
    assert "owns none" in refused("contract.trustee", trustees={"mallory": ENTRY})
    everybody = {"hospital": ENTRY, "lab": ENTRY}
    assert "At least one owner" in refused("contract.trustee", trustees=everybody)
    strict = {**PLATFORM, "assurance": "tpm", "witness_quorum": 1}
    assert "no witness" in refused("contract.witnesses", trustees={"lab": ENTRY}, platform=strict)


def test_its_silence_is_known_and_nobody_elses_is_consent() -> None:
    contract = contract_with(trustees={"lab": ENTRY})
    check_statements(contract, {"hospital"})
    with pytest.raises(Denied) as caught:
        check_statements(contract, {"lab"})
    assert caught.value.code == "status.missing"
    with pytest.raises(Denied):
        check_statements(make_contract(), {"hospital"})


@pytest.mark.parametrize(
    ("steps", "minutes", "fine"), [(0, 0, True), (1, 0, False), (100, 0, False), (0, 5, False), (9, 5, False)]
)
def test_nothing_holds_a_share_of_a_checkpoints_key(steps: int, minutes: int, fine: bool) -> None:
    contract = contract_with(trustees={"lab": ENTRY})
    recipe = {
        "task": "classification", "method": "lora", "data": "hospital/queries", "base": "lab/minilm",
        "columns": {"text": "text", "label": "category"}, "checkpoint_steps": steps, "checkpoint_minutes": minutes,
    }  # fmt: skip
    envelope = job_envelope(
        contract, "hospital", parse_recipe(recipe), "hospital/queries-adapter", HOSPITAL.secret("signing"),
        now=NOW, salt=b"s" * 16,
    )  # fmt: skip
    job = read_job(envelope, contract)
    state = ContractState(PINS, frozenset(), None, 1, frozenset())
    if fine:
        return check_job(contract, job, state)
    with pytest.raises(Denied) as caught:
        check_job(contract, job, state)
    assert caught.value.code == "recipe.checkpoints"
    return None


def test_a_draft_names_stock_key_brokers() -> None:
    entry = {**ENTRY, "unbound": "true"}
    assert draft(trustees={"lab": entry}).fields["trustees"] == {"lab": ENTRY}
    assert "trustees" not in draft().fields
    for wrong in ("lab", ["lab"], {"lab": "x"}, {"lab": {**entry, "unbound": "x"}}, {"lab": {**entry, "pin": "x"}}):
        with pytest.raises(Misuse):
            draft(trustees=wrong)
    with pytest.raises(Misuse) as caught:
        draft(trustees={"lab": {key: value for key, value in ENTRY.items() if key != "unbound"}})
    assert "trustees.unbound" in caught.value.message


def test_nodes_reach_it_where_the_contract_says() -> None:
    directory = {name: {"address": f"{name}:1", "card": ""} for name in ("hospital", "lab")}
    assert reached(make_contract(), directory) == {"hospital": ("hospital", 1), "lab": ("lab", 1)}
    there = {"hospital": ("hospital", 1), "lab": ("kbs.example", 8080)}
    assert reached(contract_with(trustees={"lab": ENTRY}), directory) == there
    assert reached(contract_with(trustees={"lab": ENTRY}), {"hospital": directory["hospital"]}) == there


# What such a party stores


def test_a_stored_key_is_for_one_asset_under_one_contract() -> None:
    stored = trustee_key(b"c" * 32, BASE, b"k" * 32)
    assert read_trustee_key(stored, contract=b"c" * 32, asset=BASE) == b"k" * 32
    for contract, asset in ((b"d" * 32, BASE), (b"c" * 32, b"x" * 32)):
        with pytest.raises(Untrusted) as caught:
            read_trustee_key(stored, contract=contract, asset=asset)
        assert caught.value.code == "trustee.other"


@pytest.mark.parametrize("change", [{"key": "aaaa"}, {"key": 1}, {"type": "x"}, {"more": 1}, {"contract": ""}])
def test_a_stored_key_of_another_form(change: dict[str, Any]) -> None:
    body = {**parse_canonical(trustee_key(b"c" * 32, BASE, b"k" * 32)), **change}
    with pytest.raises(Malformed):
        read_trustee_key(canonical_json(body), contract=b"c" * 32, asset=BASE)


@pytest.mark.parametrize("data", [b"", b"k" * 32, b"[]", b"{}", b"\xff" * 40, b"{" * 2000])
def test_a_bare_key_is_none(data: bytes) -> None:
    with pytest.raises(CloisterError):
        read_trustee_key(data, contract=b"c" * 32, asset=BASE)
