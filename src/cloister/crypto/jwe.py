"""JWE for KBS resources (RFC 7516 flattened JSON): ECDH-ES+A256KW on P-256 or RSA-OAEP-256, content in A256GCM.

One departure, which KBS makes and we follow: the JSON carries an ``aad`` member that repeats the encoded
protected header. RFC 7516 §5.1 would append such a member to the authenticated data; KBS authenticates
the protected header alone. So the reader checks that ``aad`` is a mere repetition and nothing else; it may
be absent, as RFC 7516 wants it and as newer key brokers send it.

A stock guest does not authenticate the header's bytes as they came: it parses the header and writes it again,
``alg`` and ``enc`` first, the rest by name, without a space. Canonical JSON happens to be exactly that.

RSA1_5 is not accepted anywhere: its padding has been an oracle since 1998.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, Final, NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import keywrap
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash

from ..errors import Malformed, Untrusted
from .canonical import canonical_json, parse_json
from .framing import random_bytes

__all__ = ["ECDH_ES", "RSA_OAEP", "JweKey", "b64url", "check_jwk", "jwe_encrypt", "unb64url"]

ECDH_ES: Final = "ECDH-ES+A256KW"
RSA_OAEP: Final = "RSA-OAEP-256"
_ENC: Final = "A256GCM"
_FIELDS = frozenset({"protected", "encrypted_key", "aad", "iv", "ciphertext", "tag"})
_EC_FIELDS = frozenset({"alg", "crv", "kty", "x", "y"})
_RSA_FIELDS = frozenset({"alg", "e", "kty", "n"})
_RSA_BITS = range(2048, 4097)
_RSA_EXPONENT = 65537
_OWN_RSA_BITS = 3072
_MAX_BODY = 1024 * 1024

_PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
_PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def b64url(raw: bytes) -> str:
    """Base64url without padding (RFC 7515 §2)."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def unb64url(text: Any) -> bytes:
    """The inverse, strict: only what ``b64url`` would have written."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise Malformed("jwe.base64", "A field is not base64url.") from None
    if b64url(raw) != text:
        raise Malformed("jwe.base64", "A field is not canonical base64url.")
    return raw


# Keys.


def _point(key: ec.EllipticCurvePublicKey) -> dict[str, str]:
    n = key.public_numbers()
    return {"crv": "P-256", "kty": "EC", "x": b64url(n.x.to_bytes(32, "big")), "y": b64url(n.y.to_bytes(32, "big"))}


def _from_point(jwk: Any) -> ec.EllipticCurvePublicKey:
    if not isinstance(jwk, dict) or jwk.get("kty") != "EC" or jwk.get("crv") != "P-256":
        raise Malformed("jwe.key", "The key is not an EC P-256 JWK.")
    x, y = unb64url(jwk.get("x")), unb64url(jwk.get("y"))
    if len(x) != 32 or len(y) != 32:
        raise Malformed("jwe.key", "A P-256 coordinate does not have 32 bytes.")
    try:
        return ec.EllipticCurvePublicNumbers(
            int.from_bytes(x, "big"), int.from_bytes(y, "big"), ec.SECP256R1()
        ).public_key()
    except ValueError:
        raise Malformed("jwe.key", "The JWK is not a point on P-256.") from None


def _from_rsa(jwk: dict[str, Any]) -> rsa.RSAPublicKey:
    n, e = unb64url(jwk.get("n")), unb64url(jwk.get("e"))
    if not n or not e or n[0] == 0 or e[0] == 0:  # RFC 7518 §2: Base64urlUInt has no leading zero
        raise Malformed("jwe.key", "A number of the RSA JWK is empty or has a leading zero.")
    modulus, exponent = int.from_bytes(n, "big"), int.from_bytes(e, "big")
    if modulus.bit_length() not in _RSA_BITS or modulus % 2 == 0 or exponent != _RSA_EXPONENT:
        raise Malformed("jwe.key", "The RSA JWK does not have an odd modulus of 2048 to 4096 bits and exponent 65537.")
    try:
        return rsa.RSAPublicNumbers(exponent, modulus).public_key()
    except ValueError:
        raise Malformed("jwe.key", "The RSA JWK is not usable.") from None


def check_jwk(jwk: Any) -> _PublicKey:
    """The key of a ``tee-pubkey`` (KBS "Key Format"): exactly the published members, and an algorithm of ours. It is
    tried: what passes here can be encrypted to.

    Raises Malformed: ``jwe.algorithm`` for another ``alg`` (RSA1_5 included), ``jwe.key`` for all else.
    """
    public = _read_jwk(jwk)
    if isinstance(public, rsa.RSAPublicKey):
        _wrap(public, random_bytes(32))
    # With any point of P-256 there is a shared secret: its cofactor is 1, and it was read as a point of the curve.
    return public


def _read_jwk(jwk: Any) -> _PublicKey:
    """``check_jwk`` without trying it."""
    if not isinstance(jwk, dict):
        raise Malformed("jwe.key", "The key is not a JWK.")
    if jwk.get("alg") not in (ECDH_ES, RSA_OAEP):
        raise Malformed("jwe.algorithm", f"The key asks for another algorithm than {ECDH_ES} and {RSA_OAEP}.")
    if set(jwk) != (_EC_FIELDS if jwk["alg"] == ECDH_ES else _RSA_FIELDS):
        raise Malformed("jwe.key", "The JWK does not have exactly the members of its kind of key.")
    if jwk["alg"] == ECDH_ES:
        public: _PublicKey = _from_point(jwk)
    elif jwk["kty"] != "RSA":
        raise Malformed("jwe.key", "The key's algorithm does not fit its type.")
    else:
        public = _from_rsa(jwk)
    return public


def concat_kdf(shared: bytes, algorithm: str, bits: int, *, apu: bytes = b"", apv: bytes = b"") -> bytes:
    """``bits`` of key from an ECDH secret (RFC 7518 §4.6.2). KBS sends neither ``apu`` nor ``apv``."""
    # AlgorithmID ‖ PartyUInfo ‖ PartyVInfo ‖ SuppPubInfo, lengths as 4 bytes.
    parts = (algorithm.encode(), apu, apv)
    info = b"".join(len(part).to_bytes(4, "big") + part for part in parts) + bits.to_bytes(4, "big")
    return ConcatKDFHash(SHA256(), bits // 8, info).derive(shared)


def _kek(private: ec.EllipticCurvePrivateKey, public: ec.EllipticCurvePublicKey) -> bytes:
    return concat_kdf(private.exchange(ec.ECDH(), public), ECDH_ES, 256)


def _oaep() -> padding.OAEP:
    return padding.OAEP(padding.MGF1(SHA256()), SHA256(), None)  # RFC 7518 §4.3: SHA-256 in both places


class JweKey:
    """The workload's KBS key (``tee-pubkey``): made in memory, never stored. ``algorithm``: ECDH_ES or RSA_OAEP."""

    __slots__ = ("_key", "algorithm", "public_jwk")

    def __init__(self, algorithm: str = ECDH_ES) -> None:
        if algorithm not in (ECDH_ES, RSA_OAEP):
            raise Malformed("jwe.algorithm", f"A key for responses is for {ECDH_ES} or {RSA_OAEP}.")
        self.algorithm = algorithm
        self._key: _PrivateKey
        if algorithm == ECDH_ES:
            self._key = ec.generate_private_key(ec.SECP256R1())
            self.public_jwk: dict[str, str] = {**_point(self._key.public_key()), "alg": ECDH_ES}
        else:
            self._key = rsa.generate_private_key(_RSA_EXPONENT, _OWN_RSA_BITS)
            n = self._key.public_key().public_numbers()
            self.public_jwk = {"alg": RSA_OAEP, "e": _number(n.e), "kty": "RSA", "n": _number(n.n)}

    def decrypt(self, body: bytes) -> bytes:
        """Open a KBS resource response. Raises Malformed or Untrusted."""
        jwe = parse_json(body, limit=_MAX_BODY)
        if not isinstance(jwe, dict) or set(jwe) - _FIELDS or not isinstance(jwe.get("protected"), str):
            raise Malformed("jwe.form", "The response is not a KBS resource.")
        protected: str = jwe["protected"]
        header = parse_json(unb64url(protected), limit=4096)
        # The algorithm is the key's own: a header can't choose a weaker one.
        if not isinstance(header, dict) or header.get("alg") != self.algorithm or header.get("enc") != _ENC:
            raise Malformed("jwe.algorithm", "The response uses an algorithm that is not accepted.")
        if set(header) != ({"alg", "enc", "epk"} if self.algorithm == ECDH_ES else {"alg", "enc"}):
            raise Malformed("jwe.header", "The response's header has other members than KBS's.")
        if jwe.get("aad") not in (None, protected):
            raise Untrusted("jwe.aad", "The response authenticates something else than its header.")
        wrapped, iv, tag = (unb64url(jwe.get(name)) for name in ("encrypted_key", "iv", "tag"))
        return open_content(self._cek(header, wrapped), iv, unb64url(jwe.get("ciphertext")), tag, protected)

    def _cek(self, header: dict[str, Any], wrapped: bytes) -> bytes:
        try:
            if isinstance(self._key, rsa.RSAPrivateKey):
                return self._key.decrypt(wrapped, _oaep())
            return keywrap.aes_key_unwrap(_kek(self._key, _from_point(header["epk"])), wrapped)
        except (keywrap.InvalidUnwrap, ValueError):
            raise _not_ours() from None

    def __repr__(self) -> str:
        return "JweKey(…)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a private key is not pickled")


def _wrap(public: _PublicKey, cek: bytes) -> tuple[bytes, dict[str, Any]]:
    """The encrypted content key, and what else the header says of it. Raises Malformed for a key that is no use."""
    try:
        if isinstance(public, rsa.RSAPublicKey):
            return public.encrypt(cek, _oaep()), {}
        ephemeral = ec.generate_private_key(ec.SECP256R1())
        return keywrap.aes_key_wrap(_kek(ephemeral, public), cek), {"epk": _point(ephemeral.public_key())}
    except ValueError:
        raise Malformed("jwe.key", "Nothing can be encrypted to the JWK.") from None


def _number(value: int) -> str:
    return b64url(value.to_bytes((value.bit_length() + 7) // 8, "big"))


def _not_ours() -> Untrusted:
    return Untrusted("jwe.open", "The response is not encrypted to this workload's key.")


def open_content(cek: bytes, iv: bytes, ciphertext: bytes, tag: bytes, protected: str) -> bytes:
    """A256GCM with the encoded header as associated data (RFC 7516 §5.2). Untrusted("jwe.open") if it does not hold."""
    if len(cek) != 32 or len(iv) != 12 or len(tag) != 16:  # RFC 7518 §5.3: the one size of each
        raise _not_ours()
    try:
        return AESGCM(cek).decrypt(iv, ciphertext + tag, protected.encode())
    except InvalidTag:
        raise _not_ours() from None


def jwe_encrypt(public_jwk: Any, plaintext: bytes) -> bytes:
    """A KBS resource response that only the holder of ``public_jwk`` opens. Raises Malformed for a bad key."""
    public = _read_jwk(public_jwk)
    cek, iv = random_bytes(32), random_bytes(12)
    wrapped, more = _wrap(public, cek)
    header: dict[str, Any] = {"alg": public_jwk["alg"], "enc": _ENC, **more}
    protected = b64url(canonical_json(header))
    sealed = AESGCM(cek).encrypt(iv, plaintext, protected.encode())
    return canonical_json(
        {
            "aad": protected,
            "ciphertext": b64url(sealed[:-16]),
            "encrypted_key": b64url(wrapped),
            "iv": b64url(iv),
            "protected": protected,
            "tag": b64url(sealed[-16:]),
        }
    )
