"""Shamir's secret sharing over GF(256), byte by byte, as SLIP-0039 §"Sharing a secret" defines it.

Any ``threshold`` shares give the secret; fewer say nothing about it (Shamir, "How to share a secret", 1979). Beside the
secret the polynomial carries a digest of it, so that shares which don't belong together are noticed.

The field is AES's: polynomials over GF(2) modulo x^8 + x^4 + x^3 + x + 1. Products are computed without tables and
without branches on the operands, so that neither cache nor timing tells share bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..errors import Misuse, Untrusted
from .framing import random_bytes
from .kdf import constant_time_equal, hmac_sha256

__all__ = ["MAX_SHARES", "combine_shares", "split_secret"]

MAX_SHARES = 16
_DIGEST_AT = 254
_SECRET_AT = 255
_DIGEST = 4  # bytes


def multiply(a: int, b: int) -> int:
    """Product in GF(256)."""
    product = 0
    for _ in range(8):
        product ^= a & -(b & 1)
        a = (a << 1) ^ (0x11B & -(a >> 7))
        b >>= 1
    return product


def invert(a: int) -> int:
    """a^254, which is 1/a for a ≠ 0 (the group has 255 elements)."""
    power = result = a
    for _ in range(6):  # exponents 3, 7, … 127
        power = multiply(power, power)
        result = multiply(result, power)
    return multiply(result, result)


def interpolate(points: Mapping[int, bytes], x: int) -> bytes:
    """Value at ``x`` of the polynomial of least degree through the points: Lagrange's formula; minus is plus here."""
    out = bytes(len(next(iter(points.values()))))
    for i, value in points.items():
        weight = 1
        for j in points:
            if j != i:  # places of shares are public
                weight = multiply(weight, multiply(x ^ j, invert(i ^ j)))
        out = bytes(o ^ multiply(weight, v) for o, v in zip(out, value, strict=True))
    return out


def split_secret(
    secret: bytes, threshold: int, shares: int, *, random: Callable[[int], bytes] = random_bytes
) -> list[bytes]:
    """``shares`` values of the secret's length, for the places 0, 1, …. ``secret``: 16 bytes or more.

    Raises Misuse unless 2 ≤ threshold ≤ shares ≤ 16: with a threshold of 1 each share would be the secret.
    """
    if not 2 <= threshold <= shares <= MAX_SHARES:
        raise Misuse("shares.count", f"Choose from 2 to {MAX_SHARES} shares, and how many of them restore: at least 2.")
    if len(secret) < 16:
        raise Misuse("shares.secret", "A secret to be split has at least 16 bytes.")
    salt = random(len(secret) - _DIGEST)
    points = {place: random(len(secret)) for place in range(threshold - 2)}
    points[_DIGEST_AT] = _digest(salt, secret) + salt
    points[_SECRET_AT] = secret
    return [points[n] if n < threshold - 2 else interpolate(points, n) for n in range(shares)]


def combine_shares(threshold: int, shares: Mapping[int, bytes]) -> bytes:
    """The secret, from at least ``threshold`` values by place, all of one length. Further ones must fit.

    Raises Misuse for too few, Untrusted for values that don't belong together.
    """
    if len(shares) < threshold:
        raise Misuse("shares.few", f"{threshold} shares are needed, and {len(shares)} were given.")
    chosen = dict(list(shares.items())[:threshold])
    secret, salted = interpolate(chosen, _SECRET_AT), interpolate(chosen, _DIGEST_AT)
    fits = all(constant_time_equal(interpolate(chosen, place), value) for place, value in shares.items())
    if not (constant_time_equal(salted[:_DIGEST], _digest(salted[_DIGEST:], secret)) and fits):
        raise Untrusted("shares.forged", "The shares don't belong together: one of them is not of this set.")
    return secret


def _digest(salt: bytes, secret: bytes) -> bytes:
    return hmac_sha256(salt, secret)[:_DIGEST]
