"""Boxes for small secrets: they open with the same key and context only."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.crypto import open_box, seal_box
from cloister.errors import Misuse, Untrusted

KEY = bytes(range(32))


@given(st.binary(max_size=200), st.binary(max_size=40))
def test_round_trip(secret: bytes, aad: bytes) -> None:
    box = seal_box(KEY, secret, aad)
    assert len(box) == 12 + len(secret) + 16
    assert open_box(KEY, box, aad) == secret


def test_nonces_are_fresh() -> None:
    assert len({seal_box(KEY, b"x", b"")[:12] for _ in range(50)}) == 50


@given(st.data())
def test_a_flipped_bit_anywhere_is_detected(data: st.DataObject) -> None:
    box, aad = bytearray(seal_box(KEY, b"thirty-two bytes of some secret!", b"context")), bytearray(b"context")
    target = data.draw(st.sampled_from([box, aad]))
    bit = data.draw(st.integers(0, len(target) * 8 - 1))
    target[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Untrusted) as info:
        open_box(KEY, bytes(box), bytes(aad))
    assert info.value.code == "aead.tag"


def test_another_key_does_not_open() -> None:
    with pytest.raises(Untrusted) as info:
        open_box(bytes(32), seal_box(KEY, b"x", b""), b"")
    assert info.value.code == "aead.tag"


@pytest.mark.parametrize("size", [0, 12, 27])
def test_too_short_a_box_is_refused(size: int) -> None:
    with pytest.raises(Untrusted) as info:
        open_box(KEY, bytes(size), b"")
    assert info.value.code == "aead.short"


@pytest.mark.parametrize("size", [0, 16, 24, 31, 33])
def test_only_256_bit_keys(size: int) -> None:
    """The library takes 16 and 24 bytes as well, and would quietly be a weaker cipher."""
    for call in (lambda: seal_box(bytes(size), b"x", b""), lambda: open_box(bytes(size), bytes(40), b"")):
        with pytest.raises(Misuse) as info:
            call()
        assert info.value.code == "aead.key"
