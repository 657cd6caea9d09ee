"""OCSP responses: what one says, who may say it, for how long, and that nothing but typed errors comes of any bytes."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import example, given
from hypothesis import strategies as st

from cloister.crypto.ocsp import MAX_OCSP, SKEW, OcspStatus, ocsp_request, read_ocsp, verify_ocsp
from cloister.errors import CloisterError, Malformed, Untrusted
from tests.pki import _ANSWERS, DAY, NOW, Entity, answer, extension, issue, p256, p384, responder, tlv

ROOT = issue("root", p384(), ca=True)
ISSUER = issue("issuer", p384(), ROOT, ca=True)
DEVICE = issue("device", p384(), ISSUER)
OTHER = issue("other", p384(), ISSUER)
RESPONDER = responder(ISSUER)
GOOD = answer(DEVICE, ISSUER, RESPONDER)
END = NOW + DAY - 60


def check(data: bytes, about: Entity = DEVICE, issuers: tuple[Entity, ...] = (ISSUER, ROOT), **how: Any) -> OcspStatus:
    return verify_ocsp(read_ocsp(data), about.parsed, [entity.parsed for entity in issuers], **{"now": NOW, **how})


def refused(code: str, act: Callable[[], object], kind: type[CloisterError] = Untrusted) -> None:
    with pytest.raises(kind) as caught:
        act()
    assert caught.value.code == code, caught.value


def test_a_good_answer_of_a_delegated_responder() -> None:
    status = check(GOOD)
    assert (status.status, status.reason, status.revoked_at) == ("good", "", None)
    assert (status.this_update, status.next_update) == (NOW - 60, END)
    assert status.responder == RESPONDER.parsed
    status.check_good("It")


def test_an_answer_of_the_issuer_itself() -> None:
    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    issuer = issue("issuer", p384(), ROOT, ca=True, usage=False, extensions=[(usage, True)])
    device = issue("device", p384(), issuer)
    for by_name in (False, True):
        status = check(answer(device, issuer, by_name=by_name), device, (issuer, ROOT))
        assert status.responder == issuer.parsed
    # The root, which is its own issuer, answers for whom it issued.
    alone = issue("root", p384(), ca=True, usage=False, extensions=[(usage, True)])
    below = issue("below", p384(), alone)
    assert check(answer(below, alone), below, (alone,)).status == "good"
    # Keys of authorities that are for certificates and lists only sign no answers.
    refused("ocsp.responder", lambda: check(answer(DEVICE, ISSUER)))


@pytest.mark.parametrize("id_hash", [hashes.SHA256(), hashes.SHA384(), hashes.SHA512()], ids=lambda h: h.name)
@pytest.mark.parametrize("by_name", [False, True])
def test_the_ways_to_name(id_hash: hashes.HashAlgorithm, by_name: bool) -> None:
    assert check(answer(DEVICE, ISSUER, RESPONDER, id_hash=id_hash, by_name=by_name)).status == "good"


def test_keys_of_other_kinds() -> None:
    for key in (p256(), rsa.generate_private_key(65537, 2048)):
        signer = responder(ISSUER, key=key)
        for digest in (hashes.SHA256(), hashes.SHA512()):
            assert check(answer(DEVICE, ISSUER, signer, hash_=digest)).status == "good"


@pytest.mark.parametrize("reason", list(x509.ReasonFlags), ids=lambda reason: reason.name)
def test_a_revoked_one_says_when_and_why(reason: x509.ReasonFlags) -> None:
    status = check(answer(DEVICE, ISSUER, RESPONDER, reason=reason))
    assert (status.status, status.revoked_at) == ("revoked", NOW - 60)
    code = "x509.hold" if status.reason == "certificateHold" else "x509.revoked"
    assert (code == "x509.hold") == (reason is x509.ReasonFlags.certificate_hold)
    refused(code, lambda: status.check_good("It"))


def test_revoked_without_a_reason_and_unknown() -> None:
    status = check(answer(DEVICE, ISSUER, RESPONDER, status=ocsp.OCSPCertStatus.REVOKED))
    assert (status.status, status.reason) == ("revoked", "")
    refused("x509.revoked", lambda: status.check_good("It"))
    status = check(answer(DEVICE, ISSUER, RESPONDER, status=ocsp.OCSPCertStatus.UNKNOWN))
    assert status.status == "unknown"
    refused("ocsp.unknown", lambda: status.check_good("It"))


def test_the_question() -> None:
    data = ocsp_request(DEVICE.parsed, ISSUER.parsed)
    asked = ocsp.load_der_ocsp_request(data)
    assert (asked.serial_number, asked.hash_algorithm.name) == (DEVICE.cert.serial_number, "sha384")
    # The same each time: an answer is kept, and shared.
    assert data == ocsp_request(DEVICE.parsed, ISSUER.parsed)
    assert list(asked.extensions) == []


@pytest.mark.parametrize(
    ("now", "grace", "code"),
    [
        (NOW - 60 - SKEW, 0, ""),
        (NOW - 61 - SKEW, 0, "ocsp.future"),
        (END - 1, 0, ""),
        (END, 0, "ocsp.stale"),
        (END, 1, ""),
        (END + DAY - 1, DAY, ""),
        (END + DAY, DAY, "ocsp.stale"),
    ],
)
def test_its_time(now: int, grace: int, code: str) -> None:
    if code:
        refused(code, lambda: check(GOOD, now=now, grace=grace))
    else:
        assert check(GOOD, now=now, grace=grace).status == "good"


def test_an_answer_that_was_made_or_begins_later() -> None:
    refused("ocsp.future", lambda: check(answer(DEVICE, ISSUER, RESPONDER, made=NOW + DAY)))
    later = answer(DEVICE, ISSUER, RESPONDER, start=NOW + DAY, end=NOW + 2 * DAY, made=NOW)
    refused("ocsp.future", lambda: check(later))


def test_a_responder_has_its_own_time() -> None:
    late, early = responder(ISSUER, start=NOW + 1), responder(ISSUER, end=NOW - 1)
    refused("x509.not-yet", lambda: check(answer(DEVICE, ISSUER, late)))
    refused("x509.expired", lambda: check(answer(DEVICE, ISSUER, early)))
    # In an owner's grace it counts that the responder could sign until its answer ended.
    brief = answer(DEVICE, ISSUER, responder(ISSUER, end=END + 1))
    refused("ocsp.stale", lambda: check(brief, now=END + DAY))
    assert check(brief, now=END + DAY, grace=2 * DAY).status == "good"


def test_whom_it_is_about() -> None:
    refused("ocsp.certificate", lambda: check(GOOD, OTHER))
    refused("ocsp.certificate", lambda: check(answer(DEVICE, ISSUER, RESPONDER, serial=1)))
    # The same name, and even the same serial number, under another key.
    twin = issue("issuer", p384(), ROOT, ca=True)
    same = issue("device", p384(), twin, serial=DEVICE.cert.serial_number)
    refused("ocsp.certificate", lambda: check(answer(same, twin, responder(twin))))
    refused("ocsp.certificate", lambda: check(answer(DEVICE, ISSUER, RESPONDER, id_hash=hashes.SHA1())))


def test_who_is_no_responder() -> None:
    def by(signer: Entity, **how: Any) -> Callable[[], object]:
        return lambda: check(answer(DEVICE, ISSUER, signer, **how))

    some = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]
    refused("ocsp.responder", by(responder(ISSUER, purposes=[])))
    refused("ocsp.responder", by(responder(ISSUER, purposes=some)))
    # One that is shown nowhere.
    refused("ocsp.responder", by(RESPONDER, shown=[]))
    refused("ocsp.responder", by(RESPONDER, shown=[OTHER, DEVICE]))
    # Of an authority above, of one beside, of a stranger with the same name.
    stranger = issue("issuer", p384(), ca=True)
    refused("x509.issuer", by(responder(ROOT)))
    refused("x509.issuer", by(responder(DEVICE)))
    refused("x509.signature", by(responder(stranger)))
    # One that is an authority, may not sign, or has to obey a rule that isn't understood.
    purpose = (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING]), True)
    refused("x509.ca", by(issue("Responder", p384(), ISSUER, ca=True, extensions=[purpose])))
    no_signing = x509.KeyUsage(False, False, True, False, False, False, False, False, False)
    refused("ocsp.responder", by(responder(ISSUER, extensions=[purpose, (no_signing, True)])))
    refused("x509.critical", by(responder(ISSUER, extensions=[purpose, extension("1.2.3", b"\5\0", critical=True)])))
    # A critical purpose, as RFC 6960 allows, is understood.
    assert check(answer(DEVICE, ISSUER, responder(ISSUER, extensions=[purpose, (_ANSWERS, True)]))).status == "good"


def test_a_signature_of_somebody_else() -> None:
    another = responder(ISSUER)
    assert another.cert.subject == RESPONDER.cert.subject
    refused("ocsp.signature", lambda: check(answer(DEVICE, ISSUER, RESPONDER, by_name=True, shown=[another])))


def test_algorithms_that_are_not_accepted() -> None:
    # A whole one, as a certificate has it.
    signed = issue("x", rsa.generate_private_key(65537, 2048), pss=True)
    pss = signed.der.partition(signed.cert.tbs_certificate_bytes)[2]
    pss = pss[: 2 + pss[1]]
    sha1 = tlv(0x30, tlv(0x06, bytes.fromhex("2a8648ce3d0401")))
    ed25519 = tlv(0x30, tlv(0x06, bytes.fromhex("2b6570")))
    for algorithm in (sha1, ed25519):
        refused("ocsp.signature", lambda a=algorithm: check(answer(DEVICE, ISSUER, RESPONDER, algorithm=a)))  # type: ignore[misc]
    unknown = tlv(0x30, tlv(0x06, bytes.fromhex("2a0304")))
    for algorithm in (pss, unknown):
        refused("ocsp.form", lambda a=algorithm: check(answer(DEVICE, ISSUER, RESPONDER, algorithm=a)), Malformed)  # type: ignore[misc]


def content(data: bytes) -> bytes:
    return data[2 + (data[1] & 0x7F if data[1] & 0x80 else 0) :]


def responses(times: int, more: bytes = b"") -> Callable[[bytes], bytes]:
    """An edit that repeats what a response says of its one certificate, with ``more`` at the end of it."""

    def edit(tbs: bytes) -> bytes:
        found = re.search(rb"\x18\x0f\d{14}Z", tbs)
        assert found is not None
        head = tbs[len(tbs) - len(content(tbs)) : found.end()]
        single = content(content(tbs[found.end() :]))
        return tlv(0x30, head, tlv(0x30, *[tlv(0x30, single, more)] * times))

    return edit


def single_extension(critical: bool) -> bytes:
    parts = [tlv(0x06, b"\x2a\x03"), *([tlv(0x01, b"\xff")] if critical else []), tlv(0x04, b"\5\0")]
    return tlv(0xA1, tlv(0x30, tlv(0x30, *parts)))


def test_forms_that_are_refused() -> None:
    def form(**how: Any) -> None:
        refused("ocsp.form", lambda: read_ocsp(answer(DEVICE, ISSUER, RESPONDER, **how)), Malformed)

    assert read_ocsp(answer(DEVICE, ISSUER, RESPONDER, edit=responses(1))).this_update == NOW - 60
    form(edit=responses(0))
    form(edit=responses(2))
    assert check(answer(DEVICE, ISSUER, RESPONDER, edit=responses(1, single_extension(False)))).status == "good"
    form(edit=responses(1, single_extension(True)))
    form(end=None)
    form(end=NOW - 60)
    form(shown=[RESPONDER] + [OTHER] * 8)
    read_ocsp(answer(DEVICE, ISSUER, RESPONDER, shown=[RESPONDER] + [OTHER] * 7))
    form(extensions=[extension("1.2.3", b"\5\0", critical=True)])
    read_ocsp(answer(DEVICE, ISSUER, RESPONDER, extensions=[extension("1.2.3", b"\5\0")]))
    # Somebody's nonce is no concern of whoever reads the answer later.
    for critical in (False, True):
        assert check(answer(DEVICE, ISSUER, RESPONDER, extensions=[(x509.OCSPNonce(b"n" * 32), critical)]))


def test_a_responder_that_did_not_answer() -> None:
    for number in (1, 2, 3, 5, 6):
        data = tlv(0x30, tlv(0x0A, bytes([number])))
        refused("ocsp.unanswered", lambda d=data: read_ocsp(d), Malformed)  # type: ignore[misc]
    refused("ocsp.form", lambda: read_ocsp(tlv(0x30, tlv(0x0A, b"\4"))), Malformed)
    refused("ocsp.form", lambda: read_ocsp(tlv(0x30, tlv(0x0A, b"\0"))), Malformed)


def test_sizes() -> None:
    refused("ocsp.size", lambda: read_ocsp(bytes(MAX_OCSP + 1)), Malformed)
    for data in (b"", GOOD[:-1], GOOD + b"\0", GOOD * 2):
        refused("ocsp.form", lambda d=data: read_ocsp(d), Malformed)  # type: ignore[misc]


def test_no_second_text_of_one_response() -> None:
    """A signature whose last bit is zero could be said to have an unused bit; the library would not mind."""
    while True:
        data = answer(DEVICE, ISSUER, RESPONDER, shown=[])
        signature = ocsp.load_der_ocsp_response(data).signature
        if not signature[-1] & 1:
            break
    at = data.index(b"\0" + signature)
    other = data[:at] + b"\1" + data[at + 1 :]
    assert ocsp.load_der_ocsp_response(other).signature == signature
    read_ocsp(data)
    refused("ocsp.form", lambda: read_ocsp(other), Malformed)


@given(st.binary(max_size=200))
@example(GOOD)
@example(b"\x30\x80\x0a\x01\x00\x00\x00")
def test_any_bytes_are_a_response_or_a_typed_error(data: bytes) -> None:
    with suppress(Malformed):
        read_ocsp(data)


@given(st.integers(0, len(GOOD) - 1), st.binary(max_size=4), st.integers(0, 4))
def test_any_change_is_a_typed_error(at: int, new: bytes, cut: int) -> None:
    changed = GOOD[:at] + new + GOOD[at + cut :]
    with suppress(Malformed, Untrusted):
        check(changed)
        assert changed == GOOD


def flipped(bit: int) -> None:
    changed = bytearray(GOOD)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises((Malformed, Untrusted)):
        check(bytes(changed))


@given(st.integers(0, len(GOOD) * 8 - 1))
def test_any_one_bit_change_is_refused(bit: int) -> None:
    flipped(bit)


@pytest.mark.slow
def test_every_one_bit_change_is_refused() -> None:
    for bit in range(len(GOOD) * 8):
        flipped(bit)
