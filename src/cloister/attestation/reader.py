"""Takes integers and byte strings from the front of untrusted bytes, and never reads past their end."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection
from typing import Literal

from ..errors import Malformed

__all__ = ["Reader", "canonical_base64"]


def canonical_base64(text: object, what: str, *, limit: int, code: str) -> bytes:
    """The bytes of a field of ``what`` evidence: at most ``limit`` characters, in the one text that an encoder writes.

    Malformed(``code``) for anything else.
    """
    if not isinstance(text, str) or len(text) > limit:
        raise Malformed(code, f"A field of the {what} evidence is not base64.")
    try:
        raw = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise Malformed(code, f"A field of the {what} evidence is not base64.") from None
    if base64.b64encode(raw).decode() != text:
        raise Malformed(code, f"A field of the {what} evidence is not canonical base64.")
    return raw


class Reader:
    """``what`` names the structure in sentences, ``code`` is the error's; every failure is Malformed with it.

    ``order``: how integers are written. A structure longer than ``limit`` bytes is refused before it is read.
    """

    __slots__ = ("_at", "_code", "_data", "_order", "_what")

    def __init__(self, data: bytes, what: str, *, limit: int, order: Literal["little", "big"], code: str) -> None:
        self._what, self._code, self._order = what, code, order
        if len(data) > limit:
            raise self.bad("is too long")
        self._data = data
        self._at = 0

    def bad(self, why: str) -> Malformed:
        """The error to raise, with a reason that completes the sentence "A … "."""
        return Malformed(self._code, f"A {self._what} {why}; it was changed or is of an unsupported kind.")

    @property
    def at(self) -> int:
        """Bytes taken so far."""
        return self._at

    @property
    def left(self) -> int:
        """Bytes not taken yet."""
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        if size < 0 or self.left < size:
            raise self.bad("ends too early")
        start, self._at = self._at, self._at + size
        return self._data[start : self._at]

    def uint(self, size: int) -> int:
        """An unsigned integer of ``size`` bytes."""
        return int.from_bytes(self.take(size), self._order)

    def one_of(self, size: int, allowed: Collection[int]) -> int:
        """An integer that must be one of ``allowed``."""
        value = self.uint(size)
        if value not in allowed:
            raise self.bad("has a value that is not accepted")
        return value

    def zeros(self, size: int) -> None:
        """Reserved bytes: all must be zero."""
        if any(self.take(size)):
            raise self.bad("has reserved bytes that are not zero")

    def sized(self, length_size: int, limit: int) -> bytes:
        """A length of ``length_size`` bytes, at most ``limit``, and as many bytes."""
        length = self.uint(length_size)
        if length > limit:
            raise self.bad("has a part that is too long")
        return self.take(length)

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(self.left)

    def end(self) -> None:
        """Nothing may follow."""
        if self.left:
            raise self.bad("has bytes after its end")
