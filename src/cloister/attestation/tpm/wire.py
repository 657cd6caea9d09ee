"""The bytes below TPM structures: big-endian integers, sized buffers, and the little DER that ECDSA needs."""

from __future__ import annotations

from collections.abc import Collection

from ...crypto import sha256
from ...errors import Malformed

__all__ = ["Reader", "der_integers", "encode_name", "sized", "uint"]

_SHA256_NAME = b"\x00\x0b"


def uint(value: int, size: int) -> bytes:
    """``value`` as ``size`` bytes, big-endian (Part 1 §4.2: all TPM integers are)."""
    return value.to_bytes(size, "big")


def sized(data: bytes) -> bytes:
    """A TPM2B: two bytes of length, then the data."""
    return uint(len(data), 2) + data


def encode_name(public_area: bytes) -> bytes:
    """An object's Name, and equally a Qualified Name over ``parent ‖ name``: nameAlg ‖ SHA-256, 34 bytes."""
    return _SHA256_NAME + sha256(public_area)


def der_integers(*numbers: bytes) -> bytes:
    """SEQUENCE of positive INTEGERs in DER (X.690 §8.3). Short form lengths: enough for two 33-byte numbers."""
    body = b""
    for number in numbers:
        digits = number.lstrip(b"\0") or b"\0"
        if digits[0] & 0x80:
            digits = b"\0" + digits  # DER integers are signed
        body += b"\x02" + bytes([len(digits)]) + digits
    return b"\x30" + bytes([len(body)]) + body


class Reader:
    """Takes bytes from the front and never reads past the end; every failure is Malformed."""

    def __init__(self, data: bytes, what: str, limit: int) -> None:
        self._what = what
        if len(data) > limit:
            raise self._bad("is too long")
        self._data = data
        self._at = 0

    def _bad(self, why: str) -> Malformed:
        return Malformed("tpm.structure", f"A TPM {self._what} {why}; it was changed or is of an unsupported kind.")

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        if len(self._data) - self._at < size:
            raise self._bad("ends too early")
        start, self._at = self._at, self._at + size
        return self._data[start : self._at]

    def uint(self, size: int) -> int:
        """An unsigned integer of ``size`` bytes."""
        return int.from_bytes(self.take(size), "big")

    def one_of(self, size: int, allowed: Collection[int]) -> int:
        """An integer that must be one of ``allowed``."""
        value = self.uint(size)
        if value not in allowed:
            raise self._bad("has a value that is not accepted")
        return value

    def sized(self, lengths: Collection[int]) -> bytes:
        """A TPM2B whose length must be one of ``lengths``."""
        return self.take(self.one_of(2, lengths))

    def scalar(self, size: int) -> bytes:
        """A TPM2B number of at most ``size`` bytes: either all of them, or fewer without a leading zero byte."""
        number = self.sized(range(1, size + 1))
        if len(number) < size and number[0] == 0:
            raise self._bad("has a number with needless zero bytes")
        return number

    def end(self) -> None:
        """Nothing may follow."""
        if self._at != len(self._data):
            raise self._bad("has bytes after its end")
