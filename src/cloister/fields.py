"""Strict reading of JSON objects: every field is asked for by type, and what was not asked for is refused."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from typing import Any, TypeVar

from .errors import Malformed

__all__ = ["Fields", "party_name"]

T = TypeVar("T")
_PARTY = re.compile(r"[a-z][a-z0-9-]{0,62}")
_ASSET = re.compile(r"[a-z][a-z0-9-]{0,62}/[a-z0-9][a-z0-9._-]{0,126}")


def party_name(text: str) -> str:
    """``text`` if it can name a party; Malformed if not."""
    if not _PARTY.fullmatch(text):
        raise Malformed("name.party", "A party's name is lower-case letters, digits and dashes, a letter first.")
    return text


class Fields:
    """A reader of one object. ``what`` names it in error messages; values never appear there."""

    def __init__(self, value: Any, what: str) -> None:
        if not isinstance(value, dict):
            raise Malformed("form.object", f"The {what} is not an object.")
        self._value = value
        self._what = what
        self._asked: set[str] = set()

    def _bad(self, key: str, expected: str) -> Malformed:
        return Malformed("form.field", f"The {self._what}'s field '{key}' is not {expected}.", field=key)

    def raw(self, key: str, *, optional: bool = False) -> Any:
        self._asked.add(key)
        if key not in self._value and not optional:
            raise Malformed("form.missing", f"The {self._what} lacks the field '{key}'.", field=key)
        return self._value.get(key)

    def text(self, key: str, *, limit: int = 4096, choices: tuple[str, ...] | None = None) -> str:
        value = self.raw(key)
        if not isinstance(value, str) or len(value) > limit:
            raise self._bad(key, f"text of at most {limit} characters")
        if choices is not None and value not in choices:
            raise self._bad(key, "one of " + ", ".join(choices))
        return value

    def optional_text(self, key: str, *, limit: int = 4096) -> str | None:
        return None if self.raw(key, optional=True) is None else self.text(key, limit=limit)

    def integer(self, key: str, *, low: int = 0, high: int = 2**53 - 1) -> int:
        value = self.raw(key)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self._bad(key, f"an integer from {low} to {high}")
        return value

    def boolean(self, key: str) -> bool:
        value = self.raw(key)
        if not isinstance(value, bool):
            raise self._bad(key, "true or false")
        return value

    def hex(self, key: str, size: int) -> bytes:
        value = self.raw(key)
        if not isinstance(value, str) or not re.fullmatch(f"[0-9a-f]{{{2 * size}}}", value):
            raise self._bad(key, f"{size} bytes in lower-case hex")
        return bytes.fromhex(value)

    def optional_hex(self, key: str, size: int) -> bytes | None:
        return None if self.raw(key, optional=True) is None else self.hex(key, size)

    def base64(self, key: str, *, limit: int = 1 << 20) -> bytes:
        value = self.text(key, limit=limit)
        try:
            raw = base64.b64decode(value, validate=True)
        except (ValueError, binascii.Error):
            raise self._bad(key, "base64") from None
        if base64.b64encode(raw).decode() != value:
            raise self._bad(key, "canonical base64")
        return raw

    def party(self, key: str) -> str:
        value = self.text(key, limit=63)
        if not _PARTY.fullmatch(value):
            raise self._bad(key, "a party's name")
        return value

    def asset(self, key: str) -> str:
        value = self.text(key, limit=192)
        if not _ASSET.fullmatch(value):
            raise self._bad(key, "an asset's name, party/asset")
        return value

    def items(self, key: str, read: Callable[[Any], T], *, limit: int = 1000, optional: bool = False) -> tuple[T, ...]:
        value = self.raw(key, optional=optional)
        if optional and value is None:
            return ()
        if not isinstance(value, list) or len(value) > limit:
            raise self._bad(key, f"a list of at most {limit} entries")
        return tuple(read(v) for v in value)

    def texts(self, key: str, *, limit: int = 1000) -> tuple[str, ...]:
        def read(value: Any) -> str:
            if not isinstance(value, str) or len(value) > 1024:
                raise self._bad(key, "a list of texts")
            return value

        return self.items(key, read, limit=limit)

    def hexes(self, key: str, size: int, *, limit: int = 1000) -> tuple[str, ...]:
        for value in self.texts(key, limit=limit):
            if not re.fullmatch(f"[0-9a-f]{{{2 * size}}}", value):
                raise self._bad(key, f"a list of {size}-byte values in lower-case hex")
        return self.texts(key, limit=limit)

    def mapping(self, key: str, read: Callable[[str, Any], T], *, limit: int = 1000) -> dict[str, T]:
        value = self.raw(key)
        if not isinstance(value, dict) or len(value) > limit:
            raise self._bad(key, f"an object of at most {limit} entries")
        return {k: read(k, v) for k, v in value.items()}

    def child(self, key: str) -> Fields:
        return Fields(self.raw(key), f"{self._what}'s {key}")

    def done(self) -> None:
        """Refuse fields that nobody asked for: an unknown field might carry a rule that we would ignore."""
        unknown = sorted(set(self._value) - self._asked)
        if unknown:
            raise Malformed("form.unknown", f"The {self._what} has unknown fields: {', '.join(unknown)[:200]}.")
