"""Canonical JSON: RFC 8785's own examples, and one encoding for each value."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.crypto import canonical_json, parse_canonical, parse_json
from cloister.crypto.canonical import MAX_DOCUMENT
from cloister.errors import Malformed

scalars = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=12)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=20,
)


def code_of(call: Any, *args: Any, **kw: Any) -> str:
    with pytest.raises(Malformed) as info:
        call(*args, **kw)
    return info.value.code


@given(values)
def test_round_trip_and_one_encoding(value: Any) -> None:
    data = canonical_json(value)
    assert parse_canonical(data) == value
    assert json.loads(data) == value  # it is ordinary JSON
    assert canonical_json(parse_json(json.dumps(value, indent=1).encode())) == data


@given(st.binary(max_size=60))
def test_the_reader_is_total(data: bytes) -> None:
    try:
        value = parse_canonical(data)
    except Malformed:
        return
    assert canonical_json(value) == data


def test_rfc8785_strings_and_sorting() -> None:
    # RFC 8785 §3.2.2.2: what is escaped and how; §3.2.3: sorting by UTF-16 code units.
    assert canonical_json('\u20ac$\x0f\nA\'B"\\\\"/') == '"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"'.encode()
    keys = {"\u20ac": 1, "\r": 2, "\ufb33": 3, "1": 4, "\U0001f600": 5, "\u0080": 6, "\u00f6": 7}
    assert list(json.loads(canonical_json(keys))) == ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]
    assert canonical_json("\x7f") == b'"\x7f"'


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (1.0, "json.type"),
        ({"a": b"bytes"}, "json.type"),
        ({1: "a"}, "json.key"),
        (2**53, "json.integer"),
        (-(2**53), "json.integer"),
        ("\ud800", "json.text"),
        ({"\udfff": 1}, "json.text"),
    ],
)
def test_what_has_no_canonical_form(value: Any, code: str) -> None:
    assert code_of(canonical_json, value) == code


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "json.syntax"),
        (b"{", "json.syntax"),
        (b"\xff", "json.syntax"),
        (b'\xef\xbb\xbf{"a":1}', "json.syntax"),
        (b'{"a":1,"a":2}', "json.duplicate"),
        (b'{"x":{"a":1,"a":1}}', "json.duplicate"),
        (b"1.0", "json.float"),
        (b"1e3", "json.float"),
        (b"NaN", "json.float"),
        (b"-Infinity", "json.float"),
        (b"9007199254740992", "json.integer"),
        (b"1" * 5000, "json.integer"),
        (b'"\\ud800"', "json.syntax"),
        (b'{"\\uDC00":1}', "json.syntax"),
        (b'["\\\\","\\ud83d"]', "json.syntax"),
    ],
)
def test_the_reader_refuses(data: bytes, code: str) -> None:
    assert code_of(parse_json, data) == code


def test_a_whole_surrogate_pair_is_text() -> None:
    assert parse_json(b'"\\ud83d\\ude00"') == "\U0001f600"


@pytest.mark.parametrize("data", [b' {"a":1}', b'{"a": 1}', b'{"b":1,"a":2}', b'"\\u0041"', b"-0", b'"\\/"', b"[1]\n"])
def test_other_spellings_are_not_canonical(data: bytes) -> None:
    parse_json(data)
    assert code_of(parse_canonical, data) == "json.canonical"


@pytest.mark.parametrize("depth", [31, 32, 33, 34, 5000])
def test_reader_and_writer_agree_about_depth(depth: int) -> None:
    data = b"[" * depth + b"]" * depth
    if depth <= 32:
        assert canonical_json(parse_canonical(data)) == data
        return
    assert code_of(parse_json, data) == "json.depth"
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    assert code_of(canonical_json, value) == "json.depth"


def test_brackets_inside_text_are_not_depth() -> None:
    text = '"[{' * 50 + '\\"'
    assert parse_canonical(canonical_json([text])) == [text]


def test_size_is_bounded() -> None:
    assert code_of(parse_json, b" " * (MAX_DOCUMENT + 1)) == "json.size"
    assert code_of(parse_json, b'"abcd"', limit=5) == "json.size"
    assert parse_json(b'"abc"', limit=5) == "abc"
