"""The DER reader: one encoding for each value, bounded, and only errors of the code that it was given."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from cloister.crypto.der import BITS, IA5, SET, UTF8, Der, encode, read_der
from cloister.errors import Malformed


def read(text: str, limit: int = 8192) -> Der:
    return read_der(bytes.fromhex(text), "thing", code="thing.form", limit=limit)


def refused(act: Callable[[], object]) -> None:
    with pytest.raises(Malformed) as caught:
        act()
    assert caught.value.code == "thing.form"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "30",
        "3001",  # ends early
        "300000",  # something after it
        "3080050000",  # no definite length
        "308100",  # longer than needed
        "30817f" + "00" * 127,
        "3082008005" + "00" * 127,
        "30820101" + "00" * 256,
        "3085000000000100",
        "3f0100",  # a tag of several bytes
        "0000",  # end of contents
        "30ff",
    ],
)
def test_what_has_another_encoding_is_refused(text: str) -> None:
    refused(lambda: read(text))


def test_an_element_longer_than_the_limit_is_not_read() -> None:
    assert read("04820100" + "00" * 256, limit=260).octets(256) == bytes(256)
    refused(lambda: read("04820100" + "00" * 256, limit=259))


def test_children_are_counted() -> None:
    two = read("300405000500")
    assert [child.tag for child in two.children()] == [5, 5]
    assert read("3104050005 00".replace(" ", "")).children(SET, count=2)
    for act in (
        lambda: two.children(count=1),
        lambda: two.children(count=3),
        lambda: two.children(most=1),
        lambda: two.children(SET),
        lambda: read("30030500 05".replace(" ", "")).children(),
        lambda: read_der(encode(0x30, b"\5\0" * 65), "thing", code="thing.form").children(),
    ):
        refused(act)


@pytest.mark.parametrize(("text", "value"), [("020100", 0), ("02017f", 127), ("02020080", 128), ("020200ff", 255)])
def test_numbers(text: str, value: int) -> None:
    assert read(text).unsigned(1) == value


@pytest.mark.parametrize("text", ["0200", "020180", "02020001", "02020100", "0203000080", "0a0101", "0209" + "01" * 9])
def test_other_numbers(text: str) -> None:
    refused(lambda: read(text).unsigned(1))


def test_truth_values() -> None:
    assert (read("010100").boolean(), read("0101ff").boolean()) == (False, True)
    for text in ("010101", "0100", "0102ffff", "0201ff"):
        refused(read(text).boolean)


def test_bits() -> None:
    assert read("03020780").bits() == b"\x80"
    assert read("87030000aa").bits(0x87) == b"\x00\xaa"
    for text in ("0300", "030100", "03020880", "03020781", "030a00" + "00" * 9, "04020780"):
        refused(read(text).bits)
    refused(lambda: read("87020001").bits(BITS))


@given(st.integers(0, 1), st.integers(0, 39), st.lists(st.integers(0, 2**40), max_size=4))
def test_object_identifiers_as_the_library_reads_them(first: int, second: int, more: list[int]) -> None:
    dotted = ".".join(map(str, (first, second, *more)))
    body = bytes([40 * first + second])
    for number in more:
        digits = [number & 0x7F]
        while number := number >> 7:
            digits.insert(0, number & 0x7F | 0x80)
        body += bytes(digits)
    assert read_der(encode(6, body), "thing", code="thing.form").oid() == dotted
    assert x509.ObjectIdentifier(dotted).dotted_string == dotted


def test_other_object_identifiers() -> None:
    assert read("0603883703").oid() == "2.999.3"  # X.690 §8.19.5, example
    for text in ("0600", "060188", "06022a80", "06042a800103", "0621" + "01" * 33, "05012a"):
        refused(read(text).oid)


def test_texts() -> None:
    assert read("0c03c3a978").text() == "éx"
    assert read("1601 41".replace(" ", "")).text(IA5) == "A"
    for act in (
        lambda: read("1602c3a9").text(),
        lambda: read("0c02c328").text(),
        lambda: read("0c010a").text(),
        lambda: read("1e020041").text(),
        lambda: read("130141").text(UTF8, IA5),
        lambda: read("13024141").text(most=1),
    ):
        refused(act)


@given(st.binary(max_size=64))
def test_any_bytes_are_refused_or_have_that_one_encoding(data: bytes) -> None:
    with contextlib.suppress(Malformed):
        found = read_der(data, "thing", code="thing.form")
        assert found.encode() == data
        for method in (found.oid, found.boolean, found.text, found.bits, lambda: found.unsigned(2), found.children):
            with contextlib.suppress(Malformed):
                method()
