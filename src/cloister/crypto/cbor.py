"""Deterministic CBOR (RFC 8949, section 4.2.1), without floats: a writer, and a reader of exactly what it writes.

Reference values (CoRIM) and their signatures (COSE) are CBOR. As with our JSON, a value has one encoding, so a digest
names it: shortest heads, definite lengths, map keys sorted by their bytes and never twice. Vendors' files may be
written otherwise; ``parse_cbor(strict=False)`` lets longer heads, other orders and indefinite lengths pass, no more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ..errors import Malformed

__all__ = ["Tag", "cbor", "parse_cbor"]

MAX_CBOR: Final = 1 << 20
_MAX_DEPTH: Final = 24
_MAX_ITEMS: Final = 20_000
"""Items in one document: bounds the time of reading it, which is linear in them."""

_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_SIMPLES: Final[dict[int, bool | None]] = {20: False, 21: True, 22: None}
_NUMBERS: Final = {False: 20, True: 21, None: 22}
_INDEFINITE: Final = 31
_BREAK: Final = 0xFF


@dataclass(frozen=True)
class Tag:
    """A value with a tag that says what it is (RFC 8949, section 3.4)."""

    number: int
    value: Any


def cbor(value: Any) -> bytes:
    """Encode None, bool, int (64 bits and sign), bytes, str, list, tuple, mapping, ``Tag``. Malformed for all else."""
    return b"".join(_encode(value, 0))


def _encode(value: Any, depth: int) -> Iterator[bytes]:
    if depth > _MAX_DEPTH:
        raise Malformed("cbor.depth", f"The value is nested deeper than {_MAX_DEPTH}; flatten it.")
    if value is None or isinstance(value, bool):
        yield _head(_SIMPLE, _NUMBERS[value])
    elif isinstance(value, int):
        yield _head(_UNSIGNED, value) if value >= 0 else _head(_NEGATIVE, -1 - value)
    elif isinstance(value, bytes):
        yield _head(_BYTES, len(value)) + value
    elif isinstance(value, str):
        text = _utf8(value)
        yield _head(_TEXT, len(text)) + text
    elif isinstance(value, list | tuple):
        yield _head(_ARRAY, len(value))
        for item in value:
            yield from _encode(item, depth + 1)
    elif isinstance(value, Mapping):
        yield _head(_MAP, len(value))
        for key, item in sorted((cbor(key), item) for key, item in value.items()):
            yield key
            yield from _encode(item, depth + 1)
    elif isinstance(value, Tag):
        yield _head(_TAG, value.number)
        yield from _encode(value.value, depth + 1)
    else:
        raise Malformed("cbor.type", f"A {type(value).__name__} has no encoding here; use text, bytes or integers.")


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise Malformed("cbor.text", "Text with a lone surrogate can't be encoded; use valid Unicode.") from None


def _head(major: int, number: int) -> bytes:
    if number < 24:
        return bytes([major << 5 | number])
    for more, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if number < 1 << (8 * size):
            return bytes([major << 5 | more]) + number.to_bytes(size, "big")
    raise Malformed("cbor.integer", "An integer does not fit into 64 bits.")


def parse_cbor(data: bytes, *, limit: int = MAX_CBOR, strict: bool = True) -> Any:
    """The one value that ``data`` encodes: None, bool, int, bytes, str, list, dict or ``Tag``. Raises Malformed.

    Refused always: floats, undefined, other simple values, map keys that aren't integers, text or bytes, keys that
    repeat, text that isn't UTF-8, anything after the value, more than ``limit`` bytes, 20,000 items or 24 levels.
    """
    if len(data) > limit:
        raise Malformed("cbor.size", f"The document has {len(data)} bytes; at most {limit} are read.")
    reader = _Reader(data, strict)
    value = reader.item(0)
    if reader.at != len(data):
        raise Malformed("cbor.rest", "Something follows the CBOR value.")
    return value


class _Reader:
    def __init__(self, data: bytes, strict: bool) -> None:
        self._data = data
        self._strict = strict
        self._items = 0
        self.at = 0

    def item(self, depth: int) -> Any:
        major, number = self._head(depth)
        if major == _UNSIGNED:
            return _definite(number)
        if major == _NEGATIVE:
            return -1 - _definite(number)
        if major in (_BYTES, _TEXT):
            raw = self._chunks(major, depth) if number is None else self._take(number)
            return raw if major == _BYTES else _text(raw)
        if major == _ARRAY:
            return [self.item(depth + 1) for _ in self._counted(number)]
        if major == _MAP:
            return self._map(number, depth)
        if major == _TAG:
            return Tag(_definite(number), self.item(depth + 1))
        if number not in _SIMPLES:
            raise Malformed("cbor.simple", "The CBOR value holds a float or a simple value that is not accepted.")
        return _SIMPLES[number]

    def _head(self, depth: int) -> tuple[int, int | None]:
        """Major type, and the number in the head; None for an indefinite length."""
        self._items += 1
        if depth > _MAX_DEPTH or self._items > _MAX_ITEMS:
            raise Malformed("cbor.depth", "The CBOR value is nested too deeply or has too many items.")
        first = self._take(1)[0]
        major, more = first >> 5, first & 31
        if more < 24:
            return major, more
        if more > 27 or major == _SIMPLE:
            if more == _INDEFINITE and major in (_BYTES, _TEXT, _ARRAY, _MAP) and not self._strict:
                return major, None
            code = "cbor.simple" if major == _SIMPLE else "cbor.head"
            raise Malformed(code, "The CBOR value has a float, a reserved head or a length that is not stated.")
        size = 1 << (more - 24)
        number = int.from_bytes(self._take(size), "big")
        shortest = number >= (24 if size == 1 else 1 << (4 * size))
        if self._strict and not shortest:
            raise Malformed("cbor.shortest", "The CBOR value has a number or length that is not in its shortest form.")
        return major, number

    def _take(self, size: int) -> bytes:
        start, self.at = self.at, self.at + size
        if self.at > len(self._data):
            raise Malformed("cbor.short", "The CBOR value ends too early.")
        return self._data[start : self.at]

    def _counted(self, number: int | None) -> Iterator[None]:
        """Once for each entry; without a number, until the break."""
        if number is not None:
            if number > len(self._data) - self.at:  # each takes a byte at least: nothing is reserved for a mere claim
                raise Malformed("cbor.short", "The CBOR value ends too early.")
            for _ in range(number):
                yield None
            return
        while self._data[self.at : self.at + 1] != bytes([_BREAK]):
            yield None
        self.at += 1

    def _chunks(self, major: int, depth: int) -> bytes:
        parts = []
        for _ in self._counted(None):
            kind, size = self._head(depth + 1)
            if kind != major or size is None:
                raise Malformed("cbor.chunk", "A CBOR string of several parts has a part of another kind.")
            parts.append(self._take(size))
        return b"".join(parts)

    def _map(self, number: int | None, depth: int) -> dict[Any, Any]:
        out: dict[Any, Any] = {}
        before = b""
        for _ in self._counted(number):
            start = self.at
            key = self.item(depth + 1)
            # True equals 1 in Python, and -0 doesn't exist: with these types, equal keys are equal encodings.
            if not isinstance(key, int | str | bytes) or isinstance(key, bool):
                raise Malformed("cbor.key", "A CBOR map has a key that is not an integer, text or bytes.")
            encoded = self._data[start : self.at]
            if key in out:
                raise Malformed("cbor.duplicate", "A CBOR map has a key twice.")
            if self._strict and encoded < before:
                raise Malformed("cbor.order", "The keys of a CBOR map are not in order.")
            before = encoded
            out[key] = self.item(depth + 1)
        return out


def _definite(number: int | None) -> int:
    if number is None:
        raise Malformed("cbor.head", "The CBOR value has a number without a value.")
    return number


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise Malformed("cbor.text", "The CBOR value has text that is not UTF-8.") from None
