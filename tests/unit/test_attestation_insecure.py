"""The development double: it works, it warns, and it refuses what it can refuse."""

import base64
import dataclasses
import threading

import pytest

from cloister.attestation import Evidence, report_data
from cloister.attestation.insecure import InsecureAttestationWarning, InsecureAttester, InsecureVerifier
from cloister.attestation.models import MAX_EVENTS
from cloister.attestation.registry import verifiers
from cloister.crypto import JweKey, SigningKey, sha256
from cloister.errors import Denied, Malformed, Misuse, Unavailable, Untrusted

INSTANCE, NONCE, KEY = b"i" * 16, "n" * 88, JweKey().public_jwk


@pytest.fixture
def attester():
    with pytest.warns(InsecureAttestationWarning, match="development double"):
        made = InsecureAttester(SigningKey(b"k" * 32), b"a" * 32)
    made.extend_launch(INSTANCE, b"m" * 32, b"c" * 32, b"j" * 32)
    return made


@pytest.fixture
def verifier():
    with pytest.warns(InsecureAttestationWarning, match="proves nothing"):
        return InsecureVerifier()


def report(evidence):
    return report_data(NONCE, KEY, evidence.additional)


def test_round_trip_says_level_none(attester, verifier):
    evidence = Evidence.from_wire(attester.evidence(INSTANCE, NONCE, KEY))
    claims = verifier.verify(evidence, report(evidence), now=0)
    assert claims.level == "none"
    assert claims.attester == attester.attester_id == sha256(SigningKey(b"k" * 32).public).hex()
    assert (claims.instance, claims.measurement) == (INSTANCE.hex(), (b"m" * 32).hex())
    assert claims.hardware.startswith("none")
    assert any("INSECURE" in note for note in claims.notes)
    assert claims.pcrs == {}


def test_registry_loads_it_only_when_told_to():
    with pytest.warns(InsecureAttestationWarning):
        registry = verifiers(allow_insecure=True, production=False)
    assert set(registry) - set(verifiers(allow_insecure=False, production=False)) == {"insecure"}
    assert registry["insecure"].tee == "insecure"


def test_edited_evidence_is_refused(attester, verifier):
    good = Evidence.from_wire(attester.evidence(INSTANCE, NONCE, KEY))
    with pytest.raises(Untrusted) as caught:
        verifier.verify(good, sha256(b"another report"), now=0)
    assert caught.value.code == "signature.invalid"
    other = under_another_key(good)
    with pytest.raises(Untrusted) as caught:
        verifier.verify(other, report(other), now=0)
    assert caught.value.code == "signature.invalid"
    with pytest.raises(Untrusted) as caught:
        verifier.verify(dataclasses.replace(good, tee="tpm"), report(good), now=0)
    assert caught.value.code == "insecure.tee"


def under_another_key(good):
    """The same evidence under another key's name."""
    public = base64.b64encode(SigningKey.generate().public).decode()
    return dataclasses.replace(good, primary=good.primary | {"public_key": public})


@pytest.mark.parametrize(
    ("primary", "code"),
    [
        ({}, "insecure.form"),
        ({"public_key": "", "signature": "", "x": ""}, "insecure.form"),
        ({"public_key": "AAAA", "signature": ""}, "insecure.base64"),
        ({"public_key": 7, "signature": ""}, "insecure.base64"),
        ({"public_key": "!", "signature": ""}, "insecure.base64"),
        ({"public_key": {}, "signature": ""}, "insecure.base64"),
    ],
)
def test_evidence_of_another_form(attester, verifier, primary, code):
    evidence = Evidence("insecure", primary, "{}")
    with pytest.raises(Malformed) as caught:
        verifier.verify(evidence, bytes(32), now=0)
    assert caught.value.code == code


def test_report_of_another_size(attester, verifier):
    with pytest.raises(Malformed) as caught:
        verifier.verify(Evidence.from_wire(attester.evidence(INSTANCE, NONCE, KEY)), bytes(31), now=0)
    assert caught.value.code == "insecure.report-size"


def test_only_running_instances_get_evidence(attester):
    attester.retire(INSTANCE)
    attester.retire(INSTANCE)
    for instance in (INSTANCE, b"x" * 16, b""):
        with pytest.raises(Denied) as caught:
            attester.evidence(instance, NONCE, KEY)
        assert caught.value.code == "attester.instance"
    attester.close()


@pytest.mark.parametrize("sizes", [(15, 32, 32, 32), (16, 31, 32, 32), (16, 32, 33, 32), (16, 32, 32, 0)])
def test_launch_of_other_sizes(attester, sizes):
    before = attester.evidence(INSTANCE, NONCE, KEY)["additional_evidence"]
    with pytest.raises(Misuse) as caught:
        attester.extend_launch(*(b"z" * n for n in sizes))
    assert caught.value.code == "attester.size"
    assert attester.evidence(INSTANCE, NONCE, KEY)["additional_evidence"] == before


def test_full_log_refuses_more_but_still_serves(attester, verifier):
    for number in range(MAX_EVENTS - 2):
        attester.extend_launch(number.to_bytes(16, "big"), b"m" * 32, b"c" * 32, b"j" * 32)
    with pytest.raises(Unavailable) as caught:
        attester.extend_launch(b"z" * 16, b"m" * 32, b"c" * 32, b"j" * 32)
    assert caught.value.code == "attester.log-full"
    evidence = Evidence.from_wire(attester.evidence(INSTANCE, NONCE, KEY))
    assert verifier.verify(evidence, report(evidence), now=0).instance == INSTANCE.hex()


def test_threads_get_consistent_evidence(attester, verifier):
    failures = []

    def work(first):
        for number in range(first, first + 20):
            instance = number.to_bytes(16, "big")
            attester.extend_launch(instance, b"m" * 32, b"c" * 32, b"j" * 32)
            evidence = Evidence.from_wire(attester.evidence(instance, NONCE, KEY))
            if verifier.verify(evidence, report(evidence), now=0).instance != instance.hex():
                failures.append(instance)

    threads = [threading.Thread(target=work, args=(100 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    # 1 agent, 1 launch of the fixture, 80 of the threads
    assert attester.evidence(INSTANCE, NONCE, KEY)["additional_evidence"].count('"digest"') == 82
