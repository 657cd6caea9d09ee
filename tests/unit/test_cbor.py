"""Deterministic CBOR: the examples of RFC 8949, and that a value has one encoding and every other one is refused."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.crypto.cbor import Tag, cbor, parse_cbor
from cloister.errors import Malformed

# RFC 8949, appendix A, as far as the values have a place here.
EXAMPLES: list[tuple[Any, str]] = [
    (0, "00"),
    (23, "17"),
    (24, "1818"),
    (100, "1864"),
    (1000, "1903e8"),
    (1000000, "1a000f4240"),
    (1000000000000, "1b000000e8d4a51000"),
    (18446744073709551615, "1bffffffffffffffff"),
    (-18446744073709551616, "3bffffffffffffffff"),
    (-1, "20"),
    (-100, "3863"),
    (False, "f4"),
    (True, "f5"),
    (None, "f6"),
    (Tag(1, 1363896240), "c11a514b67b0"),
    (Tag(32, "http://www.example.com"), "d82076687474703a2f2f7777772e6578616d706c652e636f6d"),
    (b"", "40"),
    (b"\x01\x02\x03\x04", "4401020304"),
    ("", "60"),
    ("IETF", "6449455446"),
    ("\u00fc", "62c3bc"),
    ("\U00010151", "64f0908591"),
    ([], "80"),
    ([1, [2, 3], [4, 5]], "8301820203820405"),
    (list(range(1, 26)), "98190102030405060708090a0b0c0d0e0f101112131415161718181819"),
    ({}, "a0"),
    ({1: 2, 3: 4}, "a201020304"),
    ({"a": 1, "b": [2, 3]}, "a26161016162820203"),
]


@pytest.mark.parametrize(("value", "encoded"), EXAMPLES)
def test_the_examples_of_the_standard(value: Any, encoded: str) -> None:
    assert cbor(value).hex() == encoded
    found = parse_cbor(bytes.fromhex(encoded))
    assert (found, type(found)) == (value, type(value))


def test_keys_are_sorted_by_their_bytes() -> None:
    """Section 4.2.1 gives this very order."""
    keys = [10, 100, -1, "z", "aa", b"x"]
    made = parse_cbor(cbor(dict.fromkeys(keys, 0)))
    assert list(made) == [10, 100, -1, b"x", "z", "aa"]


@pytest.mark.parametrize(
    ("encoded", "code"),
    [
        ("", "cbor.short"),
        ("1803", "cbor.shortest"),
        ("190017", "cbor.shortest"),
        ("1a0000ffff", "cbor.shortest"),
        ("1b00000000ffffffff", "cbor.shortest"),
        ("5801aa", "cbor.shortest"),
        ("a201020102", "cbor.duplicate"),
        ("a203040102", "cbor.order"),
        ("a1f501", "cbor.key"),
        ("a1f601", "cbor.key"),
        ("a18001", "cbor.key"),
        ("a1c10101", "cbor.key"),
        ("f97e00", "cbor.simple"),
        ("fb3ff199999999999a", "cbor.simple"),
        ("f7", "cbor.simple"),
        ("e0", "cbor.simple"),
        ("f820", "cbor.simple"),
        ("ff", "cbor.simple"),
        ("1c", "cbor.head"),
        ("3f", "cbor.head"),
        ("df01", "cbor.head"),
        ("9f01ff", "cbor.head"),
        ("5f4101ff", "cbor.head"),
        ("61ff", "cbor.text"),
        ("0000", "cbor.rest"),
        ("8201", "cbor.short"),
        ("9bffffffffffffffff", "cbor.short"),
        ("bbffffffffffffffff", "cbor.short"),
        ("5bffffffffffffffff", "cbor.short"),
        ("81" * 30 + "00", "cbor.depth"),
        ("c1" * 30 + "00", "cbor.depth"),
    ],
)
def test_what_is_refused(encoded: str, code: str) -> None:
    with pytest.raises(Malformed) as caught:
        parse_cbor(bytes.fromhex(encoded))
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("encoded", "value"),
    [
        ("1803", 3),
        ("a203040102", {3: 4, 1: 2}),
        ("9f0102ff", [1, 2]),
        ("bf0102ff", {1: 2}),
        ("5f41014102ff", b"\x01\x02"),
        ("7f6161ff", "a"),
    ],
)
def test_vendors_may_write_it_otherwise(encoded: str, value: Any) -> None:
    assert parse_cbor(bytes.fromhex(encoded), strict=False) == value
    with pytest.raises(Malformed):
        parse_cbor(bytes.fromhex(encoded))


@pytest.mark.parametrize("encoded", ["9f01", "5f6161ff", "5f5f4101ffff", "ff", "a203040304", "f97e00", "1c", "bf01ff"])
def test_what_is_refused_of_vendors_too(encoded: str) -> None:
    with pytest.raises(Malformed):
        parse_cbor(bytes.fromhex(encoded), strict=False)


@pytest.mark.parametrize("value", [1.5, 1 << 64, -(1 << 64) - 1, "\ud800", object(), {1.5: 1}, {1, 2}])
def test_what_has_no_encoding(value: Any) -> None:
    with pytest.raises(Malformed):
        cbor(value)


def test_limits_of_size_items_and_depth() -> None:
    with pytest.raises(Malformed) as caught:
        parse_cbor(cbor(b"x" * 100), limit=100)
    assert caught.value.code == "cbor.size"
    with pytest.raises(Malformed):
        parse_cbor(cbor([0] * 20_001))
    with pytest.raises(Malformed):
        cbor([[]] * 1 + [_nested(30)])


def _nested(depth: int) -> Any:
    return [] if depth == 0 else [_nested(depth - 1)]


def test_the_worst_input_takes_little_time() -> None:
    for data in (b"\x81" * (1 << 20), b"\x00" * (1 << 20), b"\x9a\x00\x0f\xff\xf0" + b"\x80" * (1 << 20)):
        start = time.process_time()
        with pytest.raises(Malformed):
            parse_cbor(data)
        assert time.process_time() - start < 5  # a runaway only; figures are the benchmark's business


_KEYS = st.integers(-(1 << 64), (1 << 64) - 1) | st.text(max_size=4) | st.binary(max_size=4)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 64), (1 << 64) - 1) | st.text(max_size=30) | st.binary(max_size=300),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(_KEYS, inner, max_size=4)
        | st.builds(Tag, st.integers(0, (1 << 64) - 1), inner)
    ),
    max_leaves=12,
)


@given(_VALUES)
@settings(max_examples=200, deadline=None)
def test_what_is_written_is_read_back(value: Any) -> None:
    data = cbor(value)
    assert parse_cbor(data) == value
    assert parse_cbor(data, strict=False) == value


@given(st.binary(max_size=120))
@settings(max_examples=400, deadline=None)
def test_any_bytes_are_one_encoding_or_refused(data: bytes) -> None:
    try:
        value = parse_cbor(data)
    except Malformed:
        return
    assert cbor(value) == data


@given(_VALUES, st.data())
@settings(max_examples=200, deadline=None)
def test_any_one_bit_change_is_another_value_or_refused(value: Any, data: st.DataObject) -> None:
    good = cbor(value)
    bit = data.draw(st.integers(0, 8 * len(good) - 1))
    changed = bytearray(good)
    changed[bit // 8] ^= 1 << (bit % 8)
    try:
        found = parse_cbor(bytes(changed))
    except Malformed:
        return
    assert cbor(found) == bytes(changed)
