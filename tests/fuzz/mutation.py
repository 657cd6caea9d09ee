"""Changing valid inputs: bits, bytes, lengths, pieces, other inputs' pieces, and values that parsers trip over."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

__all__ = ["large", "mutations"]

_WORDS = (
    b"\0", b"\xff", b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0" * 8, b"\xff" * 8, b'"', b"\\", b"\\ud800",
    b"{", b"[", b"}", b"]", b"[" * 40, b'{"a":' * 40, b"null", b"true", b"-1", b"1e9", b"9007199254740993", b"NaN",
    b"\xed\xa0\x80", b"\xf0\x9f\x98\x80", b"\n\n", b"\x30\x80", b"\x30\x84\xff\xff\xff\xff", b"\x9f", b"\xbf\xff",
    b"\xdb\xff\xff\xff\xff\xff\xff\xff\xff", b"<!DOCTYPE a [", b"<a xmlns:b='c'>", b"&amp;", b"<?x?>", b"=", b"--",
    b"-----BEGIN CERTIFICATE-----\n", b"\xe2\x80\xae", b".", b"/", b"..", b":", b",",
)  # fmt: skip


def mutations(seeds: Sequence[bytes], limit: int, seed: int) -> Iterator[bytes]:
    """Endless, and the same for the same ``seed``."""
    chance = random.Random(seed)
    while True:
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
            _change(data, chance, seeds)
        yield bytes(data[:limit])


def _change(data: bytearray, chance: random.Random, seeds: Sequence[bytes]) -> None:
    at = chance.randrange(len(data) + 1)
    how = chance.randrange(8)
    if how == 0 and data:
        data[at % len(data)] ^= 1 << chance.randrange(8)
    elif how == 1 and data:
        data[at % len(data)] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
    elif how == 2:
        data[at:at] = chance.choice(_WORDS)
    elif how == 3:
        del data[at : at + chance.choice((1, 2, 4, 16, len(data)))]
    elif how == 4:
        size = chance.choice((1, 2, 4, 8))
        value = chance.choice((0, 1, 255, 256, 65_535, 2**31, 2**32 - 1, len(data), len(data) + 1, 2**63))
        data[at : at + size] = (value % 256**size).to_bytes(size, chance.choice(("big", "little")))
    elif how == 5:
        data[at:at] = data[at : at + chance.choice((1, 8, 64, 512))] * chance.choice((1, 2, 30))
    elif how == 6:
        other = chance.choice(seeds)
        start = chance.randrange(len(other) + 1)
        data[at : at + chance.choice((0, 16, 64))] = other[start : start + chance.choice((4, 32, 256))]
    else:
        word = chance.choice(_WORDS)
        data[at : at + len(word)] = word


def large(seeds: Sequence[bytes], limit: int) -> Iterator[bytes]:
    """Inputs as long as their caller lets through: where a parser's work grows faster than its input, they show it."""
    for seed in seeds[:2]:
        half = len(seed) // 2
        for piece in (seed, seed[:half], seed[half:], seed[:64], seed[-64:]):
            if piece:
                yield (piece * (limit // len(piece) + 1))[:limit]
                yield (seed[:half] + piece * (limit // len(piece) + 1))[: limit - half] + seed[half:]
    for word in _WORDS:
        yield (word * (limit // len(word) + 1))[:limit]
