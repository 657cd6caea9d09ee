"""A token that a pinned verifier did not sign, did not sign for this, or whose result is too bad."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.attestation import report_data
from cloister.attestation.events import Journal
from cloister.attestation.external import ExternalVerifier
from cloister.crypto import JweKey
from cloister.errors import Denied, Malformed, Untrusted
from tests.ear_forge import (
    CONTRACT,
    JOB,
    NONCE,
    NOW,
    REPORT,
    SIGNERS,
    TEE_PUBKEY,
    WORKLOAD,
    Signer,
    b64,
    evidence,
    judge,
    nested,
    pin,
    trustee,
    veraison,
)


def test_without_a_pin_nothing_is_accepted() -> None:
    with pytest.raises(Untrusted) as caught:
        ExternalVerifier([]).verify(evidence(SIGNERS["ES256"].token(trustee())), REPORT, now=NOW)
    assert caught.value.code == "ear.pin"


def test_a_key_in_the_header_is_never_used() -> None:
    stranger = Signer("ES256")
    for header in ({"jwk": stranger.jwk}, {"kid": "attestation-service"}, {"x5c": ["AAAA"], "jwk": stranger.jwk}):
        token = stranger.token(trustee(), **header)
        with pytest.raises(Untrusted) as caught:
            ExternalVerifier([pin()]).verify(evidence(token), REPORT, now=NOW)
        assert caught.value.code == "signature.invalid"


@pytest.mark.parametrize("algorithm", ["none", "HS256", "RS256", "ES384", "EdDSA", "es256", None, 5])
def test_the_algorithm_is_the_pins(algorithm: Any) -> None:
    token = SIGNERS["ES256"].token(trustee(), alg=algorithm)
    with pytest.raises(Untrusted) as caught:
        ExternalVerifier([pin()]).verify(evidence(token), REPORT, now=NOW)
    assert caught.value.code == "jws.algorithm"


@pytest.mark.parametrize("header", [{"crit": ["exp"]}, {"b64": False}, {"crit": []}])
def test_a_critical_extension_is_refused(header: dict[str, Any]) -> None:
    token = SIGNERS["ES256"].token(trustee(), **header)
    with pytest.raises(Untrusted) as caught:
        ExternalVerifier([pin()]).verify(evidence(token), REPORT, now=NOW)
    assert caught.value.code == "jws.critical"


@pytest.mark.parametrize(
    ("path", "value", "code"),
    [
        ("eat_profile", "tag:github.com,2023:veraison/ear", "ear.profile"),
        ("eat_profile", None, "ear.profile"),
        ("iat", NOW + 61, "ear.time"),
        ("exp", NOW, "ear.time"),
        ("exp", NOW + 296, "ear.time"),
        ("nbf", NOW + 61, "ear.time"),
        ("iat", None, "ear.form"),
        ("exp", None, "ear.form"),
        ("exp", True, "ear.form"),
        ("iat", "1", "ear.form"),
        ("submods", None, "ear.form"),
        ("submods", {}, "ear.form"),
        ("submods", {"cpu": {}}, "ear.submodule"),
        ("submods/cpu0/ear_status", "warning", "ear.status"),
        ("submods/cpu0/ear_status", "contraindicated", "ear.status"),
        ("submods/cpu0/ear_status", "none", "ear.status"),
        ("submods/cpu0/ear_status", 2, "ear.status"),
        ("submods/cpu0/ear_status", None, "ear.status"),
        ("submods/cpu0/ear.status", "affirming", "ear.form"),
        ("submods/cpu0/ear_trustworthiness_vector/hardware", 97, "ear.vector"),
        ("submods/cpu0/ear_trustworthiness_vector/hardware", 32, "ear.vector"),
        ("submods/cpu0/ear_trustworthiness_vector/hardware", -1, "ear.vector"),
        ("submods/cpu0/ear_trustworthiness_vector/hardware", "2", "ear.form"),
        ("submods/cpu0/ear_trustworthiness_vector", [2], "ear.form"),
        ("submods/gpu0", {"ear_status": "contraindicated"}, "ear.status"),
        ("submods/gpu0", {}, "ear.status"),
        ("submods/gpu0", [], "ear.form"),
        ("submods/GPU 0", {"ear_status": "affirming"}, "ear.form"),
        ("submods/cpu0/ear_verifier_claims/runtime_data/nonce", "other", "ear.binding"),
        ("submods/cpu0/ear_verifier_claims/runtime_data/tee-pubkey", JweKey().public_jwk, "ear.binding"),
        ("submods/cpu0/ear_verifier_claims/runtime_data/additional-evidence", "", "ear.binding"),
        ("submods/cpu0/ear_verifier_claims/runtime_data/more", 1, "ear.binding"),
        ("submods/cpu0/ear_verifier_claims/runtime_data", None, "ear.binding"),
        ("submods/cpu0/ear_verifier_claims", "text", "ear.binding"),
        ("submods/cpu0/ear_attester_claims/claims/td_attributes/debug", True, "ear.required"),
        ("submods/cpu0/ear_attester_claims/claims/td_attributes/debug", 0, "ear.required"),
        ("submods/cpu0/ear_attester_claims/claims/td_attributes", None, "ear.required"),
        ("submods/cpu0/ear_attester_claims/claims/quote/body/mr_td", "AB" * 48, "ear.claim"),
        ("submods/cpu0/ear_attester_claims/claims/quote/body/mr_td", None, "ear.claim"),
        ("submods/cpu0/ear_attester_claims/claims/platform", "", "ear.claim"),
    ],
)
def test_tokens_that_say_something_else(path: str, value: Any, code: str) -> None:
    with pytest.raises((Untrusted, Denied, Malformed)) as caught:
        judge(nested(trustee(), path, value))
    assert caught.value.code == code


@pytest.mark.parametrize(
    "nonce",
    [None, "", b64(b"x" * 32), [], [b64(REPORT), b64(REPORT)], REPORT.hex(), {"a": 1}],
    ids=["none", "empty", "other", "no list", "twice", "hex", "object"],
)
def test_another_nonce(nonce: Any) -> None:
    with pytest.raises(Untrusted) as caught:
        judge({**veraison(), "eat_nonce": nonce}, pin(veraison))
    assert caught.value.code == "ear.binding"


def test_the_launch_log_is_what_the_report_covers() -> None:
    other = Journal(b"a" * 32)
    other.commit(other.prepare(b"x" * 16, WORKLOAD, CONTRACT, JOB))
    token = SIGNERS["ES256"].token(trustee())
    shown = evidence(token, additional=other.additional(b"x" * 16))
    report = report_data(NONCE, TEE_PUBKEY, shown.additional)  # what the broker computes from what it received
    with pytest.raises(Untrusted) as caught:
        ExternalVerifier([pin()]).verify(shown, report, now=NOW)
    assert caught.value.code == "ear.binding"


def test_gpu_tee_needs_results_about_all_gpus() -> None:
    body = trustee()
    for gpus in ({}, {"gpu0": {"ear_status": "affirming"}}):
        body["submods"] = {"cpu0": body["submods"]["cpu0"], **gpus}
        with pytest.raises(Untrusted) as caught:
            judge(body, pin(level="gpu-tee"))
        assert caught.value.code == "ear.gpus"


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_changed_character_is_refused(data: st.DataObject) -> None:
    token = SIGNERS["EdDSA"].token(veraison())
    at = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.sampled_from("AZaz09-_.").filter(lambda c: c != token[at]))
    changed = token[:at] + other + token[at + 1 :]
    with pytest.raises((Malformed, Untrusted)):
        ExternalVerifier([pin(veraison, "EdDSA")]).verify(evidence(changed), REPORT, now=NOW)
