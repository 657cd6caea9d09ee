"""DSSE, signatures, HPKE, JWE: what must hold, and what must not open."""

from __future__ import annotations

import base64
import copy
import json
import pickle

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.crypto import (
    Envelope,
    HpkePrivateKey,
    JweKey,
    SigningKey,
    b64url,
    fingerprint,
    frame,
    hpke_seal,
    jwe_encrypt,
    sign_document,
    unb64url,
    verify_ed25519,
    verify_hardware_signature,
)
from cloister.crypto.dsse import pae
from cloister.crypto.signatures import ecdsa_public_der, rsa_public_der
from cloister.errors import Malformed, Untrusted

KEY = SigningKey(bytes(range(32)))
OTHER = SigningKey(bytes(range(1, 33)))
TYPE = "application/vnd.cloister.test+json"


def test_pae_matches_the_specifications_example() -> None:
    # The example of the DSSE v1.0 specification.
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_envelope_round_trips_with_several_signatures() -> None:
    envelope = sign_document(TYPE, {"b": 1, "a": [True, None, "ü"]}, KEY, OTHER)
    again = Envelope.from_bytes(envelope.to_bytes())
    assert again == envelope
    assert again.document() == {"a": [True, None, "ü"], "b": 1}
    assert again.verify(TYPE, [OTHER.public, KEY.public]) == [OTHER.public, KEY.public]
    assert envelope.signed_by(KEY) == envelope


def test_a_signature_that_stands_under_a_key_id_without_being_that_keys() -> None:
    """Somebody hands a party what it shall sign, with junk where its signature goes: it would not sign, and believe so,
    or others would find the junk first."""
    key, other = SigningKey.generate(), SigningKey.generate()
    signed = sign_document("t", {}, other)
    for junk in ((key.public.hex(), bytes(64)), (key.public.hex(), other.sign(b"x"))):
        mine = Envelope("t", signed.payload, (junk, *signed.signatures, junk)).signed_by(key)
        assert mine.verify("t", [key.public, other.public]) == [key.public, other.public]
        assert [keyid for keyid, _ in mine.signatures] == [other.public.hex(), key.public.hex()]
        assert mine.signed_by(key) is mine


def test_keyid_is_only_a_hint() -> None:
    envelope = sign_document(TYPE, {"a": 1}, KEY)
    relabelled = Envelope(envelope.payload_type, envelope.payload, ((OTHER.public.hex(), envelope.signatures[0][1]),))
    assert relabelled.verify(TYPE, [KEY.public]) == [KEY.public]
    with pytest.raises(Untrusted, match="no valid signature"):
        relabelled.verify(TYPE, [OTHER.public])


def test_signature_of_one_type_is_none_of_another() -> None:
    envelope = sign_document(TYPE, {"a": 1}, KEY)
    with pytest.raises(Untrusted, match="not of type"):
        envelope.verify("application/other", [KEY.public])
    moved = Envelope("application/other", envelope.payload, envelope.signatures)
    with pytest.raises(Untrusted, match="no valid signature"):
        moved.verify("application/other", [KEY.public])


@settings(max_examples=200, deadline=None)
@given(st.integers(min_value=0), st.integers(min_value=0, max_value=7))
def test_any_flipped_bit_of_an_envelope_is_noticed(place: int, bit: int) -> None:
    envelope = sign_document(TYPE, {"a": "text", "n": 7}, KEY)
    payload = bytearray(envelope.payload)
    payload[place % len(payload)] ^= 1 << bit
    with pytest.raises(Untrusted):
        Envelope(TYPE, bytes(payload), envelope.signatures).verify(TYPE, [KEY.public])


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"[]",
        b'{"payload":"!","payloadType":"t","signatures":[]}',
        b'{"payload":"YQ==","payloadType":1,"signatures":[]}',
        b'{"payload":"YQ==","payloadType":"t","signatures":[{"keyid":"k"}]}',
        b'{"payload":"YQ==","payloadType":"t","signatures":[],"more":1}',
        b"not json",
    ],
)
def test_malformed_envelopes_are_refused(body: bytes) -> None:
    with pytest.raises(Malformed):
        Envelope.from_bytes(body)


def test_signing_key_hides_and_is_not_pickled() -> None:
    secret = KEY.export_secret_seed().hex()
    assert secret not in repr(KEY)
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(KEY)
    with pytest.raises(TypeError, match="not pickled"):
        copy.deepcopy(HpkePrivateKey.generate())
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(JweKey())
    assert len(fingerprint(KEY.public)) == 39


def test_bad_keys_are_malformed_not_invalid() -> None:
    with pytest.raises(Malformed, match="32 bytes"):
        SigningKey(b"short")
    with pytest.raises(Malformed, match="public key"):
        verify_ed25519(b"short", b"", b"")
    with pytest.raises(Malformed):
        hpke_seal(b"\0" * 10, b"x", b"")
    with pytest.raises(Malformed):
        HpkePrivateKey(b"\0" * 10)


def test_hpke_opens_only_with_its_key_and_context() -> None:
    key = HpkePrivateKey.generate()
    sealed = hpke_seal(key.public, b"secret", b"context")
    assert key.open(sealed, b"context") == b"secret"
    assert HpkePrivateKey(key.export_secret_bytes()).open(sealed, b"context") == b"secret"
    for wrong_key, info in ((key, b"other"), (HpkePrivateKey.generate(), b"context")):
        with pytest.raises(Untrusted, match="does not open"):
            wrong_key.open(sealed, info)
    with pytest.raises(Untrusted, match="does not open"):
        key.open(sealed[:100], b"context")
    assert "secret" not in repr(key)


def test_jwe_round_trip_and_tampering() -> None:
    key = JweKey()
    body = json.loads(jwe_encrypt(key.public_jwk, b"resource"))
    assert key.decrypt(json.dumps(body).encode()) == b"resource"
    assert body["aad"] == body["protected"]
    for name in ("ciphertext", "tag", "iv", "encrypted_key"):
        raw = bytearray(unb64url(body[name]))
        raw[0] ^= 1
        with pytest.raises(Untrusted, match="not encrypted to this"):
            key.decrypt(json.dumps({**body, name: b64url(bytes(raw))}).encode())
    with pytest.raises(Untrusted, match="something else than its header"):
        key.decrypt(json.dumps({**body, "aad": b64url(b"other")}).encode())
    with pytest.raises(Untrusted, match="not encrypted to this"):
        JweKey().decrypt(json.dumps(body).encode())


def test_jwe_refuses_weaker_algorithms() -> None:
    key = JweKey()
    body = json.loads(jwe_encrypt(key.public_jwk, b"resource"))
    header = json.loads(unb64url(body["protected"]))
    weak = b64url(json.dumps({**header, "alg": "RSA1_5"}).encode())
    with pytest.raises(Malformed, match="not accepted"):
        key.decrypt(json.dumps({**body, "protected": weak}).encode())
    with pytest.raises(Malformed, match="algorithm"):
        jwe_encrypt({**key.public_jwk, "alg": "RSA1_5"}, b"x")


@pytest.mark.parametrize(
    "jwk",
    [
        None,
        {},
        {"kty": "RSA", "n": "AQAB", "e": "AQAB"},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": "EC", "crv": "P-256", "x": b64url(b"\1" * 32), "y": b64url(b"\1" * 32)},
    ],
)
def test_jwe_refuses_keys_that_are_none(jwk: object) -> None:
    with pytest.raises(Malformed):
        jwe_encrypt(jwk, b"x")


def test_jwe_matches_rfc_7518_appendix_c() -> None:
    """The Concat KDF of ECDH-ES with AlgorithmID A128GCM, from RFC 7518 appendix C, through our formula's parts."""
    from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash

    z = bytes([158, 86, 217, 29, 129, 113, 53, 211, 114, 131, 66, 131, 191, 132, 38, 156])
    z += bytes([251, 49, 110, 163, 218, 128, 106, 72, 246, 218, 167, 121, 140, 254, 144, 196])
    info = (7).to_bytes(4, "big") + b"A128GCM" + (5).to_bytes(4, "big") + b"Alice" + (3).to_bytes(4, "big") + b"Bob"
    derived = ConcatKDFHash(hashes.SHA256(), 16, info + (128).to_bytes(4, "big")).derive(z)
    assert b64url(derived) == "VqqN6vgjbSBcIijNcacQGg"


def test_base64url_is_strict() -> None:
    assert unb64url("AQ") == b"\1"
    for bad in ("AQ==", "AR", "A", "*", None, 1):
        with pytest.raises(Malformed):
            unb64url(bad)


def test_hardware_signatures_ecdsa_and_rsa() -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    numbers = private.public_key().public_numbers()
    der = ecdsa_public_der("P-256", numbers.x.to_bytes(32, "big"), numbers.y.to_bytes(32, "big"))
    signature = private.sign(b"quote", ec.ECDSA(hashes.SHA256()))
    verify_hardware_signature(der, b"quote", signature)
    with pytest.raises(Untrusted):
        verify_hardware_signature(der, b"other", signature)
    with pytest.raises(Untrusted):
        verify_hardware_signature(der, b"quote", b"garbage")
    strong = rsa.generate_private_key(65537, 2048)
    rsa_der = rsa_public_der(strong.public_key().public_numbers().n.to_bytes(256, "big"), 65537)
    verify_hardware_signature(rsa_der, b"q", strong.sign(b"q", padding.PKCS1v15(), hashes.SHA256()))
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
    verify_hardware_signature(rsa_der, b"q", strong.sign(b"q", pss, hashes.SHA256()), pss=True)


def test_hardware_signatures_refuse_what_is_weak_or_foreign() -> None:
    ed = base64.b64decode("MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=")
    with pytest.raises(Malformed, match="can't be parsed"):
        verify_hardware_signature(ed.replace(b"\x2b\x65\x70", b"\x2a\x03\x04"), b"quote", bytes(64))
    with pytest.raises(Malformed, match="neither"):
        verify_hardware_signature(ed, b"", b"")
    with pytest.raises(Malformed, match="can't be parsed"):
        verify_hardware_signature(b"junk", b"", b"")
    with pytest.raises(Malformed, match="hash"):
        verify_hardware_signature(ed, b"", b"", hash_name="sha1")
    with pytest.raises(Malformed, match="curve"):
        ecdsa_public_der("P-521", b"", b"")
    with pytest.raises(Malformed, match="point"):
        ecdsa_public_der("P-256", b"\1" * 32, b"\1" * 32)
    with pytest.raises(Malformed, match="RSA"):
        rsa_public_der(b"\0", 65537)
    weak = rsa.generate_private_key(65537, 1024)
    der = weak.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(Malformed, match="2048"):
        verify_hardware_signature(der, b"q", weak.sign(b"q", padding.PKCS1v15(), hashes.SHA256()))


@given(st.lists(st.binary(max_size=8), max_size=4), st.lists(st.binary(max_size=8), max_size=4))
def test_framing_is_injective(a: list[bytes], b: list[bytes]) -> None:
    assert (frame(*a) == frame(*b)) == (a == b)
