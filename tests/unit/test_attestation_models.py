"""Strict reading of evidence and reference values."""

import pytest

from cloister.attestation import LEVELS, Claims, Evidence, ReferenceValues, level_rank
from cloister.attestation.models import MAX_EVIDENCE
from cloister.errors import Malformed

A, B = "a" * 64, "b" * 64


def wire(**changed):
    return {"tee": "tpm", "primary_evidence": {"quote": "AA=="}, "additional_evidence": "{}"} | changed


def test_evidence_round_trip():
    body = wire()
    assert Evidence.from_wire(body).to_wire() == body


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (None, "evidence.form"),
        ([], "evidence.form"),
        ({"tee": "tpm"}, "evidence.form"),
        (wire(extra=1), "evidence.form"),
        (wire(primary_evidence="text"), "evidence.form"),
        (wire(additional_evidence={}), "evidence.form"),
        (wire(tee="TPM"), "evidence.tee"),
        (wire(tee="../tpm"), "evidence.tee"),
        (wire(tee=7), "evidence.tee"),
        (wire(tee="a" * 40), "evidence.tee"),
        (wire(primary_evidence={"x": 0.5}), "json.type"),
        (wire(primary_evidence={"x": "\ud800"}), "json.text"),
        (wire(additional_evidence="\ud800"), "json.text"),
        (wire(additional_evidence="a" * (MAX_EVIDENCE + 1)), "evidence.size"),
        (wire(additional_evidence="ä" * (MAX_EVIDENCE // 2)), "evidence.size"),
        (wire(primary_evidence={"x": "a" * MAX_EVIDENCE}), "evidence.size"),
    ],
)
def test_evidence_of_another_form_is_refused(body, code):
    with pytest.raises(Malformed) as caught:
        Evidence.from_wire(body)
    assert caught.value.code == code


def test_evidence_that_contains_itself_is_refused():
    primary: dict[str, object] = {}
    primary["again"] = primary
    with pytest.raises(Malformed) as caught:
        Evidence("tpm", primary, "{}")
    assert caught.value.code == "json.depth"


def test_levels_are_ordered():
    assert [level_rank(level) for level in LEVELS] == [0, 1, 2, 3]
    assert LEVELS == ("none", "tpm", "cpu-tee", "gpu-tee")
    for word in ("", "TPM", "high", "none "):
        with pytest.raises(Malformed) as caught:
            level_rank(word)
        assert caught.value.code == "level.unknown"


def reference(**changed):
    body = {"measurements": [A], "agents": [B], "attesters": [A, B], "pcrs": {"0": A, "15": B}, "least_level": "none"}
    return body | changed


def test_reference_round_trip():
    values = ReferenceValues.from_wire(reference())
    assert values.attesters == frozenset({A, B})
    assert ReferenceValues.from_wire(values.to_wire()) == values


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (None, "reference.form"),
        ({}, "reference.form"),
        (reference(more=1), "reference.form"),
        (reference(pcrs=[]), "reference.form"),
        (reference(least_level=0), "reference.form"),
        (reference(least_level="strong"), "level.unknown"),
        (reference(agents="a"), "reference.digest"),
        (reference(agents=[A.upper()]), "reference.digest"),
        (reference(agents=[A + "\n"]), "reference.digest"),
        (reference(agents=[["a"]]), "reference.digest"),
        (reference(agents=[A, A]), "reference.duplicate"),
        (reference(agents=[f"{i:064x}" for i in range(1001)]), "reference.digest"),
        (reference(pcrs={"24": A}), "reference.pcr"),
        (reference(pcrs={"00": A}), "reference.pcr"),
        (reference(pcrs={"0": "zero"}), "reference.pcr"),
    ],
)
def test_reference_of_another_form_is_refused(body, code):
    with pytest.raises(Malformed) as caught:
        ReferenceValues.from_wire(body)
    assert caught.value.code == code


def test_reference_checks_what_code_builds_too():
    with pytest.raises(Malformed, match="hex digits"):
        ReferenceValues(frozenset({"nonsense"}), frozenset({A}), frozenset({A}), {}, "none")


def test_claims_go_on_the_wire_as_plain_json():
    claims = Claims("tpm", "none", A, B, A, "c" * 32, A, B, {"0": A}, "hardware", ("note",))
    body = claims.to_wire()
    assert body["notes"] == ["note"]
    assert body["level"] == "none"
    assert set(body) == {f.name for f in Claims.__dataclass_fields__.values()} - {"devices"}  # submodules of their own
