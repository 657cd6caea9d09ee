"""COSE_Sign1 (RFC 9052, section 4.2) with Ed25519, ES256 and ES384 (RFC 9053): one signature over one CBOR payload.

Who may have signed, and with which algorithm, is what the verifier pinned; a header only has to agree. Nothing in an
unprotected header is believed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from ..errors import Malformed, Untrusted
from .cbor import MAX_CBOR, Tag, cbor, parse_cbor
from .framing import sha256
from .pem import one
from .signatures import Signer, raw_ecdsa, verify_ed25519, verify_hardware_signature

__all__ = ["CoseKey", "Signed", "cose_sign1", "cose_verify1"]

SIGN1: Final = 18
_ALGORITHM, _CRITICAL = 1, 2
_EDDSA, _ES256, _ES384 = -8, -7, -35
_HASHES = {_ES256: ("sha256", 64), _ES384: ("sha384", 96)}
_MAX_KEY = 4096


@dataclass(frozen=True)
class CoseKey:
    """A public key that was pinned, and with it the one algorithm that its signatures have. ``public``: 32 bytes for
    Ed25519, else a SubjectPublicKeyInfo."""

    algorithm: int
    public: bytes

    @classmethod
    def ed25519(cls, public: bytes) -> CoseKey:
        if len(public) != 32:
            raise Malformed("key.public", "A public key is not a 32-byte Ed25519 key.")
        return cls(_EDDSA, public)

    @classmethod
    def read(cls, data: bytes) -> CoseKey:
        """From 64 hex digits (Ed25519), or a SubjectPublicKeyInfo in DER or PEM (Ed25519, P-256, P-384)."""
        text = data.strip()
        if len(text) == 64 and set(text) <= set(b"0123456789abcdef"):
            return cls.ed25519(bytes.fromhex(text.decode()))
        der = one(data, b"PUBLIC KEY", _MAX_KEY)
        try:
            key = serialization.load_der_public_key(der)
        except (ValueError, UnsupportedAlgorithm):
            raise Malformed("key.public", "A public key can't be parsed; give a PEM file or 64 hex digits.") from None
        if isinstance(key, Ed25519PublicKey):
            return cls.ed25519(key.public_bytes_raw())
        if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES:
            info = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
            return cls(_CURVES[key.curve.name], info)
        raise Malformed("key.kind", "A signature key is neither Ed25519 nor on the curve P-256 or P-384.")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the public key, hex: what a log names it by."""
        return sha256(self.public).hex()

    def verify(self, message: bytes, signature: bytes) -> None:
        """Return if the signature holds; Untrusted if not."""
        if self.algorithm == _EDDSA:
            verify_ed25519(self.public, message, signature)
            return
        name, size = _HASHES[self.algorithm]
        if len(signature) != size:  # RFC 9053, section 2.1: r and s have the curve's length each
            raise Untrusted("signature.invalid", "A signature does not verify.")
        verify_hardware_signature(self.public, message, raw_ecdsa(signature), hash_name=name)


_CURVES: Final = {"secp256r1": _ES256, "secp384r1": _ES384}


@dataclass(frozen=True)
class Signed:
    """A payload whose signature holds, the protected header, and which of the pinned keys signed."""

    payload: bytes
    protected: dict[Any, Any]
    key: CoseKey
    unprotected: dict[Any, Any] = field(default_factory=dict)


def _message(protected: bytes, payload: bytes) -> bytes:
    """Sig_structure (RFC 9052, section 4.4) without externally supplied data."""
    return cbor(["Signature1", protected, b"", payload])


def cose_sign1(payload: bytes, protected: Mapping[Any, Any], signer: Signer) -> bytes:
    """A tagged COSE_Sign1, signed with Ed25519. The same input gives the same bytes."""
    header = cbor({**protected, _ALGORITHM: _EDDSA})
    return cbor(Tag(SIGN1, [header, {}, payload, signer.sign(_message(header, payload))]))


def cose_verify1(data: bytes, keys: Collection[CoseKey], *, limit: int = MAX_CBOR, strict: bool = True) -> Signed:
    """The payload, if one of ``keys`` signed it with its own algorithm. Raises Malformed or Untrusted.

    ``strict`` asks for deterministic encoding, as we write it. Critical headers are refused: none is understood here.
    """
    message = parse_cbor(data, limit=limit, strict=strict)
    body = message.value if isinstance(message, Tag) and message.number == SIGN1 else None
    if not isinstance(body, list) or len(body) != 4:
        raise Malformed("cose.form", "The file is not a signature of the kind COSE_Sign1.")
    protected, unprotected, payload, signature = body
    if not all(isinstance(part, bytes) for part in (protected, payload, signature)) or not isinstance(
        unprotected, dict
    ):
        raise Malformed("cose.form", "The file is not a signature of the kind COSE_Sign1 with its payload in it.")
    header = parse_cbor(protected, limit=limit, strict=strict)
    if not isinstance(header, dict) or set(header) & set(unprotected):
        raise Malformed("cose.header", "The signature's headers are not of the expected form.")
    if _CRITICAL in header or _CRITICAL in unprotected:
        raise Untrusted("cose.critical", "The signature has a critical header that is not understood here.")
    if not isinstance(header.get(_ALGORITHM), int):
        raise Malformed("cose.algorithm", "The signature does not name its algorithm in the protected header.")
    for key in keys:
        if key.algorithm == header[_ALGORITHM] and _holds(key, _message(protected, payload), signature):
            return Signed(payload, header, key, unprotected)
    raise Untrusted("cose.unsigned", "The file carries no valid signature by a key that is pinned here.")


def _holds(key: CoseKey, message: bytes, signature: bytes) -> bool:
    try:
        key.verify(message, signature)
    except Untrusted:
        return False  # by another of the pinned keys, perhaps; only a valid one counts
    return True
