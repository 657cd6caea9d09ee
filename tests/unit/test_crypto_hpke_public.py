"""Which hybrid public keys are of use: found out without encrypting, and just as encrypting would."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.crypto import HpkePrivateKey, hpke, hpke_seal
from cloister.crypto.hpke import check_hpke_public
from cloister.errors import Malformed, Untrusted

KEY = HpkePrivateKey.generate()
PQ, CLASSIC = KEY.public[:1184], KEY.public[1184:]
P = 2**255 - 19
# The points of small order on Curve25519 and their second encodings, as u coordinates.
SMALL = [
    0,
    1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
    P - 1,
    P,
    P + 1,
]


def code(public: bytes, *, seal: bool) -> str:
    try:
        if seal:
            hpke_seal(public, b"", b"")
        else:
            check_hpke_public(public)
    except Malformed as error:
        return error.code
    return "good"


@pytest.mark.parametrize("point", SMALL)
@pytest.mark.parametrize("high", [0, 1 << 255])
def test_a_point_of_small_order(point: int, high: int) -> None:
    public = PQ + (point | high).to_bytes(32, "little")
    assert code(public, seal=False) == code(public, seal=True) == "hpke.public"


@pytest.mark.parametrize("public", [b"", PQ, KEY.public[:-1], KEY.public + b"\0", b"\xff" * 1184 + CLASSIC])
def test_what_is_no_key(public: bytes) -> None:
    assert code(public, seal=False) == code(public, seal=True) == "hpke.public"


@settings(max_examples=60)
@given(st.integers(0, 8 * 1216 - 1))
def test_any_change_is_judged_alike(bit: int) -> None:
    public = bytearray(KEY.public)
    public[bit // 8] ^= 1 << bit % 8
    assert code(bytes(public), seal=False) == code(bytes(public), seal=True)


def test_a_key() -> None:
    assert code(KEY.public, seal=False) == "good"


def test_only_good_keys_are_remembered_and_few() -> None:
    hpke._read_public.cache_clear()
    assert code(KEY.public, seal=False) == code(KEY.public, seal=True) == "good"
    bad = PQ + SMALL[1].to_bytes(32, "little")
    for _ in range(3):
        assert code(bad, seal=True) == code(bad, seal=False) == "hpke.public"
    found = hpke._read_public.cache_info()
    assert (found.currsize, found.hits) == (1, 1)
    assert found.maxsize == 64


def test_what_was_remembered_for_one_key_opens_with_no_other() -> None:
    other = HpkePrivateKey.generate()
    for key, stranger in ((KEY, other), (other, KEY)):
        sealed = hpke_seal(bytearray(key.public), b"secret", b"info")  # type: ignore[arg-type]
        assert key.open(sealed, b"info") == b"secret"
        with pytest.raises(Untrusted):
            stranger.open(sealed, b"info")
