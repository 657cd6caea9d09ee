"""Tenancy and devices in a contract: optional, strict, and shown to whoever signs."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from cloister.client.describe import describe
from cloister.client.proposal import read_draft
from cloister.contracts import CONTRACT_TYPE, contract_document, read_contract
from cloister.crypto import canonical_json, sign_document
from cloister.errors import Malformed, Misuse
from tests.bundles import PINS, contract_fields, make_contract
from tests.unit.test_client_proposal import GOOD, NOW

PLATFORM = contract_fields()["platform"]
CHIP, EK = "ab" * 64, "cd" * 32


def with_platform(**more: Any) -> Any:
    document = contract_document({**contract_fields(), "platform": {**PLATFORM, **more}}, PINS)
    return read_contract(sign_document(CONTRACT_TYPE, document))


def test_a_contract_that_says_nothing_of_it_is_what_it_was() -> None:
    contract = make_contract()
    assert (contract.platform.tenancy, contract.platform.devices) == (None, {})
    assert set(contract.envelope.document()["platform"]) == set(PLATFORM)
    assert canonical_json(contract.envelope.document()) == contract.envelope.payload
    assert not [what for what, _ in describe(contract) if what in ("device", "tenancy")]


def test_what_is_said_is_read() -> None:
    platform = with_platform(tenancy="exclusive", devices={"snp": [CHIP], "tpm": [EK, "ef" * 32]}).platform
    assert platform.tenancy == "exclusive"
    assert platform.devices == {"snp": (CHIP,), "tpm": (EK, "ef" * 32)}


@pytest.mark.parametrize(
    "more",
    [
        {"tenancy": None},
        {"tenancy": "alone"},
        {"tenancy": True},
        {"devices": None},
        {"devices": {}},
        {"devices": []},
        {"devices": {"snp": []}},
        {"devices": {"snp": CHIP}},
        {"devices": {"snp": [""]}},
        {"devices": {"snp": ["AB"]}},
        {"devices": {"snp": ["abc"]}},
        {"devices": {"snp": [CHIP, CHIP]}},
        {"devices": {"snp": ["ab" * 129]}},
        {"devices": {"SNP": [CHIP]}},
        {"devices": {f"p{i}": [EK] for i in range(17)}},
        {"tenants": "shared"},
    ],
)
def test_another_form_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        with_platform(**more)


def test_whoever_signs_sees_every_device_and_the_tenancy() -> None:
    contract = with_platform(tenancy="exclusive", devices={"snp": [CHIP], "nvidia": ["01", "02"]})
    shown = describe(contract, full=True)
    devices = [words for what, words in shown if what == "device"]
    assert sorted(devices) == ["nvidia 01, no other nvidia", "nvidia 02, no other nvidia", f"snp {CHIP}, no other snp"]
    assert dict(shown)["tenancy"].startswith("exclusive: nobody else's work")
    assert dict(describe(with_platform(tenancy="shared")))["tenancy"].startswith("shared: other parties' work")


def draft(platform: dict[str, Any]) -> Any:
    named = {"measurements": ["11" * 32], "agents": ["22" * 32], "attesters": ["33" * 32]}
    return read_draft(yaml.safe_dump({**GOOD, "platform": {**named, **platform}}), now=NOW)


def test_a_draft_carries_them_into_the_proposal() -> None:
    document = draft({"tenancy": "shared", "devices": {"tpm": [EK]}}).platform_document(None)
    assert (document["tenancy"], document["devices"]) == ("shared", {"tpm": [EK]})
    assert not {"tenancy", "devices"} & set(draft({}).platform_document(None))


@pytest.mark.parametrize("platform", [{"devices": ["x"]}, {"devices": {"tpm": EK}}, {"tenancy": ["x"]}, {"device": []}])
def test_a_draft_of_another_form(platform: dict[str, Any]) -> None:
    with pytest.raises(Misuse):
        draft(platform)
