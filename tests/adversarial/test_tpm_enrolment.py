"""Attacks on the enrolment of a TPM: to have a key count as a chip's that is in no chip, or in another.

Each attack changes one thing about an enrolment that would succeed.
"""

import dataclasses
import os

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from cloister.attestation.bootlog import encode_log, parse_log
from cloister.attestation.tpm import Enrolment, TpmVerifier, answer, begin, ek, finish, parser, roots
from cloister.attestation.tpm.roots import ROOTS, Root
from cloister.crypto.x509 import read_certificate, read_crl
from cloister.errors import Malformed, Untrusted
from tests.adversarial.evidence_forge import AK_ATTRIBUTES, Chip, Forge, Log, Maker, b64, enrol
from tests.boot_logs import DRIVER_CONFIG, boot_bytes, boot_log, event, naive_replay, secure_boot_events, variable

MAKER, CHIP = Maker(), Chip()
NAMES = [("2.23.133.2.1", Maker.MANUFACTURER), ("2.23.133.2.2", "forge"), ("2.23.133.2.3", "id:0001")]


@pytest.fixture
def shipped(monkeypatch):
    monkeypatch.setitem(ROOTS, MAKER.fingerprint, Root("Forge", frozenset({"494e5443"})))


def refused(request, code, kind=Untrusted, *, now=MAKER.NOW, accepted=(MAKER.fingerprint,), crls=()):
    with pytest.raises(kind) as caught:
        begin(request, os.urandom(32), now=now, roots=accepted, crls=crls)
    assert caught.value.code == code
    assert caught.value.message.endswith(".")


def test_the_enrolment_is_good_unless_told_otherwise():
    assert enrol(CHIP, MAKER).root == MAKER.fingerprint


def test_certificate_under_a_root_that_nobody_pinned():
    refused(CHIP.request(MAKER), "x509.root", accepted=())


def test_certificate_of_another_maker_with_the_same_names():
    """An attacker's own authority, named as the real one, its certificates beside the real root."""
    request = CHIP.request(Maker())
    real = tuple(c.der for c in MAKER.pool)
    refused(dataclasses.replace(request, ek_chain=real), "x509.signature")
    refused(dataclasses.replace(request, ek_chain=(request.ek_chain[0], real[1])), "x509.signature")
    refused(request, "x509.root")


def test_certificate_of_another_tpm():
    other = Chip()
    stolen = dataclasses.replace(CHIP.request(MAKER), ek_certificate=other.request(MAKER).ek_certificate)
    refused(stolen, "tpm.ek-key")


def test_certificate_of_another_tpm_with_its_key_too():
    """Everything shown is right, and the attestation key is the attacker's: only the TPM can tell, and does."""
    request = dataclasses.replace(CHIP.request(MAKER), ak_public=Forge().ak.encode())
    pending, challenge = begin(request, os.urandom(32), now=MAKER.NOW, roots=[MAKER.fingerprint])
    with pytest.raises(AssertionError):
        CHIP.activate(challenge.credential)
    for guess in (bytes(32), b"", answer(request, bytes(32))):
        with pytest.raises(Untrusted) as caught:
            finish(pending, guess, now=MAKER.NOW)
        assert caught.value.code == "enrolment.proof"


@pytest.mark.parametrize(
    ("attributes", "why"),
    [
        (AK_ATTRIBUTES & ~parser.RESTRICTED, "signs a made-up quote"),
        (AK_ATTRIBUTES & ~parser.FIXED_TPM, "may be copied to a software TPM after the enrolment"),
        (AK_ATTRIBUTES & ~parser.FIXED_PARENT, "may be moved"),
        (AK_ATTRIBUTES & ~parser.SENSITIVE_DATA_ORIGIN, "was made outside, so somebody else has it too"),
        (AK_ATTRIBUTES | parser.DECRYPT, "also decrypts"),
    ],
)
def test_attestation_key_that_may_leave_or_sign_anything(attributes, why):
    loose = dataclasses.replace(CHIP.ak, attributes=attributes)
    refused(dataclasses.replace(CHIP.request(MAKER), ak_public=loose.encode()), "tpm.ak-attributes")


def test_answer_for_another_request():
    first, second = CHIP.request(MAKER), CHIP.request(MAKER)
    pending, challenge = begin(first, os.urandom(32), now=MAKER.NOW, roots=[MAKER.fingerprint])
    secret = CHIP.activate(challenge.credential)
    with pytest.raises(Untrusted) as caught:
        finish(pending, answer(second, secret), now=MAKER.NOW)
    assert caught.value.code == "enrolment.proof"


def test_answer_that_comes_late():
    request = CHIP.request(MAKER)
    pending, challenge = begin(request, os.urandom(32), now=MAKER.NOW, roots=[MAKER.fingerprint])
    with pytest.raises(Untrusted) as caught:
        finish(pending, answer(request, CHIP.activate(challenge.credential)), now=MAKER.NOW + 301)
    assert caught.value.code == "enrolment.late"


@pytest.mark.parametrize("days", [-101, 101])
def test_certificate_out_of_its_time(days):
    refused(CHIP.request(MAKER), "x509.expired" if days > 0 else "x509.not-yet", now=MAKER.NOW + days * 86_400)


@pytest.mark.parametrize(
    "options",
    [
        {"usage": "1.3.6.1.5.5.7.3.1"},  # a web server's certificate
        {"usage": "2.23.133.8.3"},  # an attestation key's
        {"attributes": []},
        {"attributes": NAMES[1:]},
        {"attributes": NAMES[:2]},
        {"attributes": [*NAMES, NAMES[0]]},
        {"attributes": [("2.23.133.2.1", "Intel"), *NAMES[1:]]},
        {"attributes": [("2.23.133.2.1", "id:494E544"), *NAMES[1:]]},
    ],
)
def test_certificate_for_another_purpose_than_an_endorsement_key(options):
    refused(CHIP.request(MAKER, **options), "tpm.ek-certificate")


def test_certificate_authority_as_endorsement_certificate():
    refused(CHIP.request(MAKER, ca=True), "x509.ca")


def test_certificate_whose_key_may_not_be_used_so():
    refused(CHIP.request(MAKER, agreement=False), "tpm.ek-usage")


@pytest.mark.parametrize(
    "critical",
    [
        x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\0"),
        x509.PolicyConstraints(0, None),
        x509.NameConstraints([x509.DNSName("example.com")], None),
    ],
)
def test_certificate_with_a_critical_extension_that_nobody_understands(critical):
    refused(CHIP.request(MAKER, critical=critical), "x509.critical")


def test_certificate_without_the_one_between():
    request = CHIP.request(MAKER)
    refused(dataclasses.replace(request, ek_chain=request.ek_chain[1:]), "x509.root")


def test_endorsement_certificate_that_signs_another():
    """A TPM's own certificate as the authority of a made-up one: it is no authority's."""
    other = Chip()
    authority = CHIP.request(MAKER).ek_certificate
    refused(dataclasses.replace(other.request(MAKER), ek_chain=(authority, MAKER.pool[1].der)), "x509.root")


def test_revoked_certificate():
    request = CHIP.request(MAKER)
    serial = read_certificate(request.ek_certificate).serial
    builder = x509.CertificateRevocationListBuilder(MAKER.ca.subject)
    at = MAKER.ca.not_valid_before_utc
    entry = x509.RevokedCertificateBuilder(serial, at).build()
    signed = builder.last_update(at).next_update(MAKER.ca.not_valid_after_utc).add_revoked_certificate(entry)
    crl = read_crl(signed.sign(MAKER.ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.DER))
    refused(request, "x509.revoked", crls=[crl])


def test_maker_that_is_not_its_roots(shipped):
    """One maker's authority vouches for a TPM that calls itself another's."""
    refused(CHIP.request(MAKER, attributes=[("2.23.133.2.1", "id:49465800"), *NAMES[1:]]), "tpm.ek-manufacturer")


def test_maker_that_is_not_registered(shipped, monkeypatch):
    monkeypatch.setitem(ROOTS, MAKER.fingerprint, Root("Forge", frozenset({"00001014"})))
    refused(CHIP.request(MAKER, attributes=[("2.23.133.2.1", "id:00001014"), *NAMES[1:]]), "tpm.ek-manufacturer")


def test_software_tpm_that_calls_itself_a_makers():
    """An owner may enrol it under a root of its own; the name in the certificate makes it no chip."""
    record = enrol(CHIP, MAKER)
    assert record.manufacturer == "494e5443"
    assert record.level == "none"
    assert TpmVerifier({record.ak_name: record}).verify(*evidence(CHIP.forge), now=0).level == "none"


def test_record_edited_to_say_level_tpm():
    wire = enrol(CHIP, MAKER).to_wire()
    for edit in ({"level": "tpm"}, {"level": "cpu-tee"}, {"level": ""}):
        with pytest.raises(Malformed) as caught:
            Enrolment.from_wire({**wire, **edit})
        assert caught.value.code == "enrolment.level"


def test_record_of_another_key():
    record = enrol(CHIP, MAKER)
    other = Forge()
    with pytest.raises(Untrusted) as caught:
        TpmVerifier({other.ak.name().hex(): record}).verify(*evidence(other), now=0)
    assert caught.value.code == "tpm.enrolment"


@pytest.mark.parametrize("at", range(0, 56, 5))
def test_endorsement_key_of_no_template(at):
    """One bit of the public area other than the key: then the certificate would not say all of it."""
    area = bytearray(CHIP.endorsement.encode())
    area[at] ^= 1
    refused(dataclasses.replace(CHIP.request(MAKER), ek_public=bytes(area)), "tpm.ek-template", Malformed)


@pytest.mark.parametrize("cut", [0, 1, 50, -1])
def test_endorsement_key_cut_or_longer(cut):
    area = CHIP.endorsement.encode()
    other = area[:cut] if cut >= 0 else area + b"\0"
    with pytest.raises(Malformed) as caught:
        ek.parse_endorsement(other)
    assert caught.value.code == "tpm.ek-template"


def test_credential_changed_on_its_way():
    _, challenge = begin(CHIP.request(MAKER), os.urandom(32), now=MAKER.NOW, roots=[MAKER.fingerprint])
    for field in ("identity", "secret"):
        raw = getattr(challenge.credential, field)
        changed = dataclasses.replace(challenge.credential, **{field: raw[:-1] + bytes([raw[-1] ^ 1])})
        with pytest.raises((AssertionError, ValueError)):
            CHIP.activate(changed)


def evidence(forge, **options):
    made = forge.evidence(Log(), **options)
    return made, forge.report(made.additional)


def boot(raw):
    values = naive_replay(parse_log(raw), "sha256")
    return {str(i): values[i].hex() for i in range(8)}


def test_boot_log_of_another_machine():
    forge = Forge()
    with pytest.raises(Untrusted) as caught:
        TpmVerifier().verify(
            *evidence(forge, pcrs=boot(boot_bytes(on=False)), primary={"boot_log": b64(boot_bytes(on=True))}), now=0
        )
    assert caught.value.code == "bootlog.replay"


@pytest.mark.parametrize("log", [b"", b"\0" * 40, b"x" * (96 * 1024 + 1)])
def test_boot_log_that_is_none(log):
    forge = Forge()
    with pytest.raises(Malformed):
        TpmVerifier().verify(*evidence(forge, primary={"boot_log": b64(log)}), now=0)


def test_boot_log_in_sha1_alone():
    """Its replay says nothing about the SHA-256 bank that was quoted."""
    forge = Forge()
    raw = encode_log(dataclasses.replace(boot_log(banks=("sha1",)), header=b""))
    with pytest.raises(Untrusted) as caught:
        TpmVerifier().verify(*evidence(forge, primary={"boot_log": b64(raw)}), now=0)
    assert caught.value.code == "bootlog.bank"


def test_boot_log_with_secure_boot_forged_leaves_the_fact_out():
    """It replays, so the evidence stands; but nothing is said about secure boot, and no policy is satisfied by that."""
    forge = Forge()
    events = list(boot_log(on=False).events)
    at = next(i for i, e in enumerate(events) if e.kind == DRIVER_CONFIG)
    events[at] = dataclasses.replace(events[at], data=variable("SecureBoot", b"\1"))
    log = dataclasses.replace(boot_log(), events=tuple(events))
    raw = encode_log(log)
    (device,) = TpmVerifier().verify(*evidence(forge, pcrs=boot(raw), primary={"boot_log": b64(raw)}), now=0).devices
    assert "secure_boot" not in device.facts
    assert "not measured" in device.notes[0]
    # and the same machine's honest log says off
    honest = boot_bytes(on=False)
    assert boot(honest) == boot(raw)
    assert secure_boot_events(on=False)[0] == event(7, DRIVER_CONFIG, variable("SecureBoot", b"\0"))


def test_the_shipped_list_is_not_what_an_owner_passes():
    """Roots that an owner passes are used for that enrolment, and go nowhere else."""
    before = dict(roots.ROOTS)
    enrol(CHIP, MAKER)
    assert before == roots.ROOTS
