"""JWE for KBS resources (RFC 7516 flattened JSON): ECDH-ES+A256KW on P-256, content in A256GCM.

One departure, which KBS makes and we follow: the JSON carries an ``aad`` member that repeats the encoded
protected header. RFC 7516 §5.1 would append such a member to the authenticated data; KBS authenticates
the protected header alone. So the reader checks that ``aad`` is a mere repetition and nothing else.
RSA1_5 is not accepted anywhere.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import keywrap
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash

from ..errors import Malformed, Untrusted
from .canonical import canonical_json, parse_json
from .framing import random_bytes

__all__ = ["JweKey", "b64url", "jwe_encrypt", "unb64url"]

_ALG = "ECDH-ES+A256KW"
_ENC = "A256GCM"


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


def _jwk(key: ec.EllipticCurvePublicKey) -> dict[str, str]:
    n = key.public_numbers()
    return {"crv": "P-256", "kty": "EC", "x": b64url(n.x.to_bytes(32, "big")), "y": b64url(n.y.to_bytes(32, "big"))}


def _from_jwk(jwk: Any) -> ec.EllipticCurvePublicKey:
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


def _kek(private: ec.EllipticCurvePrivateKey, public: ec.EllipticCurvePublicKey) -> bytes:
    # RFC 7518 §4.6.2: AlgorithmID ‖ PartyUInfo ‖ PartyVInfo ‖ SuppPubInfo, lengths as 4 bytes.
    info = len(_ALG).to_bytes(4, "big") + _ALG.encode() + b"\0\0\0\0" * 2 + (256).to_bytes(4, "big")
    return ConcatKDFHash(SHA256(), 32, info).derive(private.exchange(ec.ECDH(), public))


class JweKey:
    """The workload's KBS key (``tee-pubkey``): made in memory, never stored."""

    __slots__ = ("_key", "public_jwk")

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.public_jwk: dict[str, str] = {**_jwk(self._key.public_key()), "alg": _ALG}

    def decrypt(self, body: bytes) -> bytes:
        """Open a KBS resource response. Raises Malformed or Untrusted."""
        jwe = parse_json(body)
        if not isinstance(jwe, dict) or set(jwe) - {"protected", "encrypted_key", "aad", "iv", "ciphertext", "tag"}:
            raise Malformed("jwe.form", "The response is not a KBS resource.")
        protected = jwe.get("protected")
        header = parse_json(unb64url(protected), limit=4096)
        if not isinstance(header, dict) or header.get("alg") != _ALG or header.get("enc") != _ENC:
            raise Malformed("jwe.algorithm", "The response uses an algorithm that is not accepted.")
        if "aad" in jwe and unb64url(jwe["aad"]) != str(protected).encode():
            raise Untrusted("jwe.aad", "The response authenticates something else than its header.")
        try:
            kek = _kek(self._key, _from_jwk(header.get("epk")))
            cek = keywrap.aes_key_unwrap(kek, unb64url(jwe.get("encrypted_key")))
            ciphertext = unb64url(jwe.get("ciphertext")) + unb64url(jwe.get("tag"))
            return AESGCM(cek).decrypt(unb64url(jwe.get("iv")), ciphertext, str(protected).encode())
        except (InvalidTag, keywrap.InvalidUnwrap, ValueError):
            raise Untrusted("jwe.open", "The response is not encrypted to this workload's key.") from None

    def __repr__(self) -> str:
        return "JweKey(…)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a private key is not pickled")


def jwe_encrypt(public_jwk: Any, plaintext: bytes) -> bytes:
    """A KBS resource response that only the holder of ``public_jwk`` opens. Raises Malformed for a bad key."""
    if isinstance(public_jwk, dict) and public_jwk.get("alg") not in (_ALG, None):
        raise Malformed("jwe.algorithm", f"The key asks for an algorithm other than {_ALG}.")
    ephemeral = ec.generate_private_key(ec.SECP256R1())
    kek = _kek(ephemeral, _from_jwk(public_jwk))
    cek, iv = random_bytes(32), random_bytes(12)
    protected = b64url(canonical_json({"alg": _ALG, "enc": _ENC, "epk": _jwk(ephemeral.public_key())}))
    sealed = AESGCM(cek).encrypt(iv, plaintext, protected.encode())
    return canonical_json(
        {
            "aad": b64url(protected.encode()),
            "ciphertext": b64url(sealed[:-16]),
            "encrypted_key": b64url(keywrap.aes_key_wrap(kek, cek)),
            "iv": b64url(iv),
            "protected": protected,
            "tag": b64url(sealed[-16:]),
        }
    )
