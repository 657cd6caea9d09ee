"""HPKE (RFC 9180) with the post-quantum hybrid KEM MLKEM768-X25519, HKDF-SHA256 and AES-256-GCM.

Base mode: it hides the message but says nothing about who sent it. Every use pairs it with a signature.
A ciphertext is ``encapsulated key (1120) ‖ AEAD ciphertext``; the public key is ``ML-KEM-768 (1184) ‖ X25519 (32)``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric import mlkem, x25519

from ..errors import Malformed, Untrusted

__all__ = ["SUITE_NAME", "HpkePrivateKey", "check_hpke_public", "hpke_seal"]

SUITE_NAME = "MLKEM768-X25519/HKDF-SHA256/AES-256-GCM"
_SUITE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
_MLKEM_PUBLIC = 1184
_PROBE = x25519.X25519PrivateKey.from_private_bytes(bytes(range(32)))
_SECRET = 96  # ML-KEM seed (64) ‖ X25519 private key (32)


class HpkePrivateKey:
    """A hybrid private key. It hides in ``repr`` and refuses pickling."""

    __slots__ = ("_key", "_secret", "public")

    def __init__(self, secret: bytes) -> None:
        if len(secret) != _SECRET:
            raise Malformed("hpke.secret", f"A hybrid private key has {_SECRET} bytes.")
        pq = mlkem.MLKEM768PrivateKey.from_seed_bytes(secret[:64])
        classic = x25519.X25519PrivateKey.from_private_bytes(secret[64:])
        self._secret = secret
        self._key = hpke.MLKEM768X25519PrivateKey(pq, classic)
        self.public: bytes = pq.public_key().public_bytes_raw() + classic.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> HpkePrivateKey:
        pq = mlkem.MLKEM768PrivateKey.generate()
        classic = x25519.X25519PrivateKey.generate()
        return cls(pq.private_bytes_raw() + classic.private_bytes_raw())

    def open(self, ciphertext: bytes, info: bytes) -> bytes:
        """The plaintext; Untrusted if the ciphertext is not for this key and ``info``."""
        try:
            return _SUITE.decrypt(ciphertext, self._key, info=info)
        except (InvalidTag, ValueError):
            raise Untrusted("hpke.open", "An encrypted key does not open with this key and context.") from None

    def export_secret_bytes(self) -> bytes:
        """The secret itself: only for sealing it into a vault."""
        return self._secret

    def __repr__(self) -> str:
        return "HpkePrivateKey(…)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a private key is not pickled")


def check_hpke_public(public: bytes) -> None:
    """Return if ``hpke_seal`` can encrypt to ``public``; raise Malformed if not. In a third of its time."""
    _read_public(bytes(public))


@lru_cache(maxsize=64)  # by its very bytes; a key that is none is tried anew each time
def _read_public(public: bytes) -> hpke.MLKEM768X25519PublicKey:
    """ML-KEM's key is checked as it is read (FIPS 203 §7.2). X25519 has points of small order that give no shared
    secret, with whatever private key (RFC 7748 §6.1, RFC 9180 §7.1.4), so one that is no secret finds them out."""
    try:
        pq = mlkem.MLKEM768PublicKey.from_public_bytes(public[:_MLKEM_PUBLIC])
        classic = x25519.X25519PublicKey.from_public_bytes(public[_MLKEM_PUBLIC:])
        _PROBE.exchange(classic)
        return hpke.MLKEM768X25519PublicKey(pq, classic)
    except ValueError:
        raise _not_public() from None


def _not_public() -> Malformed:
    return Malformed("hpke.public", "A key is not an MLKEM768-X25519 public key.")


def hpke_seal(public: bytes, plaintext: bytes, info: bytes) -> bytes:
    """Encrypt to a hybrid public key. Raises Malformed if ``public`` isn't one."""
    key = _read_public(bytes(public))
    try:
        return _SUITE.encrypt(plaintext, key, info=info)
    except ValueError:
        raise _not_public() from None
