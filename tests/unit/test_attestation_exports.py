"""The public face of the package, and that its documents name what the code has."""

import re
from pathlib import Path

import cloister.attestation as attestation
from cloister.attestation.appraisal import EAR_PROFILE, MAX_TOKEN_LIFE
from cloister.attestation.models import MAX_EVENTS

ROOT = Path(__file__).resolve().parents[2]
CODE = "".join(p.read_text() for p in (ROOT / "src/cloister").rglob("*.py"))


def test_everything_that_is_exported_is_there():
    assert attestation.__all__ == sorted(attestation.__all__, key=lambda n: (not n.isupper(), n[0].islower(), n))
    for name in attestation.__all__:
        assert getattr(attestation, name).__doc__ or name == "LEVELS"


def test_the_pages_quote_error_codes_and_numbers_that_exist():
    pages = (ROOT / "docs/attestation.md").read_text() + (ROOT / "docs/spec/attestation.md").read_text()
    codes = set(re.findall(r"`((?:appraisal|attester|attestation|tpm)\.[a-z-]+)`", pages))
    assert len(codes) >= 12
    dynamic = {f"appraisal.{what}" for what in ("measurement", "agent", "attester", "instance")}
    assert [c for c in codes - dynamic if f'"{c}"' not in CODE] == []
    assert f"2 to {MAX_EVENTS}" in pages
    assert f"launch {MAX_EVENTS - 1} sandboxes" in pages
    assert EAR_PROFILE in pages
    assert f"at most {MAX_TOKEN_LIFE} seconds" in pages


def test_the_pages_name_tests_that_exist():
    for page in ("docs/attestation.md", "docs/spec/attestation.md", "src/cloister/attestation/tpm/README.md"):
        for name in re.findall(r"`(tests/[\w/.]+)`", (ROOT / page).read_text()):
            assert (ROOT / name).is_file(), name
