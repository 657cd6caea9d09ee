"""Readers of single recipe values. Each takes a raw value (text from YAML, or JSON's types), knows its JSON schema,
and says in words what it takes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Protocol

from ...errors import Misuse

__all__ = ["Asset", "Choice", "Integer", "Number", "Parameters", "Reader", "Targets", "Truth", "decimal_text"]

_ASSET = re.compile(r"[a-z][a-z0-9-]{0,62}/[a-z0-9][a-z0-9._-]{0,126}")
_MODULE = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+){0,15}")
_NUMBER = re.compile(r"[+-]?(\d{1,20}(\.\d{0,20})?|\.\d{1,20})([eE][+-]?\d{1,2})?")
_MAX_TARGETS = 64
_PARAMETER = re.compile(r"[a-z][a-z0-9_]{0,63}")
_MAX_PARAMETERS = 64
_MAX_PARAMETER = 1024  # characters of one value
_MAX_PLACES = 12  # digits after the point; more would be noise, and bounds the canonical text


class Reader(Protocol):
    def read(self, name: str, value: Any) -> Any:
        """The value in Python's types. Raises Misuse(``recipe.value``), which names the key ``name``."""
        ...

    @property
    def words(self) -> str:
        """What it takes: "a whole number from 1 to 8"."""
        ...

    @property
    def schema(self) -> Mapping[str, Any]:
        """JSON Schema (2020-12) of what it takes from YAML or JSON."""
        ...


def _bad(name: str, expected: str) -> Misuse:
    return Misuse("recipe.value", f"The recipe's '{name}' must be {expected}.", key=name)


@dataclass(frozen=True)
class Choice:
    options: tuple[str, ...]

    def read(self, name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in self.options:
            raise _bad(name, self.words)
        return value

    @property
    def words(self) -> str:
        return "one of " + ", ".join(self.options)

    @property
    def schema(self) -> Mapping[str, Any]:
        return {"enum": list(self.options)}


@dataclass(frozen=True)
class Integer:
    low: int
    high: int

    def read(self, name: str, value: Any) -> int:
        if isinstance(value, str) and re.fullmatch(r"\d{1,12}", value):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not self.low <= value <= self.high:
            raise _bad(name, self.words)
        return value

    @property
    def words(self) -> str:
        return f"a whole number from {self.low} to {self.high}"

    @property
    def schema(self) -> Mapping[str, Any]:
        return {"type": "integer", "minimum": self.low, "maximum": self.high}


@dataclass(frozen=True)
class Number:
    """A decimal in [low, high]. Floats are taken by their shortest text, so 0.1 means 0.1."""

    low: str
    high: str

    def read(self, name: str, value: Any) -> Decimal:
        text = repr(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
        try:
            number = Decimal(text) if isinstance(text, str) and _NUMBER.fullmatch(text) else None
        except InvalidOperation:
            number = None
        if number is None or not Decimal(self.low) <= number <= Decimal(self.high):
            raise _bad(name, self.words)
        if number != round(number, _MAX_PLACES):
            raise _bad(name, f"written with at most {_MAX_PLACES} places after the point")
        return number

    @property
    def words(self) -> str:
        return f"a number from {self.low} to {self.high}"

    @property
    def schema(self) -> Mapping[str, Any]:
        # A canonical document holds decimals as text, a person's YAML as numbers.
        bounds = {"minimum": float(self.low), "maximum": float(self.high)}
        return {"anyOf": [{"type": "number", **bounds}, {"type": "string", "pattern": f"^{_NUMBER.pattern}$"}]}


@dataclass(frozen=True)
class Asset:
    """``party/asset``, or a mapping of the two keys ``party`` and ``asset``."""

    words = "an asset's name, party/asset"

    def read(self, name: str, value: Any) -> str:
        if isinstance(value, dict) and set(value) == {"party", "asset"}:
            value = f"{value['party']}/{value['asset']}"
        if not isinstance(value, str) or not _ASSET.fullmatch(value):
            raise _bad(name, self.words)
        return value

    @property
    def schema(self) -> Mapping[str, Any]:
        part = {"type": "string", "maxLength": 127}
        whole = {"type": "string", "pattern": f"^{_ASSET.pattern}$"}
        pair = {"type": "object", "properties": {"party": part, "asset": part}, "required": ["party", "asset"]}
        return {"anyOf": [whole, {**pair, "additionalProperties": False}]}


@dataclass(frozen=True)
class Truth:
    words = "true or false"

    def read(self, name: str, value: Any) -> bool:
        value = {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value
        if not isinstance(value, bool):
            raise _bad(name, self.words)
        return value

    @property
    def schema(self) -> Mapping[str, Any]:
        return {"type": "boolean"}


@dataclass(frozen=True)
class Targets:
    """``auto`` (None) or a list of module names: plain ones only, since PEFT reads a text as a regular expression."""

    words = f"auto or a list of 1 to {_MAX_TARGETS} plain module names"

    def read(self, name: str, value: Any) -> tuple[str, ...] | None:
        if value == "auto":
            return None
        names = tuple(value) if isinstance(value, list | tuple) and 0 < len(value) <= _MAX_TARGETS else ()
        if not names or not all(isinstance(n, str) and len(n) <= 128 and _MODULE.fullmatch(n) for n in names):
            raise _bad(name, self.words)
        return tuple(sorted(set(names)))

    @property
    def schema(self) -> Mapping[str, Any]:
        name = {"type": "string", "pattern": f"^{_MODULE.pattern}$", "maxLength": 128}
        return {"anyOf": [{"const": "auto"}, {"type": "array", "items": name, "minItems": 1, "maxItems": _MAX_TARGETS}]}


@dataclass(frozen=True)
class Parameters:
    """Texts by name, for a party's own program, which knows what they mean."""

    words = f"up to {_MAX_PARAMETERS} plain names, each with a text of at most {_MAX_PARAMETER} characters"

    def read(self, name: str, value: Any) -> dict[str, str]:
        given = {} if value is None else value
        if not isinstance(given, Mapping) or len(given) > _MAX_PARAMETERS:
            raise _bad(name, self.words)
        texts = {key: str(v) if isinstance(v, int) and not isinstance(v, bool) else v for key, v in given.items()}
        for key, text in texts.items():
            if not isinstance(key, str) or not _PARAMETER.fullmatch(key):
                raise _bad(name, self.words)
            if not isinstance(text, str) or not 0 < len(text) <= _MAX_PARAMETER or not text.isprintable():
                raise _bad(name, self.words)
        return dict(sorted(texts.items()))

    @property
    def schema(self) -> Mapping[str, Any]:
        text = {"anyOf": [{"type": "integer"}, {"type": "string", "minLength": 1, "maxLength": _MAX_PARAMETER}]}
        names = {"pattern": f"^{_PARAMETER.pattern}$"}
        most = {"maxProperties": _MAX_PARAMETERS}
        return {"type": "object", **most, "propertyNames": names, "additionalProperties": text}


def decimal_text(number: Decimal) -> str:
    """The one spelling of a decimal: no exponent, no trailing zeros, no sign on zero."""
    text = f"{number:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in ("-0", "+0", "") else text
