"""Key derivation: HKDF-SHA256 (RFC 5869) from keys, Argon2id (RFC 9106) from passphrases."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from ..errors import Malformed, Misuse

__all__ = ["Argon2Params", "argon2id", "constant_time_equal", "hkdf", "hmac_sha256"]


def hkdf(key: bytes, *, info: bytes, salt: bytes = b"", length: int = 32, hash_name: str = "sha256") -> bytes:
    """HKDF (RFC 5869), extract then expand. ``info`` separates uses: give each its own label.

    Cloister's own formats use SHA-256 only; ``hash_name`` is for reading others' (Tink allows SHA-1 and SHA-512).
    Raises Misuse beyond 255 hash lengths (RFC 5869 §2.3).
    """
    if not 0 < length <= 255 * hashlib.new(hash_name).digest_size:
        raise Misuse("hkdf.length", "HKDF gives from 1 to 255 hash lengths of output; ask for less.")
    # RFC 5869 §2.2: no salt means a block of zeros, which is what HMAC pads an empty key to.
    prk = hmac.digest(salt, key, hash_name)
    out = block = b""
    counter = 1
    while len(out) < length:
        block = hmac.digest(prk, block + info + bytes([counter]), hash_name)
        out += block
        counter += 1
    return out[:length]


@dataclass(frozen=True)
class Argon2Params:
    """Cost of guessing one passphrase. Defaults: RFC 9106's second recommended option (64 MiB, 3 passes)."""

    memory_kib: int = 64 * 1024
    iterations: int = 3
    lanes: int = 4

    def check(self) -> None:
        """Refuse costs that are too cheap to protect or so large that reading a file would exhaust memory."""
        if not (8 * 1024 <= self.memory_kib <= 1024 * 1024 and 1 <= self.iterations <= 16 and 1 <= self.lanes <= 16):
            raise Malformed("vault.argon2", "The vault file names Argon2 costs outside the accepted range.")


def argon2id(passphrase: bytes, salt: bytes, params: Argon2Params) -> bytes:
    """A 32-byte key from a passphrase."""
    params.check()
    kdf = Argon2id(
        salt=salt, length=32, iterations=params.iterations, lanes=params.lanes, memory_cost=params.memory_kib
    )
    return kdf.derive(passphrase)


def hmac_sha256(key: bytes, message: bytes) -> bytes:
    """HMAC-SHA256 (RFC 2104), 32 bytes. Compare it with ``constant_time_equal`` only."""
    return hmac.digest(key, message, "sha256")


def constant_time_equal(a: bytes, b: bytes) -> bool:
    """Compare without telling by timing where two values differ."""
    return hmac.compare_digest(a, b)
