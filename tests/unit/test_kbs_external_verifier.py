"""Tokens of other verifiers: what counts is the pin. The attacks: ``tests/adversarial/test_kbs_token_forged.py``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.attestation import ReferenceValues, appraise, result_token, verify_token
from cloister.attestation.external import ExternalVerifier
from cloister.attestation.models import guest_digest
from cloister.crypto import SigningKey
from cloister.crypto.jws import JwsKey, verify_jws
from cloister.errors import CloisterError, Denied, Malformed, Misuse, Untrusted
from tests.ear_forge import (
    CHIP,
    CONTRACT,
    INSTANCE,
    JOB,
    MR_TD,
    NOW,
    REPORT,
    SIGNERS,
    TEE_PUBKEY,
    WORKLOAD,
    b64,
    evidence,
    judge,
    nested,
    pin,
    trustee,
    veraison,
)


@pytest.mark.parametrize("form", [trustee, veraison])
@pytest.mark.parametrize("algorithm", ["ES256", "ES384", "EdDSA"])
def test_a_pinned_verifiers_token_becomes_claims(form: Callable[[], dict[str, Any]], algorithm: str) -> None:
    claims = judge(form(), pin(form, algorithm), algorithm)
    assert (claims.tee, claims.level) == ("ear", "cpu-tee")
    assert (claims.instance, claims.contract, claims.job) == (INSTANCE.hex(), CONTRACT.hex(), JOB.hex())
    assert claims.measurement == WORKLOAD.hex()
    assert claims.agent == guest_digest("tdx", {"mrtd": MR_TD})  # the name that the platform's own verifier gives it
    assert [(d.name, d.tee, d.identity, d.facts["status"]) for d in claims.devices] == [
        ("cpu0", "ear", CHIP, "affirming")
    ]
    assert "word of attestation-service" in claims.notes[0]


def test_the_level_is_the_pins_and_never_the_tokens() -> None:
    body = trustee()
    body["submods"]["cpu0"]["level"] = "gpu-tee"
    assert judge(body, pin(level="none")).level == "none"


def test_the_machine_and_the_verifier_name_the_attester() -> None:
    names = {judge(trustee()).attester, judge(trustee(), pin(algorithm="EdDSA"), "EdDSA").attester}
    body = trustee()
    body["submods"]["cpu0"]["ear_attester_claims"]["claims"]["platform"] = "ee" * 16
    names.add(judge(body).attester)
    assert len(names) == 3


def test_the_second_of_two_pins_counts_too() -> None:
    verifier = ExternalVerifier([pin(algorithm="EdDSA"), pin()])
    assert verifier.verify(evidence(SIGNERS["ES256"].token(trustee())), REPORT, now=NOW).level == "cpu-tee"


def test_a_warning_counts_only_where_the_pin_says_so() -> None:
    body = nested(trustee(), "submods/cpu0/ear_status", "warning")
    body["submods"]["cpu0"]["ear_trustworthiness_vector"]["hardware"] = 32
    assert judge(body, pin(warnings=True)).devices[0].facts["status"] == "warning"
    body["submods"]["cpu0"]["ear_trustworthiness_vector"]["hardware"] = 96
    with pytest.raises(Untrusted):
        judge(body, pin(warnings=True))


def test_a_list_of_one_nonce_is_a_nonce() -> None:
    assert judge({**veraison(), "eat_nonce": [b64(REPORT)]}, pin(veraison)).level == "cpu-tee"


@pytest.mark.parametrize(
    "primary", [{}, {"token": 5}, {"token": "a.b"}, {"token": "x", "more": 1}, {"token": "x" * 140_000}]
)
def test_evidence_that_is_no_token(primary: dict[str, Any]) -> None:
    try:
        shown = evidence("", primary=primary)
    except Malformed:
        return  # too large for any evidence
    with pytest.raises((Malformed, Untrusted)):
        ExternalVerifier([pin()]).verify(shown, REPORT, now=NOW)


def test_a_token_that_is_shown_as_another_platforms_evidence() -> None:
    with pytest.raises(Untrusted) as refused:
        ExternalVerifier([pin()]).verify(replace(evidence(trustee()), tee="tdx"), REPORT, now=NOW)
    assert refused.value.code == "ear.tee"


NAMES = st.sampled_from(["eat_profile", "iat", "exp", "submods", "cpu0", "ear_status"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300) | JSON)
def test_any_signed_payload_is_refused_in_words_of_ours(payload: Any) -> None:
    with pytest.raises(CloisterError):
        judge(payload, pin(algorithm="EdDSA"), "EdDSA")


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_no_token(text: str) -> None:
    with pytest.raises((Malformed, Untrusted)):
        verify_jws(text, JwsKey.from_jwk(SIGNERS["ES384"].jwk, "ES384"), limit=200)


@pytest.mark.parametrize(
    ("jwk", "algorithm"),
    [
        (SIGNERS["ES256"].jwk, "ES384"),
        (SIGNERS["ES384"].jwk, "ES256"),
        (SIGNERS["ES256"].jwk, "EdDSA"),
        (SIGNERS["EdDSA"].jwk, "ES256"),
        (SIGNERS["ES256"].jwk, "RS256"),
        ({**SIGNERS["EdDSA"].jwk, "d": "AA"}, "EdDSA"),
        ({**SIGNERS["EdDSA"].jwk, "alg": "ES256"}, "EdDSA"),
        ({**SIGNERS["EdDSA"].jwk, "x": "AA"}, "EdDSA"),
        ({**SIGNERS["ES256"].jwk, "y": SIGNERS["ES256"].jwk["x"]}, "ES256"),
        (None, "EdDSA"),
    ],
)
def test_keys_that_can_not_be_pinned(jwk: Any, algorithm: str) -> None:
    with pytest.raises(Malformed):
        JwsKey.from_jwk(jwk, algorithm)


@pytest.mark.parametrize(
    "changes",
    [
        {"measurements": {}},
        {"bound_at": None},
        {"binding": "eat_nonce"},
        {"name": "Not a name"},
        {"submodule": ""},
        {"profile": ""},
    ],
)
def test_pins_that_are_not_whole(changes: dict[str, Any]) -> None:
    with pytest.raises(Misuse):
        pin(**changes)


@pytest.mark.parametrize(
    "changes",
    [{"more": 1}, {"level": "best"}, {"most_seconds": 0}, {"required": {"/a": 1.5}}, {"measurements": {"mrtd": "a"}}],
)
def test_pins_of_another_form(changes: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        pin(**changes)


def test_a_pin_can_not_be_made_with_an_unknown_level() -> None:
    with pytest.raises(Misuse):
        replace(pin(), level="highest")  # type: ignore[arg-type]


def test_its_claims_are_appraised_and_told_like_any_others() -> None:
    claims = judge(trustee())
    named = ReferenceValues(
        measurements=frozenset({claims.measurement}),
        agents=frozenset({claims.agent}),
        attesters=frozenset({claims.attester}),
        pcrs={},
        least_level="cpu-tee",
    )
    appraise(claims, named, instance=INSTANCE, contract=CONTRACT, job=JOB)
    key = SigningKey.generate()
    token = result_token(claims, named, signer=key, now=NOW, ttl=60, tee_pubkey=TEE_PUBKEY)
    parts = verify_token(token, key.public, now=NOW)["submods"]
    assert all(part["ear.status"] in ("affirming", "warning") for part in parts.values())
    with pytest.raises(Denied):
        appraise(judge(trustee(), pin(level="tpm")), named, instance=INSTANCE, contract=CONTRACT, job=JOB)
