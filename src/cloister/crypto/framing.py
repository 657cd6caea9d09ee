"""Framed concatenation and the one hash. PROTOCOL notation: ``frame`` and ``H``."""

from __future__ import annotations

import hashlib
import os

__all__ = ["frame", "random_bytes", "sha256"]


def frame(*parts: bytes | str | int) -> bytes:
    """Each part preceded by its length as 8 bytes, big-endian.

    Text is UTF-8; an integer is 8 bytes, big-endian. Framing makes the concatenation injective,
    so no two different argument lists can yield the same bytes.
    """
    out = bytearray()
    for part in parts:
        if isinstance(part, str):
            raw = part.encode()
        elif isinstance(part, int):
            raw = part.to_bytes(8, "big")
        else:
            raw = bytes(part)
        out += len(raw).to_bytes(8, "big")
        out += raw
    return bytes(out)


def sha256(data: bytes | bytearray | memoryview) -> bytes:
    """SHA-256, 32 bytes."""
    return hashlib.sha256(data).digest()


def random_bytes(n: int) -> bytes:
    """``n`` bytes from the operating system's generator."""
    return os.urandom(n)
