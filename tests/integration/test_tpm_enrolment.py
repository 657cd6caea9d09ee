"""Enrolment against a real swtpm whose endorsement certificates swtpm_localca made: every message, and what must
fail."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.attestation import Evidence, report_data
from cloister.attestation.bootlog import encode_log
from cloister.attestation.tpm import BOOT_PCRS, Challenge, EnrolmentRequest, TpmVerifier, answer, begin, ek, finish
from cloister.crypto import JweKey
from cloister.errors import Unavailable, Untrusted
from tests.boot_logs import BOOT, boot_log, event
from tests.manufactured_tpm import authorities, manufacture, needs_tools, soon_after

pytest.importorskip("tpm2_pytss", reason="the TPM library is not installed")
pytestmark = needs_tools

from cloister.node.attester import TpmAttester  # noqa: E402
from cloister.node.swtpm import SoftwareTpm  # noqa: E402
from cloister.node.tpm import Tpm  # noqa: E402

INSTANCE, NONCE, KEY = b"i" * 16, "n" * 88, JweKey().public_jwk


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("factory")
    for name in ("first", "second"):
        manufacture(folder, name)
    return folder


@pytest.fixture
def attester(factory: Path) -> Iterator[TpmAttester]:
    with TpmAttester.software(factory / "first", b"a" * 32) as made:
        yield made


def challenge_for(factory: Path, request: EnrolmentRequest) -> tuple:
    pool = authorities(factory)
    request = EnrolmentRequest.from_wire(request.to_wire())
    made = begin(request, os.urandom(32), now=soon_after(factory), pool=pool, roots=[pool[1].key_fingerprint])
    return made[0], Challenge.from_wire(made[1].to_wire())


def test_enrolment_from_the_first_message_to_evidence(factory: Path, attester: TpmAttester) -> None:
    request = attester.enrolment()
    pending, challenge = challenge_for(factory, request)
    record = finish(pending, attester.prove(request, challenge), now=soon_after(factory) + 1)
    assert (record.manufacturer, record.model) == ("00001014", "swtpm")
    assert record.root == authorities(factory)[1].key_fingerprint
    assert record.level == "none"  # a software TPM, whoever enrols it under whatever root of an owner's own

    attester.extend_launch(INSTANCE, b"m" * 32, b"c" * 32, b"j" * 32)
    evidence = Evidence.from_wire(attester.evidence(INSTANCE, NONCE, KEY))
    report = report_data(NONCE, KEY, evidence.additional)
    claims = TpmVerifier({record.ak_name: record}).verify(evidence, report, now=0)
    assert claims.level == "none"
    assert claims.devices[0].identity == record.ek
    assert claims.attester == attester.attester_id
    assert "boot_log" not in evidence.primary


def test_challenge_for_another_tpm(factory: Path, attester: TpmAttester) -> None:
    """Two honest TPMs of one maker: neither answers the other's challenge, and each goes on working."""
    request = attester.enrolment()
    _, challenge = challenge_for(factory, request)
    with TpmAttester.software(factory / "second", b"a" * 32) as other:
        theirs = other.enrolment()
        assert theirs.ek_certificate != request.ek_certificate
        with pytest.raises(Untrusted) as refused:
            other.prove(theirs, challenge)
        assert refused.value.code == "tpm.credential"
        own, again = challenge_for(factory, theirs)
        assert finish(own, other.prove(theirs, again), now=soon_after(factory)).level == "none"


def test_attestation_key_of_another_tpm_beside_a_certificate(factory: Path, attester: TpmAttester) -> None:
    """An attacker shows an honest TPM's certificate and a key of its own; the honest TPM then refuses to open."""
    request = attester.enrolment()
    with TpmAttester.software(factory / "second", b"a" * 32) as other:
        mixed = dataclasses.replace(request, ak_public=other.enrolment().ak_public)
    pending, challenge = challenge_for(factory, mixed)
    with pytest.raises(Untrusted) as refused:
        attester.prove(mixed, challenge)
    assert refused.value.code == "tpm.credential"
    with pytest.raises(Untrusted):
        finish(pending, answer(mixed, bytes(32)), now=soon_after(factory))


def test_challenge_changed_on_its_way(factory: Path, attester: TpmAttester) -> None:
    request = attester.enrolment()
    _, challenge = challenge_for(factory, request)
    for field in ("identity", "secret"):
        raw = getattr(challenge.credential, field)
        changed = dataclasses.replace(challenge.credential, **{field: raw[:-1] + bytes([raw[-1] ^ 1])})
        with pytest.raises(Untrusted) as refused:
            attester.prove(request, Challenge(changed))
        assert refused.value.code == "tpm.credential"
    assert len(attester.prove(request, challenge)) == 32


def test_certificate_without_its_root_in_the_owners_list(factory: Path, attester: TpmAttester) -> None:
    with pytest.raises(Untrusted) as refused:
        begin(attester.enrolment(), os.urandom(32), now=soon_after(factory), pool=authorities(factory))
    assert refused.value.code == "x509.root"


@pytest.mark.parametrize("name", ["L-1", "H-3"])
def test_both_endorsement_keys_of_the_tpm_enrol(factory: Path, tmp_path: Path, name: str) -> None:
    """RSA of the low range, used by its policy; ECC P-384 of the high range, used by its empty password."""
    template = next(t for t in ek.TEMPLATES if t.name == name)
    with SoftwareTpm(factory / "first") as running:
        tpm = Tpm(running.tcti)
        identity = tpm.load_identity(tmp_path)
        certificate = tpm._read_nv(template.index)
        with tpm._flushed(tpm._endorsement_key(template)) as handle:
            public = tpm._public_of(handle)
        assert ek.parse_endorsement(public).template is template
        request = EnrolmentRequest(identity.ak_public, public, certificate)
        pending, challenge = challenge_for(factory, request)
        secret = tpm.activate(public, challenge.credential)
        assert finish(pending, answer(request, secret), now=soon_after(factory)).ak_name == pending.record.ak_name
        tpm.close()


def test_tpm_without_a_certificate(tmp_path: Path) -> None:
    with TpmAttester.software(tmp_path / "plain", b"a" * 32) as plain, pytest.raises(Unavailable) as refused:
        plain.enrolment()
    assert refused.value.code == "tpm.no-certificate"


def booted(tpm: Tpm, log) -> None:
    for one in log.events:
        if one.extends:
            tpm.extend(one.index, one.digests["sha256"])


def evidence_with(tcti: str, folder: Path, path: Path | None) -> Evidence:
    with TpmAttester.hardware(tcti, folder, b"a" * 32, boot_log=path) as made:
        made.extend_launch(INSTANCE, b"m" * 32, b"c" * 32, b"j" * 32)
        return Evidence.from_wire(made.evidence(INSTANCE, NONCE, KEY))


def test_boot_log_of_this_machine_goes_along(tmp_path: Path) -> None:
    """Firmware's events in the TPM, its log in a file: the evidence carries what a verifier needs of it, and no
    more."""
    log = boot_log(banks=("sha1", "sha256"), extra=[event(9, BOOT, b"x" * 5000, banks=("sha1", "sha256"))])
    path = tmp_path / "measurements"
    path.write_bytes(encode_log(log))
    with SoftwareTpm(tmp_path / "chip") as chip:
        tpm = Tpm(chip.tcti)
        booted(tpm, log)
        assert set(tpm.read_pcrs(BOOT_PCRS)) == set(range(8))
        tpm.close()
        evidence = evidence_with(chip.tcti, tmp_path / "keys", path)
    assert len(evidence.primary["boot_log"]) < 5000
    claims = TpmVerifier().verify(evidence, report_data(NONCE, KEY, evidence.additional), now=0)
    assert claims.devices[0].facts["secure_boot"] is True
    assert claims.level == "none"


@pytest.mark.parametrize("content", [None, b"", b"not a log", "another boot", "too long"])
def test_boot_log_that_explains_nothing_is_left_out(tmp_path: Path, content: bytes | str | None) -> None:
    path = tmp_path / "measurements"
    if content == "another boot":
        path.write_bytes(encode_log(boot_log()))
    elif content == "too long":
        path.write_bytes(bytes(2 << 20))
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with SoftwareTpm(tmp_path / "chip") as chip:
        evidence = evidence_with(chip.tcti, tmp_path / "keys", path)
    assert "boot_log" not in evidence.primary
    assert TpmVerifier().verify(evidence, report_data(NONCE, KEY, evidence.additional), now=0).devices == ()


def test_boot_pcr_that_changes_later(tmp_path: Path) -> None:
    """The log explains the start, and no longer the register: evidence goes on without it, about the new value."""
    log, path = boot_log(), tmp_path / "measurements"
    path.write_bytes(encode_log(log))
    with SoftwareTpm(tmp_path / "chip") as chip:
        tpm = Tpm(chip.tcti)
        booted(tpm, log)
        with TpmAttester.hardware(chip.tcti, tmp_path / "keys", b"a" * 32, boot_log=path) as made:
            made.extend_launch(INSTANCE, b"m" * 32, b"c" * 32, b"j" * 32)
            assert "boot_log" in made.evidence(INSTANCE, NONCE, KEY)["primary_evidence"]
            tpm.extend(4, b"k" * 32)
            evidence = Evidence.from_wire(made.evidence(INSTANCE, NONCE, KEY))
        tpm.close()
    assert "boot_log" not in evidence.primary
    assert TpmVerifier().verify(evidence, report_data(NONCE, KEY, evidence.additional), now=0).devices == ()


def test_event_log_that_leaves_no_room_for_the_boot_log(tmp_path: Path) -> None:
    log, path = boot_log(extra=[event(5, BOOT, b"x" * 70_000)]), tmp_path / "measurements"
    path.write_bytes(encode_log(log))
    with SoftwareTpm(tmp_path / "chip") as chip:
        tpm = Tpm(chip.tcti)
        booted(tpm, log)
        tpm.close()
        with TpmAttester.hardware(chip.tcti, tmp_path / "keys", b"a" * 32, boot_log=path) as made:
            made.extend_launch(INSTANCE, b"m" * 32, b"c" * 32, b"j" * 32)
            assert "boot_log" in made.evidence(INSTANCE, NONCE, KEY)["primary_evidence"]
            made._boot_log += bytes(90_000)
            assert "boot_log" not in made.evidence(INSTANCE, NONCE, KEY)["primary_evidence"]
