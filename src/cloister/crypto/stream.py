"""A keystream: bytes that nobody without the key can tell from random ones, and that anybody with it makes again."""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from ..errors import Misuse

__all__ = ["keystream"]

_KEY, _NONCE = 32, 16
_LARGEST = 1 << 38  # bytes: 2**34 blocks, far below the 2**64 from which on blocks would tell themselves from random


def keystream(key: bytes, nonce: bytes, length: int) -> bytearray:
    """``length`` bytes of AES-256 in counter mode (NIST SP 800-38A, section 6.5): the encryption of zeros.

    ``key`` is 32 bytes; ``nonce`` is the first counter block, 16 bytes. One key and nonce always give the same bytes,
    so each use takes a key of its own (``kdf.hkdf``). Raises Misuse (``stream.size``).
    """
    if len(key) != _KEY or len(nonce) != _NONCE or not 0 <= length <= _LARGEST:
        raise Misuse("stream.size", "A keystream takes a key of 32 bytes, a nonce of 16, and at most 2**38 bytes.")
    out = bytearray(length)
    encryptor = Cipher(algorithms.AES(key), modes.CTR(nonce)).encryptor()
    encryptor.update_into(out, out)  # in place: the zeros become the stream
    return out
