"""COSE_Sign1: an example of the standard, each algorithm, and that headers choose neither key nor algorithm."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.crypto import SigningKey
from cloister.crypto.cbor import Tag, cbor, parse_cbor
from cloister.crypto.cose import CoseKey, cose_sign1, cose_verify1
from cloister.crypto.signatures import ecdsa_public_der
from cloister.errors import CloisterError, Malformed, Untrusted

KEY = SigningKey(b"k" * 32)
PINNED = CoseKey.ed25519(KEY.public)
MESSAGE = cose_sign1(b"payload", {3: "text/plain"}, KEY)
EC: dict[str, tuple[ec.EllipticCurve, hashes.HashAlgorithm, int]] = {
    "P-256": (ec.SECP256R1(), hashes.SHA256(), -7),
    "P-384": (ec.SECP384R1(), hashes.SHA384(), -35),
}


def unpad64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def ecdsa_signed(curve: str, *, algorithm: int | None = None, **parts: Any) -> tuple[bytes, CoseKey]:
    kind, digest, number = EC[curve]
    key = ec.generate_private_key(kind)
    protected = cbor({1: number if algorithm is None else algorithm})
    der = key.sign(cbor(["Signature1", protected, b"", b"payload"]), ec.ECDSA(digest))
    size = (kind.key_size + 7) // 8
    r, s = decode_dss_signature(der)
    signature = parts.get("signature", r.to_bytes(size, "big") + s.to_bytes(size, "big"))
    info = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return cbor(Tag(18, [protected, parts.get("unprotected", {}), b"payload", signature])), CoseKey.read(info)


def code(error: type[CloisterError], data: bytes, *keys: CoseKey, **options: Any) -> str:
    with pytest.raises(error) as caught:
        cose_verify1(data, keys or [PINNED], **options)
    return caught.value.code


def test_the_example_of_the_standard() -> None:
    """RFC 8152 and RFC 9052, appendix C.2.1."""
    data = bytes.fromhex(
        "d28443a10126a10442313154546869732069732074686520636f6e74656e742e58408eb33e4ca31d1c465ab05aac34cc6b23d58fef5c0831"
        "06c4d25a91aef0b0117e2af9a291aa32e14ab834dc56ed2a223444547e01f11d3b0916e5a4c345cacb36"
    )
    x, y = "usWxHK2PmfnHKwXPS54m0kTcGJ90UiglWiGahtagnv8", "IBOL-C3BttVivg-lSreASjpkttcsz-1rb7btKLv8EX4"
    key = CoseKey.read(ecdsa_public_der("P-256", unpad64(x), unpad64(y)))
    signed = cose_verify1(data, [PINNED, key])
    assert (signed.payload, signed.key, signed.unprotected) == (b"This is the content.", key, {4: b"11"})


def test_ours_is_deterministic_and_read_back() -> None:
    assert cose_sign1(b"payload", {3: "text/plain"}, KEY) == MESSAGE
    signed = cose_verify1(MESSAGE, [PINNED])
    assert (signed.payload, signed.protected, signed.key) == (b"payload", {1: -8, 3: "text/plain"}, PINNED)


@pytest.mark.parametrize("curve", ["P-256", "P-384"])
def test_ecdsa(curve: str) -> None:
    data, key = ecdsa_signed(curve)
    assert cose_verify1(data, [key]).payload == b"payload"
    other = ecdsa_signed(curve)[1]
    assert code(Untrusted, data, other) == "cose.unsigned"


def test_the_algorithm_is_the_pinned_keys() -> None:
    for curve, wrong in (("P-256", -35), ("P-384", -7), ("P-256", -8)):
        data, key = ecdsa_signed(curve, algorithm=wrong)
        assert code(Untrusted, data, key) == "cose.unsigned"


@pytest.mark.parametrize("signature", [b"", b"x" * 63, b"x" * 64, b"\x00" * 64, b"x" * 96])
def test_ecdsa_signatures_of_another_form(signature: bytes) -> None:
    data, key = ecdsa_signed("P-256", signature=signature)
    assert code(Untrusted, data, key) == "cose.unsigned"


def test_no_key_no_trust() -> None:
    with pytest.raises(Untrusted):
        cose_verify1(MESSAGE, [])
    assert code(Untrusted, MESSAGE, CoseKey.ed25519(SigningKey.generate().public)) == "cose.unsigned"


def remade(protected: Any = None, unprotected: Any = None, payload: Any = b"payload", tag: int = 18) -> bytes:
    header = cbor({1: -8} if protected is None else protected)
    signature = KEY.sign(cbor(["Signature1", header, b"", payload])) if isinstance(payload, bytes) else b""
    return cbor(Tag(tag, [header, {} if unprotected is None else unprotected, payload, signature]))


@pytest.mark.parametrize(
    ("data", "error", "expected"),
    [
        (remade({1: -8, 2: [3]}), Untrusted, "cose.critical"),
        (remade(unprotected={2: [3]}), Untrusted, "cose.critical"),
        (remade({}, {1: -8}), Malformed, "cose.algorithm"),  # nothing that is not signed chooses an algorithm
        (remade({1: -8}, {1: -8}), Malformed, "cose.header"),
        (remade({1: "EdDSA"}), Malformed, "cose.algorithm"),
        (remade([]), Malformed, "cose.header"),
        (remade({1: -8}, []), Malformed, "cose.form"),
        (remade(payload=None), Malformed, "cose.form"),
        (remade(tag=98), Malformed, "cose.form"),
        (cbor([b"", {}, b"", b""]), Malformed, "cose.form"),
        (cbor(Tag(18, [b"", {}, b""])), Malformed, "cose.form"),
        (b"", Malformed, "cbor.short"),
    ],
)
def test_messages_of_another_form(data: bytes, error: type[CloisterError], expected: str) -> None:
    assert code(error, data) == expected


def test_limits_and_strictness() -> None:
    assert code(Malformed, MESSAGE, limit=10) == "cbor.size"
    loose = MESSAGE.replace(b"\x47payload", b"\x58\x07payload")
    assert code(Malformed, loose) == "cbor.shortest"
    assert cose_verify1(loose, [PINNED], strict=False).payload == b"payload"


@pytest.mark.parametrize("curve", ["P-256", "P-384"])
def test_keys_are_read_from_files(curve: str) -> None:
    public = ec.generate_private_key(EC[curve][0]).public_key()
    for encoding in (serialization.Encoding.DER, serialization.Encoding.PEM):
        data = public.public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)
        assert CoseKey.read(data).algorithm == EC[curve][2]
    assert CoseKey.read(KEY.public.hex().encode() + b"\n") == PINNED
    assert len(PINNED.fingerprint) == 64


def test_keys_that_are_not_accepted() -> None:
    p521 = ec.generate_private_key(ec.SECP521R1()).public_key()
    info = p521.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    for data in (info, b"", b"ab" * 31, b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", b"\x30\x00"):
        with pytest.raises(Malformed):
            CoseKey.read(data)
    # A curve that the library doesn't know, and an algorithm: it has an error of its own for each.
    der = p521.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    for known, odd in (("06052b81040023", "06052b81040055"), ("06072a8648ce3d0201", "06072a8648ce3d0209")):
        with pytest.raises(Malformed):
            CoseKey.read(der.replace(bytes.fromhex(known), bytes.fromhex(odd)))
    with pytest.raises(Malformed):
        CoseKey.ed25519(b"short")


@given(st.integers(0, 8 * len(MESSAGE) - 1))
@settings(max_examples=200, deadline=None)
def test_any_one_bit_change_is_refused(bit: int) -> None:
    changed = bytearray(MESSAGE)
    changed[bit // 8] ^= 1 << (bit % 8)
    with pytest.raises((Malformed, Untrusted)):
        cose_verify1(bytes(changed), [PINNED])


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_refused(data: bytes) -> None:
    for strict in (True, False):
        with pytest.raises((Malformed, Untrusted)):
            cose_verify1(data, [PINNED], strict=strict)


def test_what_the_signature_covers() -> None:
    header, _, payload, signature = parse_cbor(MESSAGE).value
    message = cbor(["Signature1", header, b"", payload])
    assert KEY.sign(message) == signature
