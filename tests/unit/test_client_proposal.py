"""``contract.yaml``: what it means, and what is said about what it shouldn't hold."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
import yaml

from cloister.client.describe import ASSURANCE, describe
from cloister.client.installation import platform_matches
from cloister.client.proposal import read_draft
from cloister.contracts import LEVELS
from cloister.errors import Malformed, Misuse
from tests.bundles import contract_fields, make_contract

NOW = 1_790_000_000
CLAIM = {"measurement": "11" * 32, "agent": "22" * 32, "attester": "33" * 32, "hardware": "x", "level": "none"}
GOOD: dict[str, Any] = {
    "name": "intents",
    "parties": ["hospital", "lab"],
    "assets": ["hospital/queries", "lab/minilm"],
    "purpose": "classify",
    "recipes": {"tasks": ["classification"], "methods": ["lora"], "max_epochs": 20},
    "runs": 5,
    "outputs": [{"name": "hospital/adapter", "form": "adapter", "recipients": ["hospital"]}],
    "gates": [{"metric": "accuracy", "better_than_base_by": "0.0"}],
    "unbounded_memorization": ["hospital"],
    "telemetry": ["loss"],
    "lease_seconds": 30,
    "assurance": "none",
    "regions": ["local"],
    "expires": "90d",
    "platform": "this",
}


def draft(**changes: Any) -> Any:
    fields = {k: v for k, v in {**GOOD, **changes}.items() if v is not None}
    return read_draft(yaml.safe_dump(fields), now=NOW)


def test_a_whole_file() -> None:
    read = draft()
    assert (read.name, read.parties, read.assets) == (
        "intents",
        ("hospital", "lab"),
        ("hospital/queries", "lab/minilm"),
    )
    assert read.fields["expires"] == NOW + 90 * 86_400
    assert read.fields["recipes"] == {"tasks": ["classification"], "methods": ["lora"], "max_epochs": 20}
    assert read.fields["runs"] == 5
    assert read.fields["gates"] == GOOD["gates"]
    assert read.platform is None


def test_defaults_let_nothing_out() -> None:
    read = draft(
        gates=None, telemetry=None, unbounded_memorization=None, lease_seconds=None, regions=None, platform=None
    )
    assert read.fields["telemetry"] == read.fields["unbounded_memorization"] == []
    assert read.fields["lease_seconds"] == 30
    assert read.platform is None


@pytest.mark.parametrize("key", ["name", "parties", "assets", "purpose", "recipes", "runs", "outputs", "expires"])
def test_what_is_missing_is_named(key: str) -> None:
    with pytest.raises(Misuse) as caught:
        draft(**{key: None})
    assert caught.value.code == "contract.missing"
    assert f"'{key}'" in caught.value.message


@pytest.mark.parametrize(
    ("changes", "near"),
    [
        ({"asset": []}, "assets"),
        ({"leaseseconds": 3}, "lease_seconds"),
        ({"recipes": {"tasks": [], "methods": [], "max_epoch": 2}}, "max_epochs"),
        ({"outputs": [{"name": "a/b", "form": "adapter", "recipient": []}]}, "recipients"),
        ({"gates": [{"metrics": "x"}]}, "metric"),
        ({"platform": {"measurement": []}}, "measurements"),
    ],
)
def test_an_unknown_key_gets_the_nearest_valid_one(changes: dict[str, Any], near: str) -> None:
    with pytest.raises(Misuse) as caught:
        draft(**changes)
    assert caught.value.code == "contract.key"
    assert f"'{near}'" in caught.value.message


@pytest.mark.parametrize(
    "changes",
    [
        {"runs": "many"},
        {"runs": -1},
        {"parties": "hospital"},
        {"assets": [{"x": 1}]},
        {"expires": "soon"},
        {"expires": "2027-13-01"},
        {"expires": "0d"},
        {"recipes": ["lora"]},
        {"outputs": ["x"]},
        {"outputs": [{"name": "a/b", "form": "adapter", "recipients": "hospital"}]},
        {"gates": ["accuracy"]},
        {"platform": ["x"]},
        {"platform": {"measurements": [], "agents": [], "attesters": [], "pcrs": ["7"]}},
        {"purpose": ["x"]},
    ],
)
def test_values_of_another_form_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(Misuse) as caught:
        draft(**changes)
    assert caught.value.code == "contract.value"


@pytest.mark.parametrize(
    "text", ["a: &x 1\nb: *x", "- list", "a: !!python/object:os.system x", "{", "name: a\nname: b"]
)
def test_only_plain_yaml_is_read(text: str) -> None:
    with pytest.raises(Malformed) as caught:
        read_draft(text, now=NOW)
    assert caught.value.code.startswith("contract.yaml")
    assert "recipe" not in caught.value.message.lower()


def test_a_day_is_its_first_second() -> None:
    day = datetime.datetime(2027, 11, 20, tzinfo=datetime.UTC)
    assert draft(expires="2027-11-20").fields["expires"] == int(day.timestamp())


def test_this_platform_is_what_the_node_claims() -> None:
    platform = draft().platform_document(CLAIM)
    assert platform == {
        "agents": ["22" * 32],
        "assurance": "none",
        "attesters": ["33" * 32],
        "measurements": ["11" * 32],
        "pcrs": {},
        "regions": ["local"],
        "witness_quorum": 0,
    }
    with pytest.raises(Misuse) as caught:
        draft().platform_document(None)
    assert caught.value.code == "contract.platform"


def test_an_explicit_platform_is_taken_as_it_stands() -> None:
    given = {"measurements": ["aa" * 32], "agents": ["bb" * 32], "attesters": ["cc" * 32], "pcrs": {"7": "dd" * 32}}
    platform = draft(platform=given, assurance="tpm").platform_document(None)
    assert platform == {**given, "assurance": "tpm", "regions": ["local"], "witness_quorum": 1}
    assert draft(platform={**given, "witness_quorum": 2}).platform_document(None)["witness_quorum"] == 2


def test_a_contract_in_words() -> None:
    rows = describe(make_contract())
    text = "\n".join(f"{what}: {value}" for what, value in rows)
    assert "hospital, lab" in text
    assert "hospital/queries-adapter as adapter, to hospital alone" in text
    assert "can contain rows" in text
    assert "whoever runs the machine can read its memory" in text
    assert "aaaaaaaaaaaaaaaa…" in text
    assert "within 30 seconds" in text


def test_a_contract_beside_this_installation() -> None:
    platform = {**contract_fields()["platform"], "measurements": ["aa" * 32, "66" * 32]}
    contract = make_contract(platform=platform)
    assert ("digest", contract.digest.hex()) in describe(contract)
    rows = describe(contract, here={"measurement": "aa" * 32})
    assert [value for what, value in rows if what == "workload"] == [
        "aaaaaaaaaaaaaaaa…, matches this installation",
        "6666666666666666…, does NOT match this installation",
    ]
    assert dict(rows)["agent"] == "bbbbbbbbbbbbbbbb…, nothing runs here to compare it with"
    assert platform_matches(contract, {"measurement": "aa" * 32}) == {"agent": None, "measurement": False}
    assert dict(describe(contract, full=True))["agent"] == "bb" * 32
    with_digests = [value for what, value in describe(contract, full=True) if what == "uses"]
    assert all("…" not in value for value in with_digests)


def test_every_level_has_words() -> None:
    assert set(ASSURANCE) == set(LEVELS)


def test_a_contract_that_permits_nothing_says_so() -> None:
    platform = {
        "measurements": [], "agents": [], "attesters": [], "pcrs": {}, "assurance": "none", "regions": [],
        "witness_quorum": 0,
    }  # fmt: skip
    rows = dict(describe(make_contract(platform=platform, gates=[], telemetry=[], expires=2**53 - 1)))
    assert rows["workload"] == rows["agent"] == rows["attester"] == "none permitted"
    assert rows["gates"] == "none"
    assert rows["telemetry"].startswith("no figures")
    assert rows["in force"].endswith("no end")
