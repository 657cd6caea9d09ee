"""Ed25519 signatures (RFC 8032), and checks of the ECDSA and RSA signatures that hardware makes."""

from __future__ import annotations

from typing import NoReturn, Protocol

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from ..errors import Malformed, Untrusted
from .framing import sha256

__all__ = [
    "Signer",
    "SigningKey",
    "ecdsa_public_der",
    "fingerprint",
    "raw_ecdsa",
    "rsa_public_der",
    "verify_ed25519",
    "verify_hardware_signature",
]


_HASHES: dict[str, hashes.HashAlgorithm] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}


class Signer(Protocol):
    """What signs with Ed25519: a ``SigningKey`` in memory, or a key that never leaves its device."""

    @property
    def public(self) -> bytes:
        """32 bytes."""
        ...

    def sign(self, message: bytes) -> bytes:
        """64 bytes. Raises Unavailable when the device can't be reached."""
        ...


class SigningKey:
    """An Ed25519 private key. It hides in ``repr`` and refuses pickling; getting at it takes an alarming name."""

    __slots__ = ("_key", "public")

    def __init__(self, seed: bytes) -> None:
        if len(seed) != 32:
            raise Malformed("key.seed", "An Ed25519 seed has 32 bytes.")
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public: bytes = self._key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> SigningKey:
        return cls(Ed25519PrivateKey.generate().private_bytes_raw())

    def sign(self, message: bytes) -> bytes:
        """64 bytes."""
        return self._key.sign(message)

    def export_secret_seed(self) -> bytes:
        """The secret itself: only for sealing it into a vault."""
        return self._key.private_bytes_raw()

    def __repr__(self) -> str:
        return f"SigningKey(public={fingerprint(self.public)})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a signing key is not pickled")


def fingerprint(public: bytes) -> str:
    """What people compare aloud: SHA-256 of the key, first 16 bytes, in groups of four hex digits."""
    text = sha256(public)[:16].hex()
    return "-".join(text[i : i + 4] for i in range(0, 32, 4))


def verify_ed25519(public: bytes, message: bytes, signature: bytes) -> None:
    """Return if the signature holds; raise Untrusted if not, Malformed if ``public`` is no key."""
    try:
        key = Ed25519PublicKey.from_public_bytes(public)
    except ValueError:
        raise Malformed("key.public", "A public key is not a 32-byte Ed25519 key.") from None
    try:
        key.verify(signature, message)
    except InvalidSignature:
        raise Untrusted("signature.invalid", "A signature does not verify.") from None


def verify_hardware_signature(
    public_der: bytes, message: bytes, signature: bytes, *, hash_name: str = "sha256", pss: bool = False
) -> None:
    """Check an ECDSA (DER signature) or RSA (PKCS#1 v1.5, or PSS) signature by a SubjectPublicKeyInfo key.

    Raises Untrusted if it does not hold, Malformed if the key is unusable (RSA under 2048 bits included).
    """
    digest = _HASHES.get(hash_name)
    if digest is None:
        raise Malformed("signature.hash", "A signature names a hash that is not accepted.")
    try:
        key = serialization.load_der_public_key(public_der)
    except (ValueError, UnsupportedAlgorithm):
        raise Malformed("key.public", "A public key can't be parsed.") from None
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, message, ec.ECDSA(digest))
        elif isinstance(key, rsa.RSAPublicKey) and key.key_size >= 2048:
            pad = padding.PSS(padding.MGF1(digest), padding.PSS.AUTO) if pss else padding.PKCS1v15()
            key.verify(signature, message, pad, digest)
        else:
            raise Malformed("key.kind", "A hardware key is neither ECDSA nor RSA of at least 2048 bits.")
    except InvalidSignature:
        raise Untrusted("signature.invalid", "A signature does not verify.") from None


def raw_ecdsa(signature: bytes) -> bytes:
    """An ECDSA signature r ‖ s, both big-endian and of equal length, as DER (RFC 3279 §2.2.3)."""
    half, odd = divmod(len(signature), 2)
    if odd or not 32 <= half <= 66:
        raise Malformed("signature.size", "An ECDSA signature does not have the size of its curve.")
    return encode_dss_signature(int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big"))


def ecdsa_public_der(curve: str, x: bytes, y: bytes) -> bytes:
    """SubjectPublicKeyInfo of the point (x, y) on ``P-256`` or ``P-384``; Malformed if it is not on the curve."""
    curves: dict[str, ec.EllipticCurve] = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1()}
    if curve not in curves:
        raise Malformed("key.curve", "A key is on a curve that is not accepted.")
    numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), curves[curve])
    try:
        return _spki(numbers.public_key())
    except ValueError:
        raise Malformed("key.point", "A public key is not a point on its curve.") from None


def rsa_public_der(modulus: bytes, exponent: int) -> bytes:
    """SubjectPublicKeyInfo of an RSA key."""
    try:
        return _spki(rsa.RSAPublicNumbers(exponent, int.from_bytes(modulus, "big")).public_key())
    except ValueError:
        raise Malformed("key.rsa", "An RSA public key is not usable.") from None


def _spki(key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
