"""The little DER (X.690) that an endorsement certificate's extensions need: elements, object identifiers, texts."""

from __future__ import annotations

from ...errors import Malformed

__all__ = ["elements", "inside", "oid", "text"]

SEQUENCE = 0x30
SET = 0x31
OID = 0x06
_TEXTS = {0x0C: "utf-8", 0x13: "ascii", 0x16: "ascii"}  # UTF8String, PrintableString, IA5String
_MOST = 64


def _bad() -> Malformed:
    return Malformed("tpm.ek-certificate", "An extension of an endorsement certificate is not of the expected form.")


def elements(data: bytes) -> list[tuple[int, bytes]]:
    """Tag and content of each element, one after another, at most 64; definite, shortest lengths only."""
    found: list[tuple[int, bytes]] = []
    at = 0
    while at < len(data):
        if len(data) - at < 2 or len(found) >= _MOST:
            raise _bad()
        tag, length = data[at], data[at + 1]
        at += 2
        if length & 0x80:
            size = length & 0x7F
            if not 1 <= size <= 2 or len(data) - at < size:
                raise _bad()
            length = int.from_bytes(data[at : at + size], "big")
            if length < (0x80 if size == 1 else 0x100):
                raise _bad()
            at += size
        if tag & 0x1F == 0x1F or len(data) - at < length:
            raise _bad()
        found.append((tag, data[at : at + length]))
        at += length
    return found


def inside(data: bytes, tag: int) -> bytes:
    """The content of the one element in ``data``, which must have this tag."""
    found = elements(data)
    if len(found) != 1 or found[0][0] != tag:
        raise _bad()
    return found[0][1]


def oid(content: bytes) -> str:
    """An object identifier's content as dotted text."""
    if not 1 <= len(content) <= 32 or content[-1] & 0x80:
        raise _bad()
    numbers: list[int] = []
    value = 0
    for byte in content:
        value = value << 7 | byte & 0x7F
        if not byte & 0x80:
            numbers.append(value)
            value = 0
    first = min(numbers[0] // 40, 2)
    return ".".join(str(n) for n in (first, numbers[0] - 40 * first, *numbers[1:]))


def text(tag: int, content: bytes) -> str:
    """A string element's text, printable and of at most 128 characters."""
    encoding = _TEXTS.get(tag)
    if encoding is None or len(content) > 128:
        raise _bad()
    try:
        value = content.decode(encoding)
    except UnicodeDecodeError:
        raise _bad() from None
    if not value.isprintable():
        raise _bad()
    return value
