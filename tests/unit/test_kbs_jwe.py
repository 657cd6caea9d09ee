"""JWE as KBS writes it: against the RFCs' own examples, against a second implementation, and under every change."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, keywrap, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.crypto import JweKey, b64url, jwe_encrypt, unb64url
from cloister.crypto.jwe import ECDH_ES, RSA_OAEP, check_jwk, concat_kdf, open_content
from cloister.errors import CloisterError, Malformed, Untrusted
from tests import kbs_vectors

ALGORITHMS = (ECDH_ES, RSA_OAEP)


@cache
def key(algorithm: str) -> JweKey:
    return JweKey(algorithm)


# --- the RFCs' examples -------------------------------------------------------------------------------------------

# RFC 7518 appendix C: Alice's ephemeral key, Bob's key, and what both derive.
ALICE = ("gI0GAILBdu7T53akrFmMyGcsF3n5dO7MmwNBHKW5SV0", "SLW_xSffzlPWrHEVI30DHM_4egVwt3NQqeUD7nMFpps")
ALICE_SECRET = "0_NxaRPUMQoAJt50Gz8YiTr8gRTwyEaCumd-MToTmIo"
BOB = ("weNJy2HscCSM6AEDTDg04biOvhFhyyWvOHQfeF_PxMQ", "e8lnCO-AlStT-NJVX-crhB7QRYhiix03illJOVAOyck")
SHARED = bytes.fromhex("9e56d91d817135d372834283bf84269cfb316ea3da806a48f6daa7798cfe90c4")


def test_rfc_7518_appendix_c_derives_the_published_key() -> None:
    secret = ec.derive_private_key(int.from_bytes(unb64url(ALICE_SECRET), "big"), ec.SECP256R1())
    bob = check_jwk({"kty": "EC", "crv": "P-256", "alg": ECDH_ES, "x": BOB[0], "y": BOB[1]})
    assert isinstance(bob, ec.EllipticCurvePublicKey)
    assert secret.exchange(ec.ECDH(), bob) == SHARED
    derived = concat_kdf(SHARED, "A128GCM", 128, apu=b"Alice", apv=b"Bob")
    assert b64url(derived) == "VqqN6vgjbSBcIijNcacQGg"


# RFC 7516 appendix A.1: its key is wrapped with RSA-OAEP and SHA-1, which is refused here; its content is A256GCM.
A1_HEADER = "eyJhbGciOiJSU0EtT0FFUCIsImVuYyI6IkEyNTZHQ00ifQ"
A1_KEY = bytes.fromhex("b1a1f480548fe1733fb403ff6b9ad4f68a076e5b702e22692f82cb2e7aea40fc")
A1_IV = bytes.fromhex("e3c575fc02dbe944b4e14ddb")
A1_CIPHERTEXT = "5eym8TW_c8SuK0ltJ3rpYIzOeDQz7TALvtu6UG9oMo4vpzs9tX_EFShS8iB7j6jiSdiwkIr3ajwQzaBtQD_A"
A1_TAG = "XFBoMYUZodetZdvTiFvSkQ"
A1_TEXT = b"The true sign of intelligence is not knowledge but imagination."


def test_rfc_7516_appendix_a1_opens_to_the_published_text() -> None:
    assert open_content(A1_KEY, A1_IV, unb64url(A1_CIPHERTEXT), unb64url(A1_TAG), A1_HEADER) == A1_TEXT


def test_the_example_does_not_open_under_another_header() -> None:
    with pytest.raises(Untrusted) as caught:
        open_content(A1_KEY, A1_IV, unb64url(A1_CIPHERTEXT), unb64url(A1_TAG), A1_HEADER[:-1] + "R")
    assert caught.value.code == "jwe.open"


# --- a second implementation, from the RFCs and KBS's document ----------------------------------------------------


def raw(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def concat(shared: bytes) -> bytes:
    """SHA-256 over counter, secret and other info, for one block (NIST SP 800-56A, RFC 7518 §4.6)."""
    name = b"ECDH-ES+A256KW"
    info = len(name).to_bytes(4, "big") + name + bytes(8) + (256).to_bytes(4, "big")
    return hashlib.sha256((1).to_bytes(4, "big") + shared + info).digest()


def rewritten(protected: str) -> str:
    """The header as a stock guest authenticates it: parsed, and written again, alg and enc first."""
    header = json.loads(raw(protected))
    rest = {name: header[name] for name in sorted(set(header) - {"alg", "enc"})}
    ordered = {"alg": header["alg"], "enc": header["enc"], **rest}
    text = json.dumps(ordered, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def stock_open(private: Any, body: bytes) -> bytes:
    jwe = json.loads(body)
    header = json.loads(raw(jwe["protected"]))
    wrapped = raw(jwe["encrypted_key"])
    if header["alg"] == "RSA-OAEP-256":
        cek = private.decrypt(wrapped, padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None))
    else:
        epk = header["epk"]
        numbers = ec.EllipticCurvePublicNumbers(
            int.from_bytes(raw(epk["x"]), "big"), int.from_bytes(raw(epk["y"]), "big"), ec.SECP256R1()
        )
        cek = keywrap.aes_key_unwrap(concat(private.exchange(ec.ECDH(), numbers.public_key())), wrapped)
    cipher = Cipher(algorithms.AES(cek), modes.GCM(raw(jwe["iv"]), raw(jwe["tag"]))).decryptor()
    cipher.authenticate_additional_data(rewritten(jwe["protected"]).encode())
    return cipher.update(raw(jwe["ciphertext"])) + cipher.finalize()


def public(private: Any) -> dict[str, str]:
    def number(value: int, size: int) -> str:
        return base64.urlsafe_b64encode(value.to_bytes(size, "big")).rstrip(b"=").decode()

    n = private.public_key().public_numbers()
    if isinstance(n, rsa.RSAPublicNumbers):
        return {"kty": "RSA", "alg": "RSA-OAEP-256", "n": number(n.n, 256), "e": "AQAB"}
    return {"kty": "EC", "crv": "P-256", "alg": "ECDH-ES+A256KW", "x": number(n.x, 32), "y": number(n.y, 32)}


MAKE: dict[str, Callable[[], Any]] = {
    ECDH_ES: lambda: ec.generate_private_key(ec.SECP256R1()),
    RSA_OAEP: lambda: rsa.generate_private_key(65537, 2048),
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_stock_guest_opens_what_we_encrypt(algorithm: str) -> None:
    private = MAKE[algorithm]()
    body = jwe_encrypt(public(private), b"a key of 32 bytes, or any other")
    assert stock_open(private, body) == b"a key of 32 bytes, or any other"
    jwe = json.loads(body)
    assert jwe["aad"] == jwe["protected"]  # KBS repeats the encoded header; it is no further data
    assert len(raw(jwe["iv"])) == 12
    assert len(raw(jwe["tag"])) == 16


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("plaintext", [b"", b"x", b"y" * 70_000])
def test_we_open_what_we_encrypt(algorithm: str, plaintext: bytes) -> None:
    assert key(algorithm).decrypt(jwe_encrypt(key(algorithm).public_jwk, plaintext)) == plaintext


def test_an_answer_without_aad_opens_too() -> None:
    """RFC 7516 has no such member, and newer key brokers leave it out."""
    jwe = json.loads(jwe_encrypt(key(ECDH_ES).public_jwk, b"secret"))
    del jwe["aad"]
    assert key(ECDH_ES).decrypt(json.dumps(jwe).encode()) == b"secret"


# --- what is refused ----------------------------------------------------------------------------------------------


def test_another_aad_than_the_header_is_refused() -> None:
    jwe = json.loads(jwe_encrypt(key(ECDH_ES).public_jwk, b"secret"))
    for aad in ("", "AAAA", b64url(jwe["protected"].encode()), 5, [jwe["protected"]]):
        with pytest.raises(Untrusted) as caught:
            key(ECDH_ES).decrypt(json.dumps({**jwe, "aad": aad}).encode())
        assert caught.value.code == "jwe.aad"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_changed_bit_is_refused(algorithm: str, data: st.DataObject) -> None:
    jwe = json.loads(_sample(algorithm))
    name = data.draw(st.sampled_from(["protected", "encrypted_key", "iv", "ciphertext", "tag"]))
    value = bytearray(raw(jwe[name]))
    value[data.draw(st.integers(0, len(value) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    changed = {**jwe, name: b64url(bytes(value))}
    if name == "protected":
        changed["aad"] = changed["protected"]
    with pytest.raises((Malformed, Untrusted)):
        key(algorithm).decrypt(json.dumps(changed).encode())


@cache
def _sample(algorithm: str) -> bytes:
    return jwe_encrypt(key(algorithm).public_jwk, b"secret")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_are_refused_in_words_of_ours(body: bytes) -> None:
    with pytest.raises(CloisterError):
        key(ECDH_ES).decrypt(body)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["protected", "encrypted_key", "iv", "ciphertext", "tag", "aad"]),
        st.none() | st.text(max_size=40) | st.integers(0, 9) | st.lists(st.text(max_size=3), max_size=2),
    )
)
def test_any_members_are_refused_in_words_of_ours(body: dict[str, Any]) -> None:
    with pytest.raises((Malformed, Untrusted)):
        key(ECDH_ES).decrypt(json.dumps(body).encode())


@pytest.mark.parametrize("algorithm", ["RSA1_5", "RSA-OAEP", "ECDH-ES", "dir", "A256KW", "none", None])
def test_another_algorithm_in_the_header_is_refused(algorithm: str | None) -> None:
    for own in ALGORITHMS:
        jwe = json.loads(_sample(own))
        header = json.loads(raw(jwe["protected"]))
        protected = b64url(json.dumps({**header, "alg": algorithm}).encode())
        with pytest.raises(Malformed) as caught:
            key(own).decrypt(json.dumps({**jwe, "protected": protected, "aad": protected}).encode())
        assert caught.value.code == "jwe.algorithm"


def test_a_header_that_names_the_other_kind_of_key_is_refused() -> None:
    for own, other in (ALGORITHMS, ALGORITHMS[::-1]):
        with pytest.raises(Malformed) as caught:
            key(own).decrypt(_sample(other))
        assert caught.value.code == "jwe.algorithm"


def test_another_workloads_answer_does_not_open() -> None:
    with pytest.raises(Untrusted) as caught:
        JweKey().decrypt(_sample(ECDH_ES))
    assert caught.value.code == "jwe.open"


def _rsa(**changes: Any) -> dict[str, Any]:
    return {**public(_weak(2048)), **changes}


@cache
def _weak(bits: int) -> Any:
    return rsa.generate_private_key(65537, bits)


@pytest.mark.parametrize(
    ("jwk", "code"),
    [
        (lambda: _rsa(alg="RSA1_5"), "jwe.algorithm"),
        (lambda: _rsa(alg="RSA-OAEP"), "jwe.algorithm"),
        (lambda: {k: v for k, v in _rsa().items() if k != "alg"}, "jwe.algorithm"),
        (lambda: _rsa(kty="EC"), "jwe.key"),
        (lambda: _rsa(e="Aw"), "jwe.key"),
        (lambda: _rsa(n="AQAB"), "jwe.key"),
        (lambda: _rsa(n=""), "jwe.key"),
        (lambda: _rsa(n=b64url(b"\0" + raw(_rsa()["n"]))), "jwe.key"),
        (lambda: _rsa(n=b64url(b"\xff" * 513)), "jwe.key"),
        (lambda: _rsa(d="AQAB"), "jwe.key"),
        (lambda: _rsa(n=5), "jwe.base64"),
        (lambda: {**key(ECDH_ES).public_jwk, "crv": "P-521"}, "jwe.key"),
        (lambda: {**key(ECDH_ES).public_jwk, "alg": RSA_OAEP}, "jwe.key"),
        (lambda: {**key(ECDH_ES).public_jwk, "y": key(ECDH_ES).public_jwk["x"]}, "jwe.key"),
        (lambda: {**key(ECDH_ES).public_jwk, "x": "AA"}, "jwe.key"),
        (lambda: {**key(ECDH_ES).public_jwk, "x": key(ECDH_ES).public_jwk["x"] + "="}, "jwe.base64"),
        (lambda: "text", "jwe.key"),
        (lambda: None, "jwe.key"),
        (dict, "jwe.algorithm"),
    ],
)
def test_keys_that_nothing_is_encrypted_to(jwk: Callable[[], Any], code: str) -> None:
    with pytest.raises(Malformed) as caught:
        jwe_encrypt(jwk(), b"secret")
    assert caught.value.code == code


def test_a_key_of_too_few_bits_is_refused() -> None:
    small = (1 << 1023) | 1
    with pytest.raises(Malformed) as caught:
        check_jwk(_rsa(n=b64url(small.to_bytes(128, "big"))))
    assert caught.value.code == "jwe.key"


def test_a_key_of_an_unknown_algorithm_is_not_made() -> None:
    with pytest.raises(Malformed):
        JweKey("RSA1_5")


def test_private_keys_hide_and_are_not_copied() -> None:
    import pickle

    assert "public" not in repr(key(ECDH_ES))
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(key(ECDH_ES))


# --- vectors ------------------------------------------------------------------------------------------------------

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "kbs_jwe.json").read_text())


@cache
def vector_key(name: str) -> JweKey:
    """The fixed key; outside of tests there is no way to bring one's own."""
    private = serialization.load_pem_private_key(VECTORS["keys"][name]["private"].encode(), None)
    opened = JweKey.__new__(JweKey)
    opened._key = private  # type: ignore[assignment]
    opened.algorithm = VECTORS["keys"][name]["public"]["alg"]
    return opened


@pytest.mark.parametrize("case", VECTORS["good"], ids=lambda case: case["name"])
def test_answers_of_a_stock_key_broker_open(case: dict[str, Any]) -> None:
    body = json.dumps(case["jwe"]).encode()
    assert vector_key(case["key"]).decrypt(body) == VECTORS["plaintext"].encode()


@pytest.mark.parametrize("case", VECTORS["bad"], ids=lambda case: case["name"])
def test_answers_that_must_not_open(case: dict[str, Any]) -> None:
    with pytest.raises((Malformed, Untrusted)):
        vector_key(case["key"]).decrypt(json.dumps(case["jwe"]).encode())


def test_the_vectors_are_what_their_script_makes() -> None:
    made = kbs_vectors.make()
    for group in ("good", "bad"):
        assert [case["name"] for case in made[group]] == [case["name"] for case in VECTORS[group]]
        assert [set(case["jwe"]) for case in made[group]] == [set(case["jwe"]) for case in VECTORS[group]]
