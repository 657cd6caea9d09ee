"""Truncated, oversized, nested and mutated evidence: only typed errors, and always the same one."""

import base64
import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.attestation import Evidence
from cloister.attestation.models import MAX_ADDITIONAL, MAX_EVENTS
from cloister.attestation.tpm import TpmVerifier
from cloister.errors import CloisterError, Malformed, Untrusted
from tests.adversarial.evidence_forge import Forge, Log, launch_event

FORGE = Forge()
GOOD = FORGE.evidence(Log())
REPORT = FORGE.report(GOOD.additional)


def outcome(evidence, report=REPORT):
    """The class and code of the refusal; verifying twice must say the same."""
    codes = []
    for _ in range(2):
        with pytest.raises(CloisterError) as caught:
            TpmVerifier().verify(evidence, report, now=0)
        assert isinstance(caught.value, Malformed | Untrusted)
        codes.append((type(caught.value), caught.value.code))
    assert codes[0] == codes[1]
    return codes[0]


def with_primary(**changed):
    return dataclasses.replace(GOOD, primary=GOOD.primary | changed)


@given(st.sampled_from(["quote", "signature", "ak_public", "ek_public"]), st.integers(0, 10**6))
@settings(max_examples=150, deadline=None)
def test_bit_flip_in_a_signed_structure(field, position):
    raw = bytearray(base64.b64decode(GOOD.primary[field]))
    bit = position % (8 * len(raw))
    raw[bit // 8] ^= 1 << (bit % 8)
    outcome(with_primary(**{field: base64.b64encode(bytes(raw)).decode()}))


@given(st.sampled_from(sorted(GOOD.primary["pcrs"])), st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_bit_flip_in_a_pcr_value(index, bit):
    raw = bytearray.fromhex(GOOD.primary["pcrs"][index])
    raw[bit // 8] ^= 1 << (bit % 8)
    assert outcome(with_primary(pcrs=GOOD.primary["pcrs"] | {index: raw.hex()})) == (Untrusted, "tpm.pcr-digest")


@given(st.integers(0, len(GOOD.additional) - 1), st.integers(0, 6))
@settings(max_examples=150, deadline=None)
def test_bit_flip_in_the_event_log(position, bit):
    """Twice: as received (the signed report differs), and with a report that an accomplice computed anew."""
    text = GOOD.additional
    changed = text[:position] + chr(ord(text[position]) ^ (1 << bit)) + text[position + 1 :]
    evidence = dataclasses.replace(GOOD, additional=changed)
    assert outcome(evidence, FORGE.report(changed)) == (Untrusted, "tpm.report")
    outcome(evidence)  # the verifier computed no new report: then the log itself must give it away


@given(st.sampled_from(["quote", "signature", "ak_public", "ek_public"]), st.text(max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_text_in_place_of_a_structure(field, text):
    outcome(with_primary(**{field: text}))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)


@given(JSON, st.sampled_from(["quote", "signature", "ak_public", "ek_public", "pcrs"]))
@settings(max_examples=100, deadline=None)
def test_any_json_in_place_of_a_field(value, field):
    try:
        evidence = with_primary(**{field: value})
    except Malformed:
        return  # refused even earlier, by the size or text rules
    outcome(evidence)


@given(JSON)
@settings(max_examples=100, deadline=None)
def test_any_json_in_place_of_the_event_log(value):
    try:
        evidence = Evidence("tpm", GOOD.primary, json.dumps(value))
    except Malformed:
        return
    outcome(evidence)


@pytest.mark.parametrize("field", ["quote", "signature", "ak_public", "ek_public"])
def test_truncated_structures(field):
    for size in range(0, len(GOOD.primary[field]), 4):
        outcome(with_primary(**{field: GOOD.primary[field][:size]}))


def test_missing_and_additional_fields():
    for field in GOOD.primary:
        fewer = {k: v for k, v in GOOD.primary.items() if k != field}
        assert outcome(dataclasses.replace(GOOD, primary=fewer)) == (Malformed, "tpm.form")
    assert outcome(with_primary(more="")) == (Malformed, "tpm.form")
    assert outcome(with_primary(pcrs=GOOD.primary["pcrs"] | {"16": "00" * 32})) == (Malformed, "tpm.pcrs")
    assert outcome(with_primary(pcrs=GOOD.primary["pcrs"] | {"0": "00"})) == (Malformed, "tpm.pcrs")
    assert outcome(with_primary(quote="A" * 5000)) == (Malformed, "tpm.base64")
    assert outcome(with_primary(quote=GOOD.primary["quote"] + "\n")) == (Malformed, "tpm.base64")


def stray_bits(text: str) -> str:
    """Another text for the same bytes: base64 with a changed bit that no decoder looks at."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    body = text.rstrip("=")
    return body[:-1] + alphabet[alphabet.index(body[-1]) ^ 1] + "=" * (len(text) - len(body))


def test_second_encoding_of_the_same_bytes():
    field = next(f for f in ("quote", "signature", "ak_public", "ek_public") if GOOD.primary[f].endswith("="))
    assert outcome(with_primary(**{field: stray_bits(GOOD.primary[field])})) == (Malformed, "tpm.base64")


def signed(log):
    """Evidence that signs this log, whatever it is, so that only the log's own rules can refuse it."""
    evidence = FORGE.evidence(log)
    return evidence, FORGE.report(evidence.additional)


def test_log_with_too_many_events():
    log = Log()
    filler = [{"digest": f"{i:064x}", "kind": "launch"} for i in range(MAX_EVENTS - 2)]
    log.events += filler
    assert len(log.events) == MAX_EVENTS + 1
    assert outcome(*signed(log)) == (Malformed, "evidence.event-count")
    log.events.pop()
    evidence, report = signed(log)
    assert TpmVerifier().verify(evidence, report, now=0).level == "none"


def test_evidence_that_is_too_long():
    log = Log()
    log.events += [{"digest": f"{i:064x}", "kind": "launch"} for i in range(2000)]
    with pytest.raises(Malformed) as caught:
        Evidence("tpm", GOOD.primary, log.text())
    assert caught.value.code == "evidence.size"
    assert len(log.text()) > MAX_ADDITIONAL


def test_nested_json_does_not_exhaust_the_stack():
    for text in ("[" * 16_000, '{"a":' * 10_000, "[" * 16_000 + "]" * 16_000):
        assert outcome(dataclasses.replace(GOOD, additional=text)) == (Malformed, "json.depth")


def test_log_in_another_encoding_of_the_same_json():
    """One meaning, one text: otherwise the report and the log could be made to disagree."""
    for text in (
        json.dumps(json.loads(GOOD.additional)),
        GOOD.additional + " ",
        GOOD.additional.replace('"kind"', '"kin\\u0064"', 1),
        GOOD.additional.replace('"kind":"agent"', '"kind":"agent","kind":"agent"', 1),
    ):
        assert outcome(dataclasses.replace(GOOD, additional=text))[0] is Malformed


@pytest.mark.parametrize(
    "change",
    [
        {"digest": "00"},
        {"digest": 7},
        {"digest": "AA" * 32},
        {"kind": "shutdown"},
        {"kind": None},
        {"more": "field"},
    ],
)
def test_list_entry_of_another_form(change):
    log = Log()
    text = log.text()
    log.events[1] = log.events[1] | change
    log.pcr = lambda: Log.pcr(Log())  # type: ignore[method-assign]  # never reached: the form is checked first
    assert text != log.text()
    assert outcome(*signed(log)) == (Malformed, "evidence.events")


@pytest.mark.parametrize("change", [{"salt": ""}, {"salt": 1}, {"instance": "gg" * 16}, {"job": "00" * 31}, {"x": ""}])
def test_opened_event_of_another_form(change):
    log = Log()
    log.opened = launch_event() | change  # type: ignore[operator]
    assert outcome(*signed(log)) == (Malformed, "evidence.events")
