"""A GPU that NVIDIA revoked or put on hold, and what an attacker sends so that it passes all the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from cloister.attestation.collateral import CollateralSet, Item, Staleness
from cloister.crypto.der import read_der
from cloister.errors import CloisterError, Malformed, Untrusted
from tests.nvidia_forge import SIGNING, Factory, Gpu, composite_id
from tests.pki import DAY, NOW, Entity, answer, extension, issue, p384, responder, tlv

FACTORY = Factory()
GPU, OTHER = FACTORY.gpu(), FACTORY.gpu()
BROM, PROVISIONER = GPU.chain[1], FACTORY.provisioner
RESPONDER = responder(PROVISIONER)
NONCE = bytes(range(32))
MANIFESTS = list(FACTORY.items())
GOOD = FACTORY.answers(GPU)
HOLD = x509.ReasonFlags.certificate_hold


def verify(
    pieces: Sequence[Item], gpu: Gpu = GPU, *, now: int = NOW, grace: int = 0, required: bool = True
) -> dict[str, Any]:
    how: dict[str, Any] = {"device_roots": {FACTORY.root.root}, "manifest_roots": {FACTORY.rim_root.root}}
    verifier = FACTORY.verifier(CollateralSet([*MANIFESTS, *pieces]), require_revocation=required, **how)
    if grace:
        verifier = type(verifier)(
            CollateralSet([*MANIFESTS, *pieces]), Staleness(grace=grace), require_revocation=required, **how
        )
    (device,) = verifier.verify([gpu.entry(NONCE)], NONCE, now=now)
    return dict(device.facts)


def refused(code: str, pieces: Sequence[Item], *, kind: type[CloisterError] = Untrusted, **how: Any) -> None:
    """With revocation required or not: what is at hand counts."""
    for required in (True, False):
        with pytest.raises(kind) as caught:
            verify(pieces, required=required, **how)
        assert caught.value.code == code, caught.value
    # Whatever was refused left nothing behind.
    assert verify(GOOD)["revocation_checked"] is True


def brom(
    signer: Entity | None = RESPONDER, about: Entity = BROM, issuer: Entity = PROVISIONER, **how: Any
) -> list[Item]:
    """Good answers, but for this one about the boot ROM."""
    return FACTORY.answers(GPU, brom=answer(about, issuer, signer, **how))


def test_good_answers_are_accepted() -> None:
    facts = verify(brom())
    assert facts["revocation_checked"] is True
    assert facts["confidential"] is True


def test_a_device_on_hold() -> None:
    refused("x509.hold", brom(reason=HOLD))


def test_a_device_that_was_revoked() -> None:
    refused("x509.revoked", brom(reason=x509.ReasonFlags.key_compromise))
    refused("x509.revoked", brom(status=ocsp.OCSPCertStatus.REVOKED))


@pytest.mark.parametrize("role", ["provisioner", "identity"])
def test_an_authority_that_was_revoked(role: str) -> None:
    at = {"provisioner": 2, "identity": 3}[role]
    about, issuer = GPU.chain[at], GPU.chain[at + 1]
    data = answer(about, issuer, responder(issuer), reason=x509.ReasonFlags.ca_compromise)
    refused("x509.revoked", FACTORY.answers(GPU, **{role: data}))


def test_a_device_that_the_responder_does_not_know() -> None:
    refused("ocsp.unknown", brom(status=ocsp.OCSPCertStatus.UNKNOWN))


def test_a_clean_list_beside_a_hold() -> None:
    """Neither source hides what the other says."""
    clean = Item("nvidia-crl", PROVISIONER.root, PROVISIONER.crl(), NOW)
    refused("x509.hold", [*brom(reason=HOLD), clean])
    listed = Item("nvidia-crl", PROVISIONER.root, PROVISIONER.crl(BROM.cert.serial_number), NOW)
    refused("x509.revoked", [*brom(), listed])


def test_the_answer_left_out() -> None:
    """Only where it is required is this seen; the fact says which it was."""
    few = FACTORY.answers(GPU, brom=None)
    with pytest.raises(Untrusted) as caught:
        verify(few)
    assert caught.value.code == "collateral.missing"
    assert verify(few, required=False)["revocation_checked"] is False


def test_an_answer_about_another_device_under_this_ones_name() -> None:
    refused("ocsp.certificate", brom(about=OTHER.chain[1]))
    refused("ocsp.certificate", brom(serial=OTHER.chain[1].cert.serial_number))


def test_an_answer_about_another_authority_under_this_ones_name() -> None:
    identity = answer(FACTORY.identity, FACTORY.root, responder(FACTORY.root))
    refused("ocsp.certificate", FACTORY.answers(GPU, provisioner=identity))


def test_a_responder_of_another_authority() -> None:
    """One above, one of another branch, one of another vendor, each a responder in its own right."""
    branch = issue("Provisioner", p384(), FACTORY.identity, ca=True)
    refused("x509.issuer", brom(responder(FACTORY.root)))
    refused("x509.issuer", brom(responder(FACTORY.identity)))
    refused("x509.signature", brom(responder(branch)))
    refused("x509.signature", brom(responder(Factory().provisioner)))


def test_a_responder_of_the_manifests() -> None:
    refused("x509.issuer", brom(responder(FACTORY.rim_root)))


def test_a_device_that_answers_for_itself() -> None:
    """The boot ROM is an authority, over its own leaf; it can't vouch for itself."""
    refused("x509.issuer", brom(responder(BROM)))
    refused("ocsp.responder", brom(BROM, shown=[]))


def test_another_device_that_answers() -> None:
    """It was certified by the right authority, but as a device."""
    refused("x509.ca", brom(OTHER.chain[1]))


def test_a_responder_without_the_purpose() -> None:
    for purposes in ([], [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]):
        refused("ocsp.responder", brom(responder(PROVISIONER, purposes=purposes)))


def test_a_responder_that_has_expired_or_was_revoked() -> None:
    refused("x509.expired", brom(responder(PROVISIONER, end=NOW - 1)))
    listed = Item("nvidia-crl", PROVISIONER.root, PROVISIONER.crl(RESPONDER.cert.serial_number), NOW)
    refused("ocsp.responder", [*brom(), listed])


def test_a_good_answer_of_before_the_revocation() -> None:
    """It passes until its own end, a day at NVIDIA, and an owner's grace longer; not one second more."""
    revoked = NOW + 3600
    old = brom(start=NOW - 60, end=NOW - 60 + DAY)
    assert verify(old, now=revoked)["revocation_checked"] is True
    assert verify(old, now=NOW - 61 + DAY)["revocation_checked"] is True
    refused("collateral.stale", old, now=NOW - 60 + DAY)
    long = FACTORY.answers(GPU)
    long = [Item(piece.kind, piece.name, piece.data, NOW) for piece in long]
    assert verify(long, now=NOW + DAY, grace=DAY)["revocation_checked"] is True
    refused("collateral.stale", long, now=NOW - 60 + 2 * DAY, grace=DAY)


def test_the_answer_that_was_obtained_later_counts() -> None:
    held = Item("nvidia-ocsp", BROM.parsed.fingerprint, answer(BROM, PROVISIONER, RESPONDER, reason=HOLD), NOW)
    earlier = [Item(piece.kind, piece.name, piece.data, NOW - 1) for piece in GOOD]
    for pieces in ([*earlier, held], [held, *earlier]):
        refused("x509.hold", pieces)


def test_an_answer_from_the_future() -> None:
    refused("ocsp.future", brom(start=NOW + DAY, end=NOW + 2 * DAY))
    name = BROM.parsed.fingerprint
    later = Item("nvidia-ocsp", name, answer(BROM, PROVISIONER, RESPONDER), NOW + 1)
    refused("collateral.future", [*FACTORY.answers(GPU, brom=None), later])
    # Nor is it passed over for another source: a clock that was set back is to be noticed.
    clean = Item("nvidia-crl", PROVISIONER.root, PROVISIONER.crl(), NOW)
    refused("collateral.future", [*FACTORY.answers(GPU, brom=None), later, clean])
    listed = Item("nvidia-crl", PROVISIONER.root, PROVISIONER.crl(start=NOW + DAY, end=NOW + 2 * DAY), NOW)
    refused("collateral.future", [*GOOD, listed])


def test_an_answer_that_never_ends() -> None:
    refused("ocsp.form", brom(end=None), kind=Malformed)


def test_a_hold_that_was_edited_to_good() -> None:
    data = answer(BROM, PROVISIONER, RESPONDER, status=ocsp.OCSPCertStatus.UNKNOWN)
    # The status of one that is not known is [2] NULL, that of a good one [0] NULL.
    assert data.count(b"\x82\x00\x18") == 1
    refused("ocsp.signature", FACTORY.answers(GPU, brom=data.replace(b"\x82\x00\x18", b"\x80\x00\x18")))


def test_a_refusal_to_answer_stored_as_an_answer() -> None:
    refused("ocsp.unanswered", FACTORY.answers(GPU, brom=tlv(0x30, tlv(0x0A, b"\6"))), kind=Malformed)


def test_a_made_up_device_between_a_revoked_one_and_its_leaf() -> None:
    """Whoever has a boot ROM's key can certify further keys with it; the chip that it was taken from stays in the
    chain, and is what is asked about."""
    fake = issue("", p384(), BROM, ca=True, subject=BROM.cert.subject)
    own = extension("2.23.133.5.4.1", composite_id(fake.key, GPU.fwid))
    leaf = issue("leaf", p384(), fake, extensions=[(SIGNING, True), own])
    gpu = Gpu(GPU.arch, [leaf, fake, *GPU.chain[1:]], GPU.fwid, GPU.pdi)
    vouched = Item("nvidia-ocsp", fake.parsed.fingerprint, answer(fake, BROM, responder(BROM)), NOW)
    refused("x509.hold", [*brom(reason=HOLD), vouched], gpu=gpu)
    # And even one that nobody has revoked yet stays one device.
    refused("nvidia.chain", [*GOOD, vouched], gpu=gpu)


def test_a_revoked_device_under_another_text_of_its_certificate() -> None:
    """Of an ECDSA signature (r, s) anybody makes (r, n - s), which is as good: the boot ROM's certificate then has
    another SHA-256, under which nobody has asked."""
    r, s = decode_dss_signature(BROM.cert.signature)
    other = encode_dss_signature(r, ec.SECP384R1().group_order - s)
    parts = read_der(BROM.der, "certificate", code="test.form").children(count=3)
    twin = tlv(0x30, parts[0].encode() + parts[1].encode() + tlv(3, b"\0" + other))
    again = Entity(BROM.key, x509.load_der_x509_certificate(twin))
    assert again.parsed.fingerprint != BROM.parsed.fingerprint
    gpu = Gpu(GPU.arch, [GPU.chain[0], again, *GPU.chain[2:]], GPU.fwid, GPU.pdi)
    assert verify(GOOD, gpu=gpu)["revocation_checked"] is True
    refused("x509.hold", brom(reason=HOLD), gpu=gpu)
    # Nor does a good answer about one text hide what is said about the other.
    vouched = Item("nvidia-ocsp", again.parsed.fingerprint, answer(again, PROVISIONER, RESPONDER), NOW)
    refused("x509.hold", [*brom(reason=HOLD), vouched], gpu=gpu)
    refused("x509.hold", [*brom(reason=HOLD), vouched])
