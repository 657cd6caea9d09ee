"""Just enough DER (ITU-T X.690) to read the two extensions that X.509 libraries don't know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ...errors import Malformed

__all__ = ["Der", "read_der"]

_MAX: Final = 4096
_MAX_PARTS: Final = 64


@dataclass(frozen=True)
class Der:
    """One element: its tag byte (low tag numbers only) and its body. ``bad`` makes the error to raise."""

    tag: int
    body: bytes
    bad: Callable[[], Malformed]

    def children(self) -> list[Der]:
        """The elements inside; the body must be nothing else."""
        found: list[Der] = []
        at = 0
        while at < len(self.body):
            if len(found) >= _MAX_PARTS:
                raise self.bad()
            element, at = _element(self.body, at, self.bad)
            found.append(element)
        return found


def read_der(data: bytes, bad: Callable[[], Malformed]) -> Der:
    """One element that fills ``data``. Raises what ``bad`` makes for anything else."""
    if len(data) > _MAX:
        raise bad()
    element, end = _element(data, 0, bad)
    if end != len(data):
        raise bad()
    return element


def _element(data: bytes, at: int, bad: Callable[[], Malformed]) -> tuple[Der, int]:
    if len(data) < at + 2 or data[at] & 0x1F == 0x1F:
        raise bad()
    tag, length, start = data[at], data[at + 1], at + 2
    if length > 0x82 or length == 0x80:
        raise bad()
    if length > 0x80:
        size = length - 0x80
        length = int.from_bytes(data[start : start + size], "big")
        start += size
        # X.690 §10.1: the shortest form, and no other.
        if length < (0x80 if size == 1 else 0x100):
            raise bad()
    if len(data) < start + length:
        raise bad()
    return Der(tag, data[start : start + length], bad), start + length
