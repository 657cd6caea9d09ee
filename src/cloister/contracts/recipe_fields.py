"""Readers of single recipe values: each takes the key's name and a raw value (text from YAML, or JSON's types)."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any

from ..errors import Misuse

__all__ = ["Key", "asset", "choice", "decimal", "decimal_text", "integer", "targets", "truth"]

Key = Callable[[str, Any], Any]
_ASSET = re.compile(r"[a-z][a-z0-9-]{0,62}/[a-z0-9][a-z0-9._-]{0,126}")
_MODULE = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+){0,15}")
_NUMBER = re.compile(r"[+-]?(\d{1,20}(\.\d{0,20})?|\.\d{1,20})([eE][+-]?\d{1,2})?")
_MAX_TARGETS = 64
_MAX_PLACES = 12  # digits after the point; more would be noise, and bounds the canonical text


def _bad(name: str, expected: str) -> Misuse:
    return Misuse("recipe.value", f"The recipe's '{name}' must be {expected}.", key=name)


def choice(*options: str) -> Key:
    def read(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in options:
            raise _bad(name, "one of " + ", ".join(options))
        return value

    return read


def integer(low: int, high: int) -> Key:
    def read(name: str, value: Any) -> int:
        if isinstance(value, str) and re.fullmatch(r"\d{1,12}", value):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise _bad(name, f"a whole number from {low} to {high}")
        return value

    return read


def decimal(low: str, high: str) -> Key:
    """A decimal in [low, high]. Floats are taken by their shortest text, so 0.1 means 0.1."""

    def read(name: str, value: Any) -> Decimal:
        text = repr(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
        try:
            number = Decimal(text) if isinstance(text, str) and _NUMBER.fullmatch(text) else None
        except InvalidOperation:
            number = None
        if number is None or not Decimal(low) <= number <= Decimal(high):
            raise _bad(name, f"a number from {low} to {high}")
        if number != round(number, _MAX_PLACES):
            raise _bad(name, f"written with at most {_MAX_PLACES} places after the point")
        return number

    return read


def decimal_text(number: Decimal) -> str:
    """The one spelling of a decimal: no exponent, no trailing zeros, no sign on zero."""
    text = f"{number:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in ("-0", "+0", "") else text


def asset() -> Key:
    """``party/asset``, or a mapping of the two keys ``party`` and ``asset``."""

    def read(name: str, value: Any) -> str:
        if isinstance(value, dict) and set(value) == {"party", "asset"}:
            value = f"{value['party']}/{value['asset']}"
        if not isinstance(value, str) or not _ASSET.fullmatch(value):
            raise _bad(name, "an asset's name, party/asset")
        return value

    return read


def truth() -> Key:
    def read(name: str, value: Any) -> bool:
        value = {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value
        if not isinstance(value, bool):
            raise _bad(name, "true or false")
        return value

    return read


def targets() -> Key:
    """``auto`` (None) or a list of module names: plain ones only, since PEFT reads a text as a regular expression."""

    def read(name: str, value: Any) -> tuple[str, ...] | None:
        if value == "auto":
            return None
        names = tuple(value) if isinstance(value, list | tuple) and 0 < len(value) <= _MAX_TARGETS else ()
        if not names or not all(isinstance(n, str) and len(n) <= 128 and _MODULE.fullmatch(n) for n in names):
            raise _bad(name, f"auto or a list of 1 to {_MAX_TARGETS} plain module names")
        return tuple(sorted(set(names)))

    return read
