"""The quick ways of ``canonical`` do what the plain ones would: the encoder, and the count of nesting."""

from __future__ import annotations

import enum
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cloister.crypto import canonical, canonical_json, parse_canonical, parse_json
from cloister.errors import Malformed

TEXT = st.text(max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_the_quick_encoder_writes_what_the_plain_one_writes(value: Any) -> None:
    assert canonical_json(value) == canonical._encode(value, 0).encode()
    assert parse_canonical(canonical_json(value)) == value


def test_keys_beyond_ascii_are_sorted_by_utf_16() -> None:
    assert canonical_json({"\uff5e": 1, "\U0001f600": 2}) == '{"\U0001f600":2,"\uff5e":1}'.encode()


class Colour(enum.IntEnum):
    RED = 1


class Shout(str):
    def __str__(self) -> str:
        return "loud"


@pytest.mark.parametrize("value", [Colour.RED, [Colour.RED], {"a": Shout("x")}, {Shout("k"): 1}])
def test_subclasses_take_the_plain_way(value: Any) -> None:
    assert not canonical._is_plain(value)
    assert canonical_json(value) == canonical._encode(value, 0).encode()


@pytest.mark.parametrize("value", [1.5, [float("nan")], {"a": 2**53}, {1: 2}, [b"x"], ["\ud800"], {"\udfff": 1}])
def test_what_has_no_canonical_form_is_refused_as_before(value: Any) -> None:
    with pytest.raises(Malformed):
        canonical_json(value)


def depth(data: bytes) -> int:
    """The nesting outside text, counted byte by byte."""
    deepest = now = 0
    text = escaped = False
    for byte in data:
        if text:
            text = byte != 0x22 or escaped
            escaped = byte == 0x5C and not escaped
        elif byte == 0x22:
            text, escaped = True, False
        else:
            now += (byte in b"[{") - (byte in b"]}")
            deepest = max(deepest, now)
    return deepest


PIECES = st.sampled_from([b"[", b"{", b"]", b"}", b'"', b"\\", b"a", b"\n", b'\\"', b"[" * 20, b"]" * 20, b'"' * 3])


@example(b"{[" * 17 + b"]}" * 17)
@example(b"{[" * 16 + b"]}" * 16)
@example(b"[" * 16 + b'"]]]"' + b"[" * 17 + b"]" * 33)
@example(b'["' + b"[" * 40 + b'"' + b"[]" * 40 + b"]")
@given(st.lists(PIECES, max_size=60).map(b"".join))
def test_nesting_is_counted_outside_text_only(data: bytes) -> None:
    if depth(data) <= canonical._MAX_DEPTH:
        canonical._check_depth(data)
        return
    with pytest.raises(Malformed, match="nested deeper"):
        canonical._check_depth(data)


@pytest.mark.parametrize(
    "data", [b'"' * 200_001, b'"' + b"\\" * 200_001, b'"a' * 100_000 + b"[" * 33, b"[" * 200_000, b'["\\"' * 50_000]
)
def test_no_input_makes_the_reader_look_back(data: bytes) -> None:
    """It takes milliseconds; looking back would take hours, and this test would not end."""
    with pytest.raises(Malformed):
        parse_json(data)
