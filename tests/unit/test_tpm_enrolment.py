"""Enrolment of a TPM: templates, endorsement certificates, protected credentials, records, and the level they give."""

import dataclasses
import hashlib
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.attestation.bootlog import parse_log
from cloister.attestation.tpm import (
    Challenge,
    Enrolment,
    EnrolmentRequest,
    TpmVerifier,
    answer,
    begin,
    ek,
    finish,
    roots,
)
from cloister.attestation.tpm.ek_certificate import maker_name, read_ek_certificate
from cloister.crypto import canonical_json
from cloister.crypto.signatures import rsa_public_der
from cloister.crypto.tpm_credential import kdfa, kdfe, make_credential
from cloister.errors import CloisterError, Malformed, Misuse
from tests.adversarial.evidence_forge import Chip, Forge, Log, Maker, b64, enrol
from tests.boot_logs import boot_bytes, naive_replay

MAKER = Maker()


@pytest.fixture
def shipped(monkeypatch):
    """As if the forge's root were one of the list: the list itself is what decides, and nothing else can."""
    monkeypatch.setitem(roots.ROOTS, MAKER.fingerprint, roots.Root("Forge", frozenset({"494e5443"})))


@pytest.mark.parametrize("template", ["L-1", "L-2", "H-1", "H-2", "H-3", "H-6"])
def test_every_kind_of_endorsement_key_enrols(template):
    chip = Chip(template)
    record = enrol(chip, MAKER)
    assert record.ak_name == chip.ak.name().hex()
    assert record.ek == hashlib.sha256(chip.endorsement.der()).hexdigest()
    assert (record.manufacturer, record.model, record.version) == ("494e5443", "forge", "id:0001")
    assert record.root == MAKER.fingerprint
    assert record.level == "none"
    assert ek.parse_endorsement(chip.endorsement.encode()) == chip.endorsement


def test_only_a_shipped_root_gives_level_tpm(shipped):
    record = enrol(Chip(), MAKER)
    assert record.level == "tpm"
    assert "Intel" in record.hardware
    assert Enrolment.from_wire(record.to_wire()) == record


def test_the_shipped_roots_are_fingerprints_of_registered_makers():
    assert len(roots.ROOTS) >= 9
    for fingerprint, root in roots.ROOTS.items():
        assert len(bytes.fromhex(fingerprint)) == 32
        assert root.makers
        assert root.makers <= set(roots.MANUFACTURERS)
    for number, name in roots.MANUFACTURERS.items():
        assert len(bytes.fromhex(number)) == 4
        assert maker_name(number) == name
    assert "00001014" not in roots.MANUFACTURERS  # swtpm's
    assert "unregistered" in maker_name("00001014")


def test_templates_are_the_profiles():
    """The lengths that the profile's templates have, and its order of places for certificates."""
    assert {t.name: (len(t.template()), hex(t.index)) for t in ek.TEMPLATES} == {
        "L-2": (122, "0x1c0000a"),
        "L-1": (314, "0x1c00002"),
        "H-2": (58, "0x1c00014"),
        "H-3": (74, "0x1c00016"),
        "H-1": (58, "0x1c00012"),
        "H-6": (74, "0x1c0001c"),
        "H-7": (74, "0x1c0001e"),
    }


def test_messages_survive_the_wire():
    request = Chip().request(MAKER)
    assert EnrolmentRequest.from_wire(request.to_wire()) == request
    _, challenge = begin(request, bytes(32), now=MAKER.NOW, roots=[MAKER.fingerprint])
    assert Challenge.from_wire(challenge.to_wire()) == challenge
    for message in (request, challenge):
        wire = message.to_wire()
        canonical_json(wire)
        for broken in ({}, [], None, {**wire, "more": 1}, {**wire, "version": 2}, {**wire, "version": True}):
            with pytest.raises(Malformed):
                type(message).from_wire(broken)


def test_the_owner_may_bring_the_chain():
    request = dataclasses.replace(Chip().request(MAKER), ek_chain=())
    pending, _ = begin(request, bytes(32), now=MAKER.NOW, pool=MAKER.pool[::-1], roots=[MAKER.fingerprint])
    assert pending.record.root == MAKER.fingerprint


def test_the_secret_is_the_callers_and_has_one_size():
    for size in (0, 16, 31, 33, 64):
        with pytest.raises(Misuse) as caught:
            begin(Chip().request(MAKER), bytes(size), now=MAKER.NOW, roots=[MAKER.fingerprint])
        assert caught.value.code == "enrolment.secret"


def test_pending_hides_its_proof():
    request = Chip().request(MAKER)
    pending, _ = begin(request, b"s" * 32, now=MAKER.NOW, roots=[MAKER.fingerprint])
    assert answer(request, b"s" * 32).hex() not in repr(pending)
    assert repr(answer(request, b"s" * 32)) not in repr(pending)
    assert finish(pending, answer(request, b"s" * 32), now=MAKER.NOW + 300) == pending.record


def test_derivations_are_the_librarys():
    """Part 1 §11.4.10, written out again; longer than one block, too."""
    import hmac

    blocks = [
        hmac.digest(b"k", i.to_bytes(4, "big") + b"LABEL\0" + b"u" + b"v" + (384).to_bytes(4, "big"), "sha256")
        for i in (1, 2)
    ]
    assert kdfa("sha256", b"k", b"LABEL", b"u", b"v", 384) == b"".join(blocks)[:48]
    blocks = [hashlib.sha256(i.to_bytes(4, "big") + b"z" + b"LABEL\0" + b"u" + b"v").digest() for i in (1, 2)]
    assert kdfe("sha256", b"z", b"LABEL", b"u", b"v", 384) == b"".join(blocks)[:48]


def test_credentials_refuse_what_no_endorsement_key_is():
    good = Chip().endorsement.der()
    with pytest.raises(Misuse):
        make_credential(good, hash_name="sha256", symmetric_bits=128, name=b"n", secret=bytes(33))
    for hash_name, bits, key in (("sha1", 128, good), ("sha256", 192, good), ("sha256", 128, b"\0" * 90)):
        with pytest.raises(Malformed):
            make_credential(key, hash_name=hash_name, symmetric_bits=bits, name=b"n", secret=bytes(32))
    # Numbers that the library takes for a key until it encrypts; and an algorithm that it doesn't know.
    even = rsa_public_der(b"\xff" * 255 + b"\xfe", 65537)
    unknown = rsa_public_der(b"\xff" * 256, 65537).replace(
        bytes.fromhex("2a864886f70d0101"), bytes.fromhex("2a864886f70d0109")
    )
    for key in (even, unknown):
        with pytest.raises(Malformed):
            make_credential(key, hash_name="sha256", symmetric_bits=128, name=b"n", secret=bytes(32))


def verify(forge, evidence, enrolments=None):
    return TpmVerifier(enrolments).verify(evidence, forge.report(evidence.additional), now=0)


def test_level_and_device_follow_from_the_enrolment(shipped):
    chip = Chip()
    record = enrol(chip, MAKER)
    evidence = chip.forge.evidence(Log())
    claims = verify(chip.forge, evidence, {record.ak_name: record})
    assert claims.level == "tpm"
    assert claims.hardware == record.hardware
    (device,) = claims.devices
    assert (device.name, device.tee, device.identity) == ("tpm0", "tpm", record.ek)
    assert device.facts["manufacturer"] == "494e5443"
    assert device.measurements["pcr7"] == claims.pcrs["7"]
    # Another TPM, or the same without its record, is what it was before: level none, no devices.
    for forge, known in ((Forge(), {record.ak_name: record}), (chip.forge, {})):
        other = verify(forge, forge.evidence(Log()), known)
        assert other.level == "none"
        assert other.devices == ()


def test_level_none_for_a_root_that_the_owner_added():
    chip = Chip()
    record = enrol(chip, MAKER)
    claims = verify(chip.forge, chip.forge.evidence(Log()), {record.ak_name: record})
    assert claims.level == "none"
    assert "manufacturer" not in claims.devices[0].facts
    assert claims.devices[0].identity == record.ek
    assert claims.notes[0].startswith("Level none")


def boot(**options):
    raw = boot_bytes(**options)
    values = naive_replay(parse_log(raw), "sha256")
    return raw, {str(i): values[i].hex() for i in range(8)}


@pytest.mark.parametrize("on", [True, False])
def test_a_boot_log_gives_facts_about_secure_boot(on):
    forge = Forge()
    raw, pcrs = boot(on=on)
    claims = verify(forge, forge.evidence(Log(), pcrs=pcrs, primary={"boot_log": b64(raw)}))
    (device,) = claims.devices
    assert device.facts["secure_boot"] is on
    assert device.identity == ""
    assert claims.level == "none"
    canonical_json(device.to_wire())


GOOD_CHIP = Chip()
GOOD = GOOD_CHIP.request(MAKER)


@given(st.sampled_from(["ak_public", "ek_public", "ek_certificate"]), st.integers(0, 1 << 14))
@settings(max_examples=150)
def test_any_one_bit_of_a_request_changed_is_refused_or_fails_the_proof(field, bit):
    raw = bytearray(getattr(GOOD, field))
    raw[bit // 8 % len(raw)] ^= 1 << bit % 8
    changed = dataclasses.replace(GOOD, **{field: bytes(raw)})
    try:
        _, challenge = begin(changed, os.urandom(32), now=MAKER.NOW, roots=[MAKER.fingerprint])
    except CloisterError:
        return
    # What certificates can't tell is told by the TPM: it has no key of that name.
    assert field == "ak_public"
    with pytest.raises(AssertionError):
        GOOD_CHIP.activate(challenge.credential)


@given(st.binary(max_size=400))
@settings(max_examples=100)
def test_any_bytes_are_no_key_and_no_certificate(data):
    with pytest.raises(CloisterError):
        ek.parse_endorsement(data)
    with pytest.raises(CloisterError):
        read_ek_certificate(data)
