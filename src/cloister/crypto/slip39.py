"""Shares of a secret as words that people can write down: SLIP-0039, one group.

A share is ten-bit words: set id (15 bits), extendable flag (1), iteration exponent (4), group index, group
threshold − 1, group count − 1, member index, member threshold − 1 (4 each), the value left-padded with zeros to whole
words, and three words of RS1024 checksum, which finds any three mistyped words. What is split is the secret under the
standard's four-round Feistel cipher with PBKDF2-HMAC-SHA256.

Why not the reference implementation: it says of itself that it must not handle sensitive secrets. It is a peer in the
tests instead, beside the standard's vectors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from ..errors import Malformed, Misuse
from .framing import random_bytes
from .shamir import combine_shares, split_secret
from .slip39_words import WORDS

__all__ = ["Share", "join_shares", "share_secret"]

_ROUNDS = 4
_ITERATIONS = 2500  # a round, at exponent 0
_MOST_EXPONENT = 5  # each step doubles the work; a share must not be able to ask for hours
_HEAD, _CHECK = 4, 3  # words
_LEAST_WORDS = _HEAD + 13 + _CHECK  # a secret of 128 bits
_MOST_WORDS = _HEAD + 52 + _CHECK  # 512 bits
_INDEX = {word: index for index, word in enumerate(WORDS)}
_GENERATOR = (
    0xE0E040, 0x1C1C080, 0x3838100, 0x7070200, 0xE0E0009, 0x1C0C2412, 0x38086C24, 0x3090FC48, 0x21B1F890, 0x3F3F120,
)  # fmt: skip


@dataclass(frozen=True, repr=False)
class Share:
    """One share, decoded. ``value`` is secret."""

    set_id: int
    extendable: bool
    exponent: int
    place: int
    threshold: int
    value: bytes

    def to_words(self) -> str:
        count = -(-8 * len(self.value) // 10)
        head = self.set_id << 5 | self.extendable << 4 | self.exponent
        member = self.place << 4 | (self.threshold - 1)  # group index 0 of 1, of which 1 is needed: twelve zero bits
        data = _split_bits(head << 20 | member, _HEAD) + _split_bits(int.from_bytes(self.value, "big"), count)
        sums = _rs1024(_customization(self.extendable) + data + [0] * _CHECK) ^ 1
        return " ".join(WORDS[index] for index in data + _split_bits(sums, _CHECK))

    @classmethod
    def from_words(cls, text: str, number: int = 1) -> Share:
        """The inverse, strictly. ``number`` is what messages call it; they show no word. Raises Malformed."""
        data = _indices(text, number)
        body = data[_HEAD:-_CHECK]
        padding = 10 * len(body) % 16
        head = _join_bits(data[:_HEAD])
        extendable = bool(head >> 24 & 1)
        if padding > 8 or _rs1024(_customization(extendable) + data) != 1:
            raise Malformed("shares.checksum", f"Share {number} has a mistyped, missing or exchanged word.")
        value, size = _join_bits(body), (10 * len(body) - padding) // 8
        if value >> 8 * size or head >> 8 & 0xFFF:
            raise Malformed("shares.form", f"Share {number} is not of the form that Cloister makes.")
        place, threshold = head >> 4 & 0xF, (head & 0xF) + 1
        exponent = head >> 20 & 0xF
        if exponent > _MOST_EXPONENT:
            raise Malformed("shares.form", f"Share {number} is not of the form that Cloister makes.")
        return cls(head >> 25, extendable, exponent, place, threshold, value.to_bytes(size, "big"))

    def __repr__(self) -> str:
        return f"Share(set {self.set_id}, place {self.place}, {self.threshold} needed)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a share is not pickled")


def share_secret(secret: bytes, threshold: int, shares: int) -> tuple[int, list[str]]:
    """(set id, shares as words). ``secret``: 16 to 64 bytes, an even count. Raises Misuse for others."""
    if len(secret) % 2 or len(secret) > 64:
        raise Misuse("shares.secret", "A secret to be split has an even number of bytes, at most 64.")
    set_id = int.from_bytes(random_bytes(2), "big") >> 1
    # The secret is random and long, so no passphrase stretches it: the least exponent.
    sealed = _feistel(secret, b"", 0, b"", range(_ROUNDS))
    values = split_secret(sealed, threshold, shares)
    return set_id, [Share(set_id, True, 0, n, threshold, value).to_words() for n, value in enumerate(values)]


def join_shares(texts: Sequence[str], *, passphrase: bytes = b"") -> tuple[int, bytes]:
    """(set id, secret). Raises Malformed (a share that doesn't parse), Misuse (``shares.few``, ``shares.mixed``,
    ``shares.twice``), Untrusted (``shares.forged``)."""
    shares = [Share.from_words(text, number) for number, text in enumerate(texts, 1)]
    if not shares:
        raise Misuse("shares.few", "No shares were given.")
    first = shares[0]
    alike = {(s.set_id, s.extendable, s.exponent, s.threshold, len(s.value)) for s in shares}
    if len(alike) > 1:
        raise Misuse("shares.mixed", "The shares are of different sets; give shares of one set only.")
    values: dict[int, bytes] = {}
    for number, share in enumerate(shares, 1):
        if share.place in values:
            raise Misuse("shares.twice", f"Share {number} was given before; give different shares.")
        values[share.place] = share.value
    sealed = first.value if first.threshold == 1 else combine_shares(first.threshold, values)
    salt = b"" if first.extendable else b"shamir" + first.set_id.to_bytes(2, "big")
    return first.set_id, _feistel(sealed, passphrase, first.exponent, salt, range(_ROUNDS)[::-1])


def _indices(text: str, number: int) -> list[int]:
    words = text[:4096].lower().split()
    if not _LEAST_WORDS <= len(words) <= _MOST_WORDS:
        raise Malformed("shares.length", f"Share {number} has {len(words)} words: some are missing, or too many.")
    for place, word in enumerate(words, 1):
        if word not in _INDEX:
            raise Malformed("shares.word", f"Word {place} of share {number} is not in the list; check its spelling.")
    return [_INDEX[word] for word in words]


def _feistel(data: bytes, passphrase: bytes, exponent: int, salt: bytes, rounds: Sequence[int]) -> bytes:
    """The standard's cipher over the two halves; with the rounds reversed it is its own inverse."""
    half = len(data) // 2
    left, right = data[:half], data[half:]
    for number in rounds:
        key = bytes([number]) + passphrase
        mask = hashlib.pbkdf2_hmac("sha256", key, salt + right, _ITERATIONS << exponent, dklen=half)
        left, right = right, bytes(a ^ b for a, b in zip(left, mask, strict=True))
    return right + left


def _customization(extendable: bool) -> list[int]:
    return list(b"shamir_extendable" if extendable else b"shamir")


def _rs1024(values: Sequence[int]) -> int:
    """The Reed-Solomon checksum over GF(1024) of SLIP-0039; 1 for words with a right checksum."""
    state = 1
    for value in values:
        top = state >> 20
        state = (state & 0xFFFFF) << 10 ^ value
        for bit, generator in enumerate(_GENERATOR):
            state ^= generator & -(top >> bit & 1)
    return state


def _split_bits(number: int, words: int) -> list[int]:
    return [number >> 10 * place & 0x3FF for place in reversed(range(words))]


def _join_bits(words: Sequence[int]) -> int:
    number = 0
    for word in words:
        number = number << 10 | word
    return number
