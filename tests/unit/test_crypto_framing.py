"""Framing is injective, and its bytes are fixed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.crypto import frame, random_bytes, sha256

parts = st.lists(st.binary(max_size=12), max_size=5)


def test_known_bytes() -> None:
    assert frame("ab", b"\x01", 2).hex() == (
        "0000000000000002" + "6162" + "0000000000000001" + "01" + "0000000000000008" + "0000000000000002"
    )
    assert frame() == b""
    assert frame("") == bytes(8)
    assert sha256(b"abc").hex() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@given(parts, parts)
def test_two_lists_never_frame_alike(one: list[bytes], two: list[bytes]) -> None:
    assert (frame(*one) == frame(*two)) == (one == two)


def test_what_has_no_framing_is_refused() -> None:
    for value in (-1, 2**64):
        with pytest.raises(OverflowError):
            frame(value)
    with pytest.raises(TypeError):
        frame(1.5)  # type: ignore[arg-type]


def test_random_bytes_are_of_the_asked_length_and_differ() -> None:
    assert len(random_bytes(32)) == 32
    assert random_bytes(32) != random_bytes(32)
