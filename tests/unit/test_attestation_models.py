"""Strict reading of evidence and reference values."""

import pytest

from cloister.attestation import LEVELS, Claims, Evidence, ReferenceValues, level_rank, models
from cloister.attestation.models import MAX_ADDITIONAL, MAX_EVENTS, MAX_EVIDENCE
from cloister.crypto import canonical_json
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
    assert caught.value.code == "evidence.size"


def nested(depth, width):
    """Lists in lists: ``width`` towers of ``depth`` each."""
    tower: list[object] = []
    for _ in range(depth - 1):
        tower = [tower]
    return [tower] * width


@pytest.mark.parametrize(
    "primary",
    [
        {"a": [""] * 63_000},
        {"a": [0] * 4096},
        {"a": [[]] * 4096},
        {"a": nested(20, 300)},
        {"a": [[0] * 100] * 100},
        {str(n): 0 for n in range(2049)},
        {"a": [{chr(0x1F600 + n): 0 for n in range(2048)}]},
        {"a": {"b" * MAX_EVIDENCE: 0, "c": 1}},
    ],
)
def test_primary_evidence_of_very_many_values_is_refused_before_it_is_encoded(primary, monkeypatch):
    """Each value costs time, so 192 KiB of tiny ones would be an attack on the broker's processor."""
    monkeypatch.setattr(models, "canonical_json", None)
    with pytest.raises(Malformed) as caught:
        Evidence.from_wire(wire(primary_evidence=primary))
    assert caught.value.code == "evidence.size"


@pytest.mark.parametrize(
    "value", [[0] * 17_000, [[]] * 9_000, nested(30, 600), {str(n): 0 for n in range(17_000)}, [{}] * 9_000]
)
def test_additional_evidence_of_very_many_values_is_refused_before_it_is_read(value):
    text = canonical_json({"cloister": value}).decode()
    assert len(text) < MAX_ADDITIONAL
    with pytest.raises(Malformed) as caught:
        Evidence.from_wire(wire(additional_evidence=text))
    assert caught.value.code == "evidence.size"


def test_the_largest_honest_evidence_is_accepted():
    events = [{"digest": f"{n:064x}", "kind": "launch"} for n in range(MAX_EVENTS)]
    gpus = [{"arch": "HOPPER", "certificate": "QUFB" * 1000, "evidence": "QUFB" * 2000} for _ in range(8)]
    text = canonical_json({"cloister": {"agent": {}, "events": events, "launch": {}}, "nvidia": gpus}).decode()
    primary = {"certificates": ["QUFB" * 700] * 3, "pcrs": {str(n): A for n in range(24)}, "report": "QUFB" * 400}
    body = wire(primary_evidence=primary, additional_evidence=text)
    assert Evidence.from_wire(body).to_wire() == body
    Evidence.from_wire(wire(primary_evidence={"a": [0] * 4000}))


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
