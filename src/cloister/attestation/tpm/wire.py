"""The bytes below TPM structures: big-endian integers, sized buffers, and the little DER that ECDSA needs."""

from __future__ import annotations

from collections.abc import Collection

from ...crypto import sha256
from ..reader import Reader

__all__ = ["TpmReader", "der_integers", "encode_name", "sized", "uint"]

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


class TpmReader(Reader):
    """Big-endian, and with the TPM's own sized buffers; every failure is Malformed ``tpm.structure``."""

    def __init__(self, data: bytes, what: str, limit: int) -> None:
        super().__init__(data, f"TPM {what}", limit=limit, order="big", code="tpm.structure")

    def tpm2b(self, lengths: Collection[int]) -> bytes:
        """A TPM2B whose length must be one of ``lengths``."""
        return self.take(self.one_of(2, lengths))

    def scalar(self, size: int) -> bytes:
        """A TPM2B number of at most ``size`` bytes: either all of them, or fewer without a leading zero byte."""
        number = self.tpm2b(range(1, size + 1))
        if len(number) < size and number[0] == 0:
            raise self.bad("has a number with needless zero bytes")
        return number
