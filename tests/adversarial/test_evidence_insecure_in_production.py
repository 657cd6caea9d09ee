"""Development evidence in production: it can't be loaded, not even by name, and its code is not in the process."""

import subprocess
import sys

import pytest

from cloister.attestation import Evidence, report_data
from cloister.attestation.insecure import InsecureAttestationWarning, InsecureAttester
from cloister.attestation.registry import verifiers
from cloister.crypto import JweKey, SigningKey
from cloister.errors import Denied, Malformed

NONCE = "n" * 88


def insecure_evidence():
    with pytest.warns(InsecureAttestationWarning):
        attester = InsecureAttester(SigningKey.generate(), b"a" * 32)
    attester.extend_launch(b"i" * 16, b"m" * 32, b"c" * 32, b"j" * 32)
    key = JweKey().public_jwk
    evidence = Evidence.from_wire(attester.evidence(b"i" * 16, NONCE, key))
    return evidence, report_data(NONCE, key, evidence.additional)


@pytest.mark.parametrize("production", [True, False])
def test_insecure_evidence_where_it_is_not_allowed(production):
    evidence, report = insecure_evidence()
    registry = verifiers(allow_insecure=False, production=production)
    with pytest.raises(Denied) as caught:
        registry[evidence.tee].verify(evidence, report, now=0)
    assert caught.value.code == "attestation.insecure"
    assert "insecure" not in registry


def test_production_that_asks_for_insecure_attestation():
    with pytest.raises(Denied) as caught:
        verifiers(allow_insecure=True, production=True)
    assert caught.value.code == "attestation.insecure"
    assert "allow_insecure" in caught.value.message


@pytest.mark.parametrize("tee", ["sample", "sev", "ear", "", "INSECURE", "__class__"])
def test_evidence_of_an_unknown_platform(tee):
    with pytest.raises(Denied) as caught:
        verifiers(allow_insecure=False, production=True)[tee]
    assert caught.value.code == "attestation.tee"


def test_insecure_evidence_renamed_to_tpm():
    """Naming another platform doesn't help: its verifier reads other fields."""
    evidence, report = insecure_evidence()
    renamed = Evidence("tpm", evidence.primary, evidence.additional)
    with pytest.raises(Malformed) as caught:
        verifiers(allow_insecure=False, production=True)["tpm"].verify(renamed, report, now=0)
    assert caught.value.code == "tpm.form"


PROGRAM = """
import sys
import cloister.attestation.registry as a
from cloister.errors import Denied
registry = a.verifiers(allow_insecure=False, production=True)
for attempt in (lambda: registry["insecure"], lambda: a.verifiers(allow_insecure=True, production=True)):
    try:
        attempt()
    except Denied as error:
        assert error.code == "attestation.insecure"
    else:
        sys.exit("not denied")
loaded = sorted(name for name in sys.modules if "insecure" in name)
print(loaded, sorted(registry))
"""


def test_production_never_imports_the_insecure_package():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False
    )
    platforms = ["az-snp-vtpm", "az-tdx-vtpm", "snp", "tdx", "tpm"]
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, f"[] {platforms}", "")


def test_the_same_program_would_notice_an_import():
    """The check above looks at the right thing: where it is allowed, the package does appear."""
    program = (
        "import sys, cloister.attestation.registry as a\n"
        "a.verifiers(allow_insecure=True, production=False)\n"
        "print(any('attestation.insecure' in name for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "True"
    assert "INSECURE" in done.stderr
