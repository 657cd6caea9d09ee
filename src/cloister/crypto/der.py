"""DER (ITU-T X.690), as far as certificates' extensions and outlines need it: one reader, strict, for untrusted bytes.

Of a value's encodings it takes the one that DER allows: low tag numbers, definite lengths in their shortest form,
nothing left over. Content stays bytes until somebody asks for it as something; then it must be exactly that. Nothing
recurses: ``children`` goes one level down, and no further than its caller asks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from ..errors import Malformed

__all__ = [
    "BITS", "BOOLEAN", "ENUMERATED", "IA5", "INTEGER", "MAX_DER", "OCTETS", "OID", "PRINTABLE", "SEQUENCE", "SET",
    "UTF8", "Der", "encode", "read_der",
]  # fmt: skip

BOOLEAN, INTEGER, BITS, OCTETS, OID, ENUMERATED = 0x01, 0x02, 0x03, 0x04, 0x06, 0x0A
UTF8, PRINTABLE, IA5, SEQUENCE, SET = 0x0C, 0x13, 0x16, 0x30, 0x31

MAX_DER: Final = 8192
"""Bytes of a value where its reader names no other limit; the extensions of real certificates have a few hundred."""
MAX_PARTS: Final = 64
"""Elements in one element, where its reader names no other number."""
_MAX_LENGTH: Final = 4  # bytes that state a length
_MAX_OID: Final = 32
_TEXTS: Final = {UTF8: "utf-8", PRINTABLE: "ascii", IA5: "ascii"}


@dataclass(frozen=True)
class Der:
    """One element: its tag byte and its content. ``what`` names the whole in sentences, ``code`` is every error's: all
    of its methods raise Malformed with it, for whatever isn't of the form that they are asked for."""

    tag: int
    body: bytes
    what: str = field(repr=False)
    code: str = field(repr=False)

    def bad(self, why: str = "has a part of another form than expected") -> Malformed:
        """The error to raise, with a reason that completes the sentence "A … "."""
        return Malformed(self.code, f"A {self.what} {why}; it was changed or is of an unsupported kind.")

    def encode(self) -> bytes:
        """The bytes that were read: there is one encoding."""
        return encode(self.tag, self.body)

    def of(self, *tags: int) -> bytes:
        """The content of an element with one of these tags."""
        if self.tag not in tags:
            raise self.bad()
        return self.body

    def children(self, tag: int = SEQUENCE, *, count: int | None = None, most: int = MAX_PARTS) -> list[Der]:
        """The elements inside of one with this ``tag``: exactly ``count`` of them, else at most ``most``."""
        body, at, found = self.of(tag), 0, list[Der]()
        while at < len(body):
            if len(found) >= most:
                raise self.bad("has more parts than are read")
            element, at = _element(body, at, self.what, self.code)
            found.append(element)
        if count is not None and len(found) != count:
            raise self.bad()
        return found

    def octets(self, size: int) -> bytes:
        """An OCTET STRING of ``size`` bytes."""
        if len(self.of(OCTETS)) != size:
            raise self.bad()
        return self.body

    def unsigned(self, size: int) -> int:
        """An INTEGER from 0 to 256**size - 1 (§8.3: two's complement in the fewest bytes)."""
        body = self.of(INTEGER)
        padded = len(body) > 1 and body[0] == 0 and body[1] < 0x80
        if not body or body[0] >= 0x80 or padded or len(body) > size + 1 or int.from_bytes(body, "big") >= 256**size:
            raise self.bad("has a number that is out of its range")
        return int.from_bytes(body, "big")

    def boolean(self) -> bool:
        """§11.1: true is all ones, and nothing else is."""
        if self.of(BOOLEAN) not in (b"\x00", b"\xff"):
            raise self.bad()
        return self.body == b"\xff"

    def bits(self, tag: int = BITS, *, most: int = 8) -> bytes:
        """The bytes of a BIT STRING, bit 0 as the highest of the first: 1 to ``most``, unused bits zero (§11.2.1)."""
        body = self.of(tag)
        if not 2 <= len(body) <= 1 + most or body[0] > 7 or body[-1] & ((1 << body[0]) - 1):
            raise self.bad()
        return body[1:]

    def oid(self) -> str:
        """An OBJECT IDENTIFIER as dotted text. Each of its numbers in the fewest bytes (§8.19.2): one text, one
        encoding."""
        body = self.of(OID)
        if not 1 <= len(body) <= _MAX_OID or body[-1] & 0x80:
            raise self.bad()
        numbers: list[int] = []
        value, begins = 0, True
        for byte in body:
            if begins and byte == 0x80:
                raise self.bad()
            value, begins = value << 7 | byte & 0x7F, byte < 0x80
            if begins:
                numbers.append(value)
                value = 0
        first = min(numbers[0] // 40, 2)
        return ".".join(str(n) for n in (first, numbers[0] - 40 * first, *numbers[1:]))

    def text(self, *tags: int, most: int = 128) -> str:
        """A string of one of these types (by default UTF8String, PrintableString, IA5String): printable characters, at
        most ``most`` bytes."""
        body = self.of(*(tags or _TEXTS))
        try:
            value = body.decode(_TEXTS[self.tag])
        except UnicodeDecodeError:
            raise self.bad("has a text that can't be shown") from None
        if len(body) > most or not value.isprintable():
            raise self.bad("has a text that can't be shown")
        return value


def encode(tag: int, body: bytes) -> bytes:
    """One element."""
    size = b"" if len(body) < 0x80 else len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(size) if size else len(body))) + size + body


def read_der(data: bytes, what: str, *, code: str, limit: int = MAX_DER) -> Der:
    """The one element that fills ``data``, at most ``limit`` bytes. Raises Malformed(``code``) for anything else."""
    whole = Der(0, b"", what, code)
    if len(data) > limit:
        raise whole.bad("is too long")
    element, end = _element(data, 0, what, code)
    if end != len(data):
        raise whole.bad("has bytes after its end")
    return element


def _element(data: bytes, at: int, what: str, code: str) -> tuple[Der, int]:
    """The element at ``at``, and where it ends."""
    head = data[at : at + 2 + _MAX_LENGTH]
    # High tag numbers, and the end of contents of indefinite lengths, have no place in what is read here.
    if len(head) < 2 or head[0] & 0x1F == 0x1F or head[0] == 0:
        raise Der(0, b"", what, code).bad()
    length, start = head[1], at + 2
    if length >= 0x80:
        size = length - 0x80
        written = head[2 : 2 + size]
        length, start = int.from_bytes(written, "big"), start + size
        # §10.1: definite, and in the fewest bytes. A length that is cut short can't be the shortest of its size.
        if not 1 <= size <= _MAX_LENGTH or len(written) < size or length < 0x80 or not written[0]:
            raise Der(0, b"", what, code).bad()
    if len(data) - start < length:
        raise Der(0, b"", what, code).bad("ends too early")
    return Der(head[0], data[start : start + length], what, code), start + length
