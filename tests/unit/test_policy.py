"""An owner's appraisal policy: the engine, its strict form, and the rules that are built in."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.attestation import Claims
from cloister.attestation.models import Device
from cloister.attestation.policy import DEFAULT_POLICY, AppraisalPolicy, PolicyDenied, read_policy
from cloister.crypto import canonical_json
from cloister.errors import CloisterError, Denied, Malformed

Z = "0" * 64
CHIP = "ab" * 64
SNP = Device(
    "cpu0",
    "snp",
    CHIP,
    {"launch": "cd" * 48},
    {"debug": False, "product": "genoa", "tcb.snp": 22, "advisories": ["a"], "vmpl": 0},
)
GPU = Device("gpu0", "nvidia", "12", {}, {"measurements_match": True, "confidential": True, "debug": False})


def claims(*devices: Device, level: str = "cpu-tee", tee: str = "snp") -> Claims:
    return Claims(tee, level, Z, Z, Z, "00" * 16, Z, Z, devices=devices)


def document(*rules: dict[str, Any], **changes: Any) -> dict[str, Any]:
    made = {
        "default": False,
        "least_level": "none",
        "name": "test",
        "platforms": {"snp": list(rules)},
        "type": "appraisal-policy/v1",
    }
    return made | changes


def policy(*rules: dict[str, Any], **changes: Any) -> AppraisalPolicy:
    return read_policy(canonical_json(document(*rules, **changes)))


def refused(made: AppraisalPolicy, about: Claims) -> PolicyDenied:
    with pytest.raises(PolicyDenied) as caught:
        made.check(about)
    return caught.value


@pytest.mark.parametrize(
    "rule",
    [
        {"about": "fact debug", "is": False},
        {"about": "fact vmpl", "is": 0},
        {"about": "fact product", "is": "genoa"},
        {"about": "fact tcb.snp", "at_least": 22},
        {"about": "fact tcb.snp", "at_most": 22},
        {"about": "fact product", "one_of": ["milan", "genoa"]},
        {"about": "fact advisories", "subset_of": ["b", "a"]},
        {"about": "fact migration", "absent": True},
        {"about": "measurement launch", "one_of": ["00", "cd" * 48]},
        {"about": "identity", "one_of": [CHIP]},
        {"about": "fact tcb.snp", "at_least": 99, "where": {"product": "milan"}},
        {"about": "fact tcb.snp", "at_least": 22, "where": {"product": "genoa", "vmpl": 0}},
    ],
)
def test_a_rule_that_holds(rule: dict[str, Any]) -> None:
    policy(rule).check(claims(SNP))
    assert policy(rule).document() == document(rule)


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        ({"about": "fact debug", "is": True}, "false"),
        ({"about": "fact debug", "is": 0}, "false"),  # 0 is not false
        ({"about": "fact vmpl", "is": False}, "0"),
        ({"about": "fact product", "is": "Genoa"}, '"genoa"'),
        ({"about": "fact tcb.snp", "at_least": 23}, "22"),
        ({"about": "fact tcb.snp", "at_most": 21}, "22"),
        ({"about": "fact debug", "at_least": 0}, "false"),  # a truth is no number
        ({"about": "fact product", "at_least": 0}, '"genoa"'),
        ({"about": "fact product", "one_of": []}, '"genoa"'),
        ({"about": "fact vmpl", "one_of": [False]}, "0"),
        ({"about": "fact advisories", "subset_of": []}, '["a"]'),
        ({"about": "fact product", "subset_of": ["genoa"]}, '"genoa"'),
        ({"about": "fact debug", "absent": True}, "false"),
        ({"about": "fact unheard", "is": False}, "nothing"),
        ({"about": "fact unheard", "at_most": 5}, "nothing"),
        ({"about": "fact unheard", "subset_of": ["a"]}, "nothing"),
        ({"about": "measurement launch", "one_of": ["00"]}, f'"{"cd" * 48}"'),
        ({"about": "measurement mrtd", "one_of": ["00"]}, "nothing"),
        ({"about": "identity", "one_of": ["00"]}, f'"{CHIP}"'),
        ({"about": "fact tcb.snp", "at_least": 0, "where": {"unheard": 1}}, "no fact unheard"),
    ],
)
def test_a_rule_that_fails_says_which_and_what_was_found(rule: dict[str, Any], found: str) -> None:
    error = refused(policy(rule), claims(SNP))
    assert error.code == "policy.rule"
    (finding,) = error.findings
    assert (finding.device, finding.platform, finding.found) == ("cpu0", "snp", found)
    assert finding.rule.startswith(rule["about"])


def test_an_identity_that_a_device_does_not_have() -> None:
    nameless = dataclasses.replace(SNP, identity="")
    assert refused(policy({"about": "identity", "one_of": [CHIP]}), claims(nameless)).findings[0].found == "nothing"
    policy({"about": "identity", "absent": True}).check(claims(nameless))


def test_what_the_owner_may_read_nobody_else_is_told() -> None:
    error = refused(policy({"about": "fact tcb.snp", "at_least": 23}), claims(SNP))
    assert isinstance(error, Denied)
    assert error.log_details() == {
        "policy_device": "cpu0 (snp)",
        "policy_findings": 1,
        "policy_found": "22",
        "policy_rule": "fact tcb.snp: at_least 23",
    }
    outside = json.dumps(error.to_wire()) + str(error)
    assert "tcb" not in outside
    assert "22" not in outside
    assert "23" not in outside


def test_what_an_owner_consents_to_is_shown_whole_and_what_is_logged_says_where_it_was_cut() -> None:
    ids = [f"{number:02x}" * 64 for number in range(40)]
    where = {"about": "fact debug", "is": False, "where": {"name": "n" * 250}}
    long = policy({"about": "identity", "one_of": ids}, where)
    words = [rule.words() for rule in long.platforms["snp"]]
    assert all(one in words[0] for one in ids)
    assert "n" * 250 in words[1]
    (finding,) = refused(long, claims(Device("cpu0", "snp", identity="ff" * 128, facts={"name": "x"}))).findings
    assert (len(finding.rule), finding.rule[-1], finding.rule[:-1]) == (1024, "…", words[0][:1023])
    assert (len(finding.found), finding.found[-1]) == (200, "…")


def test_every_device_of_a_platform_is_looked_at() -> None:
    second = dataclasses.replace(GPU, name="gpu1", facts=GPU.facts | {"debug": True})
    error = refused(DEFAULT_POLICY, claims(SNP, GPU, second, level="gpu-tee"))
    assert [finding.device for finding in error.findings] == ["gpu1"]


def test_a_platform_that_the_policy_does_not_know() -> None:
    for made in (policy(), DEFAULT_POLICY):
        error = refused(made, claims(SNP, dataclasses.replace(SNP, name="x0", tee="cca")))
        assert (error.code, error.findings[0].device) == ("policy.platform", "x0")


def test_evidence_without_devices_passes_no_rule() -> None:
    for made in (policy(), DEFAULT_POLICY):
        assert refused(made, claims()).code == "policy.devices"
    assert refused(policy(), claims(level="none", tee="insecure")).code == "policy.platform"
    own = policy({"about": "fact debug", "is": False})
    assert refused(own, claims(level="none")).findings[0].found == "nothing"


TD: dict[str, Any] = {"attributes.sept_ve_disable": True, "debug": False, "tcb_status": "UpToDate"}


def test_the_built_in_rules_hold_above_level_none() -> None:
    debug = dataclasses.replace(SNP, facts=SNP.facts | {"debug": True})
    DEFAULT_POLICY.check(claims(SNP))
    DEFAULT_POLICY.check(claims(debug, level="none"))
    DEFAULT_POLICY.check(claims(level="none", tee="insecure"))
    assert refused(DEFAULT_POLICY, claims(debug)).findings[0].rule == "fact debug: is false"


@pytest.mark.parametrize(
    ("tee", "good", "bad"),
    [
        ("snp", {"debug": False}, {"debug": True}),
        ("tdx", {**TD, "tcb_status": "SWHardeningNeeded"}, {**TD, "tcb_status": "OutOfDate"}),
        ("tdx", TD, {**TD, "attributes.sept_ve_disable": False}),
        ("sgx", {"debug": False, "tcb_status": "UpToDate"}, {"debug": False, "tcb_status": "Revoked"}),
        ("tpm", {"secure_boot": True}, {"secure_boot": False}),
        ("nvidia", GPU.facts, GPU.facts | {"confidential": False}),
        ("nvidia", GPU.facts, GPU.facts | {"measurements_match": False}),
        ("ear", {"status": "warning"}, {"status": "contraindicated"}),
    ],
)
def test_each_built_in_rule(tee: str, good: dict[str, Any], bad: dict[str, Any]) -> None:
    DEFAULT_POLICY.check(claims(Device("d0", tee, facts=good)))
    assert refused(DEFAULT_POLICY, claims(Device("d0", tee, facts=bad))).code == "policy.rule"
    for name in good:
        left = {key: value for key, value in good.items() if key != name}
        assert refused(DEFAULT_POLICY, claims(Device("d0", tee, facts=left))).findings[0].found == "nothing"


def test_an_owner_extends_or_replaces_the_built_in_rules() -> None:
    debug = dataclasses.replace(SNP, facts=SNP.facts | {"debug": True})
    floor = {"about": "fact tcb.snp", "at_least": 22}
    policy(floor).check(claims(debug))  # replaced, knowingly
    extended = policy(floor, default=True)
    extended.check(claims(SNP, GPU, level="gpu-tee"))
    assert refused(extended, claims(debug)).code == "policy.rule"
    assert refused(policy(floor), claims(SNP, GPU, level="gpu-tee")).code == "policy.platform"


def test_an_owner_raises_the_least_level() -> None:
    strict = policy(least_level="gpu-tee")
    assert refused(strict, claims(SNP)).code == "policy.level"
    strict.check(claims(SNP, level="gpu-tee"))


def test_the_digest_names_the_rules() -> None:
    one, other = policy({"about": "fact debug", "is": False}), policy({"about": "fact debug", "is": True})
    assert len({one.digest, other.digest, DEFAULT_POLICY.digest, policy().digest}) == 4
    assert one.digest == read_policy(canonical_json(one.document())).digest


def malformed(data: bytes) -> str:
    with pytest.raises(Malformed) as caught:
        read_policy(data)
    return caught.value.code


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"about": "fact debug"},
        {"about": "fact debug", "is": False, "at_least": 1},
        {"about": "fact debug", "is": False, "unless": True},
        {"about": "debug", "is": False},
        {"about": "fact ", "is": False},
        {"about": "fact a b", "is": False},
        {"about": "identity", "is": "00"},
        {"about": "measurement launch", "at_least": 1},
        {"about": "measurement launch", "one_of": ["ABCD"]},
        {"about": "measurement launch", "one_of": ["abc"]},
        {"about": "identity", "one_of": [1]},
        {"about": "fact x", "at_least": True},
        {"about": "fact x", "at_least": "5"},
        {"about": "fact x", "one_of": "abc"},
        {"about": "fact x", "one_of": [["a"]]},
        {"about": "fact x", "one_of": ["a"] * 4097},
        {"about": "fact x", "subset_of": [1]},
        {"about": "fact x", "absent": False},
        {"about": "fact x", "is": None},
        {"about": "fact x", "is": "a" * 257},
        {"about": "fact x", "is": 1, "where": {"y": []}},
        {"about": "fact x", "is": 1, "where": {str(i): 1 for i in range(5)}},
        "fact debug",
        None,
    ],
)
def test_a_rule_of_another_form(rule: Any) -> None:
    assert malformed(canonical_json(document(rule))).partition(".")[0] in ("policy", "form")


@pytest.mark.parametrize(
    "change",
    [
        {"type": "appraisal-policy/v2"},
        {"default": 1},
        {"least_level": "high"},
        {"name": "two\nlines"},
        {"name": "a" * 201},
        {"platforms": []},
        {"platforms": {"SNP": []}},
        {"platforms": {f"p{i}": [] for i in range(17)}},
        {"platforms": {"snp": [{"about": "identity", "absent": True}] * 257}},
        {"more": 1},
    ],
)
def test_a_policy_of_another_form(change: dict[str, Any]) -> None:
    malformed(canonical_json(document() | change))


def test_only_canonical_bytes_are_a_policy() -> None:
    good = canonical_json(document())
    read_policy(good)
    for bad in (good + b"\n", b" " + good, good.replace(b":", b": "), b"", b"[]", b"\xff", b"[" * 100, b"x" * 300_000):
        malformed(bad)


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with pytest.raises(CloisterError):
        read_policy(data)


_SCALARS = st.booleans() | st.integers(-5, 5) | st.text(max_size=3)
_FACTS = st.dictionaries(st.sampled_from("abc"), _SCALARS | st.lists(st.text(max_size=2), max_size=3), max_size=3)


@given(_FACTS, st.sampled_from("abc"), st.sampled_from(["is", "at_least", "at_most", "one_of", "subset_of"]), _SCALARS)
@settings(max_examples=200, deadline=None)
def test_a_missing_fact_never_passes(facts: dict[str, Any], name: str, test: str, value: Any) -> None:
    wanted = [value] if test in ("one_of", "subset_of") else value
    try:
        made = policy({"about": f"fact {name}", test: wanted})
    except Malformed:
        return
    device = Device("cpu0", "snp", facts={k: v for k, v in facts.items() if k != name})
    assert refused(made, claims(device)).findings[0].found == "nothing"
