"""Canonical JSON (RFC 8785, JCS) without floats, and a strict reader.

Everything that is signed or hashed passes through here. The reader accepts exactly the bytes that
the writer makes, so a document has one encoding and its digest is a name for it.
"""

from __future__ import annotations

import json
import re
from typing import Any

from ..errors import Malformed

__all__ = ["MAX_DOCUMENT", "canonical_json", "parse_canonical", "parse_json"]

MAX_DOCUMENT = 4 * 1024 * 1024
_MAX_DEPTH = 32
_MAX_INT = 2**53 - 1  # RFC 8785 §3.2.2.3: beyond this, JSON numbers stop being exact in other readers
# JSON text up to its closing quote, or to the end of what there is. Possessive: no input makes it look back.
_TEXT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_TEXTS = {str}
_SCALARS = {str, bool, type(None)}
_QUICK = 64 * 1024  # bytes; in what is longer, a pass for each level could take longer than the long way
_ONE_KIND = bytes.maketrans(b"{}", b"[]")
_ELSE = bytes(set(range(256)) - set(b"[]{}"))
_ESCAPED = b"\1"  # no text may hold it
_BRACKET = re.compile(rb"[\[\]{}]")
# Escapes exactly what JCS wants escaped, in the same short forms. Its order of keys is JCS's where all keys are ASCII.
_ENCODER = json.JSONEncoder(ensure_ascii=False, check_circular=False, sort_keys=True, separators=(",", ":"))
# What ``_ENCODER`` makes anew for each document, where Python has it: circles, indents and NaN never get here.
_MAKE = getattr(json.encoder, "c_make_encoder", None)
_PIECES = _MAKE and _MAKE(None, _ENCODER.default, json.encoder.encode_basestring, None, ":", ",", True, False, False)


def canonical_json(value: Any) -> bytes:
    """Encode ``value`` (None, bool, int, str, list, dict with str keys) as RFC 8785 bytes.

    Raises Malformed for floats, integers beyond ±(2**53-1), lone surrogates and any other type.
    """
    try:
        if not _is_plain(value):
            return _encode(value, 0).encode()
        return ("".join(_PIECES(value, 0)) if _PIECES else _ENCODER.encode(value)).encode()
    except UnicodeEncodeError:
        raise Malformed("json.text", "Text with a lone surrogate can't be encoded; use valid Unicode.") from None


def _is_plain(value: Any) -> bool:
    """Whether Python's own encoder, which is many times quicker, writes just what ``_encode`` would. Exact types only:
    a subclass could encode as something else. What is not plain may be wrong, too: ``_encode`` says how."""
    level = [value]
    for depth in range(_MAX_DEPTH + 1):
        if set(map(type, level)) <= _SCALARS:  # one level at a time, and most of what there is by this line alone
            return True
        below: list[Any] = []
        for item in level:
            kind = type(item)
            if kind is int:
                if not -_MAX_INT <= item <= _MAX_INT:
                    return False
            elif kind is dict:
                if depth == _MAX_DEPTH or not set(map(type, item)) <= _TEXTS or not "".join(item).isascii():
                    return False
                below += item.values()
            elif kind is list or kind is tuple:
                if depth == _MAX_DEPTH:
                    return False
                below += item
            elif kind not in _SCALARS:
                return False
        level = below
    return True


def _encode(value: Any, depth: int) -> str:
    if isinstance(value, list | tuple | dict) and depth >= _MAX_DEPTH:  # the same count as the reader's
        raise Malformed("json.depth", f"The document is nested deeper than {_MAX_DEPTH}; flatten it.")
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        if abs(value) > _MAX_INT:
            raise Malformed("json.integer", "An integer is beyond ±(2^53-1); write it as text.")
        return str(value)
    if isinstance(value, str):
        # Python escapes exactly what JCS wants escaped, in the same short forms.
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list | tuple):
        return "[" + ",".join(_encode(v, depth + 1) for v in value) + "]"
    if isinstance(value, dict):
        if not all(isinstance(k, str) for k in value):
            raise Malformed("json.key", "Object keys must be text.")
        # JCS sorts by UTF-16 code units, which differs from code points beyond the basic plane.
        keys = sorted(value, key=lambda k: k.encode("utf-16-be"))
        return "{" + ",".join(f"{_encode(k, depth)}:{_encode(value[k], depth + 1)}" for k in keys) + "}"
    raise Malformed("json.type", f"A {type(value).__name__} has no canonical form; use text or integers.")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise Malformed("json.duplicate", "The document has a duplicate key; remove one.")
    return out


def _no_float(_: str) -> Any:
    raise Malformed("json.float", "The document has a fraction or exponent; write numbers as integers or text.")


def parse_json(data: bytes, *, limit: int = MAX_DOCUMENT) -> Any:
    """Parse UTF-8 JSON strictly: no duplicate keys, no floats, no NaN, no lone surrogates, bounded size and depth."""
    if len(data) > limit:
        raise Malformed("json.size", f"The document has {len(data)} bytes; at most {limit} are read.")
    _check_depth(data)
    try:
        value = _DECODER.decode(data.decode("utf-8"))
        # An escape can smuggle in a lone surrogate, which would break whoever encodes the text later.
        if b"\\u" in data:
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError):
        raise Malformed("json.syntax", "The document is not valid UTF-8 JSON.") from None


def _bounded_int(text: str) -> int:
    if len(text) > 17 or abs(int(text)) > _MAX_INT:
        raise Malformed("json.integer", "An integer is beyond ±(2^53-1); write it as text.")
    return int(text)


_DECODER = json.JSONDecoder(
    object_pairs_hook=_no_duplicates, parse_float=_no_float, parse_constant=_no_float, parse_int=_bounded_int
)


def _check_depth(data: bytes) -> None:
    """Refuse deep nesting before the parser recurses. Brackets inside text count too: a safe over-estimate
    would refuse honest text, so text is skipped."""
    if data.count(b"[") + data.count(b"{") <= _MAX_DEPTH or _is_shallow(data):
        return
    depth = 0
    for bracket in _BRACKET.finditer(_TEXT.sub(b"", data)):
        if bracket[0] in (b"]", b"}"):
            depth -= 1
            continue
        depth += 1
        if depth > _MAX_DEPTH:
            raise Malformed("json.depth", f"The document is nested deeper than {_MAX_DEPTH}; flatten it.")


def _is_shallow(data: bytes) -> bool:
    """Whether nesting is surely within bounds: quickly, once escapes are out of the way and every quote begins or ends
    text. What is not well formed may seem deep; then the long way decides."""
    if len(data) > _QUICK:
        return False
    if b"\\" in data:
        data = data.replace(b"\\\\", _ESCAPED).replace(b'\\"', _ESCAPED)  # pairs from the left, as a parser reads them
    rest = b"".join(data.split(b'"')[::2])  # between texts
    if _ESCAPED in rest or b"\\" in rest:
        return False
    rest = rest.translate(_ONE_KIND, _ELSE)
    for _ in range(_MAX_DEPTH):
        if not rest:
            break
        rest = rest.replace(b"[]", b"")  # exactly one level, the innermost
    return not rest


def parse_canonical(data: bytes, *, limit: int = MAX_DOCUMENT) -> Any:
    """Parse, and refuse bytes that ``canonical_json`` would not have written."""
    value = parse_json(data, limit=limit)
    if canonical_json(value) != data:
        raise Malformed("json.canonical", "The document is not in canonical form (RFC 8785).")
    return value
