"""One-shot AES-256-GCM for small secrets (wrapped keys, vault entries). Large data uses ``streaming``."""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ..errors import Misuse, Untrusted
from .framing import random_bytes

__all__ = ["open_box", "seal_box"]

_NONCE = 12


def seal_box(key: bytes, plaintext: bytes, aad: bytes) -> bytes:
    """``nonce (12) ‖ ciphertext ‖ tag (16)``.

    The nonce is random. That is safe here because one key protects a few thousand small secrets at
    most, far below the 2**32 messages at which random 96-bit nonces stop being safe (SP 800-38D §8.3).
    """
    nonce = random_bytes(_NONCE)
    return nonce + _cipher(key).encrypt(nonce, plaintext, aad)


def _cipher(key: bytes) -> AESGCM:
    """The library would take 16 bytes too and quietly be AES-128."""
    if len(key) != 32:
        raise Misuse("aead.key", "AES-256-GCM takes a key of exactly 32 bytes.")
    return AESGCM(key)


def open_box(key: bytes, box: bytes, aad: bytes) -> bytes:
    """The plaintext, or Untrusted when key, bytes or associated data differ."""
    if len(box) < _NONCE + 16:
        raise Untrusted("aead.short", "A wrapped secret is too short to be one.")
    try:
        return _cipher(key).decrypt(box[:_NONCE], box[_NONCE:], aad)
    except InvalidTag:
        raise Untrusted("aead.tag", "A wrapped secret does not open: wrong key, or it was changed.") from None
