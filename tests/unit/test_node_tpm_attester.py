"""The TPM attester: what it refuses, that it stays right under threads, and that it fails closed."""

import os
import signal
import threading
from pathlib import Path

import pytest

from cloister.attestation import Evidence, report_data
from cloister.attestation.events import event_digest, open_log, replay
from cloister.attestation.registry import verifiers
from cloister.crypto import JweKey
from cloister.errors import Denied, Malformed, Misuse, Unavailable, Untrusted
from cloister.node.attester import TpmAttester
from cloister.node.swtpm import SoftwareTpm
from cloister.node.tpm import Tpm

INSTANCE, NONCE, KEY = b"i" * 16, "n" * 88, JweKey().public_jwk
REST = (b"m" * 32, b"c" * 32, b"j" * 32)
VERIFIER = verifiers(allow_insecure=False, production=True)["tpm"]


@pytest.fixture
def attester(tmp_path):
    with TpmAttester.software(tmp_path / "state", b"a" * 32) as made:
        made.extend_launch(INSTANCE, *REST)
        yield made


def verify(wire, nonce=NONCE):
    evidence = Evidence.from_wire(wire)
    return VERIFIER.verify(evidence, report_data(nonce, KEY, evidence.additional), now=0)


def test_evidence_verifies_and_opens_only_the_askers_event(attester):
    attester.extend_launch(b"o" * 16, b"other measurement, 32 bytes long", b"x" * 32, b"y" * 32)
    wire = attester.evidence(INSTANCE, NONCE, KEY)
    claims = verify(wire)
    assert claims.instance == INSTANCE.hex()
    assert claims.attester == attester.attester_id
    for secret in (b"other measurement, 32 bytes long", b"x" * 32, b"y" * 32):
        assert secret.hex() not in wire["additional_evidence"]
    log = open_log(wire["additional_evidence"])
    assert len(log.digests) == 3
    assert replay(log.digests).hex() == wire["primary_evidence"]["pcrs"]["15"]
    assert event_digest(log.launch) == log.digests[1]


def test_identity_is_the_same_after_a_restart_and_old_sandboxes_are_gone(tmp_path):
    with TpmAttester.software(tmp_path / "state", b"a" * 32) as first:
        first.extend_launch(INSTANCE, *REST)
        before = first.attester_id
    with TpmAttester.software(tmp_path / "state", b"a" * 32) as second:
        assert second.attester_id == before
        with pytest.raises(Denied) as caught:
            second.evidence(INSTANCE, NONCE, KEY)
        assert caught.value.code == "attester.instance"
        second.extend_launch(INSTANCE, *REST)
        assert verify(second.evidence(INSTANCE, NONCE, KEY)).attester == before


@pytest.mark.parametrize("nonce", ["", "short", "n" * 257, "ü" * 88, None, 7])
def test_nonces_outside_the_limits(attester, nonce):
    with pytest.raises(Malformed) as caught:
        attester.evidence(INSTANCE, nonce, KEY)
    assert caught.value.code == "binding.nonce-size"


@pytest.mark.parametrize("key", [{}, [], None, {"x": "a" * 5000}])
def test_workload_keys_outside_the_limits(attester, key):
    with pytest.raises(Malformed) as caught:
        attester.evidence(INSTANCE, NONCE, key)
    assert caught.value.code == "binding.tee-pubkey"


def test_refused_launches_change_nothing(attester):
    before = attester.evidence(INSTANCE, NONCE, KEY)
    with pytest.raises(Denied):
        attester.extend_launch(INSTANCE, *REST)
    with pytest.raises(Misuse):
        attester.extend_launch(b"short", *REST)
    after = attester.evidence(INSTANCE, NONCE, KEY)
    assert after["additional_evidence"] == before["additional_evidence"]
    assert after["primary_evidence"]["pcrs"] == before["primary_evidence"]["pcrs"]


def test_pcr_that_somebody_used_before(tmp_path):
    """Events before the agent's can't be explained by its log: it must not start."""
    with SoftwareTpm(tmp_path / "state") as swtpm:
        tpm = Tpm(swtpm.tcti)
        tpm.extend(15, b"x" * 32)
        with pytest.raises(Unavailable) as caught:
            TpmAttester(tpm, tpm.load_identity(tmp_path), b"a" * 32, tpm.close)
        assert caught.value.code == "attester.pcr-used"
        tpm.close()


def test_hardware_attester_uses_the_tpm_that_is_there(tmp_path):
    with SoftwareTpm(tmp_path / "chip") as chip:
        with TpmAttester.hardware(chip.tcti, tmp_path / "keys", b"a" * 32) as attester:
            attester.extend_launch(INSTANCE, *REST)
            assert verify(attester.evidence(INSTANCE, NONCE, KEY)).attester == attester.attester_id
        # The agent restarts without a reboot: PCR 15 is not fresh.
        with pytest.raises(Unavailable) as caught:
            TpmAttester.hardware(chip.tcti, tmp_path / "keys", b"a" * 32)
        assert caught.value.code == "attester.pcr-used"


def test_somebody_else_extends_the_pcr(tmp_path):
    """Whoever can reach the TPM can spoil PCR 15: evidence then fails to verify, it doesn't lie."""
    keys = tmp_path / "keys"
    with SoftwareTpm(tmp_path / "chip") as chip, TpmAttester.hardware(chip.tcti, keys, b"a" * 32) as attester:
        attester.extend_launch(INSTANCE, *REST)
        other = Tpm(chip.tcti)
        other.extend(15, b"x" * 32)
        other.close()
        wire = attester.evidence(INSTANCE, NONCE, KEY)
    with pytest.raises(Untrusted) as caught:
        verify(wire)
    assert caught.value.code == "tpm.replay"


def test_failed_start_leaves_no_process_behind(tmp_path):
    state = tmp_path / "state"
    state.mkdir()
    (state / "attestation-key.json").write_text("{}")
    before = swtpm_processes()
    with pytest.raises(Untrusted, match="attestation key"):
        TpmAttester.software(state, b"a" * 32)
    with pytest.raises(Misuse):
        TpmAttester.software(tmp_path / "other", b"short")
    assert swtpm_processes() == before


def swtpm_processes():
    """Children of this very process, whoever else runs swtpm here."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {c for c in children if "swtpm" in Path(f"/proc/{c}/comm").read_text()}


def test_tpm_that_dies_makes_it_unusable_for_good(attester):
    pid = int(next(iter(swtpm_processes())))
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(Unavailable) as caught:
        attester.evidence(INSTANCE, NONCE, KEY)
    assert caught.value.code == "tpm.command"
    with pytest.raises(Unavailable) as caught:
        attester.extend_launch(b"z" * 16, *REST)
    assert caught.value.code == "tpm.command"
    # An extension that may or may not have happened can't be mended: nothing is said any more.
    for ask in (lambda: attester.evidence(INSTANCE, NONCE, KEY), lambda: attester.extend_launch(b"y" * 16, *REST)):
        with pytest.raises(Unavailable) as caught:
            ask()
        assert caught.value.code == "attester.unusable"


def test_closed_attester_says_so(tmp_path):
    attester = TpmAttester.software(tmp_path / "state", b"a" * 32)
    attester.close()
    attester.close()
    with pytest.raises(Unavailable) as caught:
        attester.evidence(INSTANCE, NONCE, KEY)
    assert caught.value.code == "attester.unusable"


def test_threads_launch_and_attest_at_once(attester):
    """Every piece of evidence must verify by itself, whatever is launched meanwhile."""
    failures = []

    def work(first):
        for number in range(first, first + 10):
            instance = number.to_bytes(16, "big")
            attester.extend_launch(instance, *REST)
            nonce = f"{number:088d}"
            if verify(attester.evidence(instance, nonce, KEY), nonce).instance != instance.hex():
                failures.append(number)

    threads = [threading.Thread(target=work, args=(1000 * (i + 1),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(open_log(attester.evidence(INSTANCE, NONCE, KEY)["additional_evidence"]).digests) == 42
