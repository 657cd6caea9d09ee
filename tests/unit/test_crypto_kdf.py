"""Key derivation against the RFCs' own vectors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.crypto import Argon2Params, argon2id, constant_time_equal, hkdf
from cloister.crypto.kdf import hmac_sha256
from cloister.errors import Malformed, Misuse

CHEAP = Argon2Params(8 * 1024, 1, 1)


def test_hkdf_rfc5869_test_case_1() -> None:
    info = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9")
    assert hkdf(b"\x0b" * 22, salt=bytes(range(13)), info=info, length=42).hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )


def test_hkdf_rfc5869_test_case_2_longer_than_one_block() -> None:
    okm = hkdf(bytes(range(0x50)), salt=bytes(range(0x60, 0xB0)), info=bytes(range(0xB0, 0x100)), length=82)
    assert okm.hex() == (
        "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09"
        "da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87"
    )


def test_hkdf_rfc5869_test_case_3_no_salt_and_no_info() -> None:
    assert hkdf(b"\x0b" * 22, info=b"", length=42).hex() == (
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    )


def test_hkdf_rfc5869_test_case_4_sha1() -> None:
    info = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9")
    assert hkdf(b"\x0b" * 11, salt=bytes(range(13)), info=info, length=42, hash_name="sha1").hex() == (
        "085a01ea1b10f36933068b56efa5ad81a4f14b822f5b091568a9cdd4f155fda2c22e422478d305f3f896"
    )


@pytest.mark.parametrize("length", [0, -1, 255 * 32 + 1])
def test_hkdf_gives_no_length_beyond_the_rfc(length: int) -> None:
    with pytest.raises(Misuse) as info:
        hkdf(b"key", info=b"", length=length)
    assert info.value.code == "hkdf.length"


@given(st.integers(1, 200))
def test_hkdf_is_a_stream(length: int) -> None:
    assert hkdf(b"key", info=b"use", length=200)[:length] == hkdf(b"key", info=b"use", length=length)


def test_hkdf_separates_uses() -> None:
    assert hkdf(b"key", info=b"one") != hkdf(b"key", info=b"two")


def test_hmac_rfc4231_test_case_2() -> None:
    assert hmac_sha256(b"Jefe", b"what do ya want for nothing?").hex() == (
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    )


def test_argon2id_known_answer() -> None:
    """The expected key is what the reference implementation in C (through argon2-cffi) gives for these inputs."""
    key = argon2id(b"passphrase", b"saltsaltsaltsalt", CHEAP)
    assert key.hex() == "6fe1db128926eac026d0aca7bb83b591f4a8a09956df240f4647dbd007fc8fab"
    assert argon2id(b"passphrase", b"saltsaltsaltsalu", CHEAP) != key
    assert argon2id(b"Passphrase", b"saltsaltsaltsalt", CHEAP) != key
    assert argon2id(b"passphrase", b"saltsaltsaltsalt", Argon2Params(8 * 1024, 2, 1)) != key


@pytest.mark.parametrize(
    "params", [(8191, 1, 1), (1024 * 1024 + 1, 1, 1), (8192, 0, 1), (8192, 17, 1), (8192, 1, 0), (8192, 1, 17)]
)
def test_argon2_costs_outside_the_range_are_refused(params: tuple[int, int, int]) -> None:
    with pytest.raises(Malformed) as info:
        argon2id(b"passphrase", bytes(16), Argon2Params(*params))
    assert info.value.code == "vault.argon2"


def test_constant_time_equal() -> None:
    assert constant_time_equal(b"a" * 32, b"a" * 32)
    assert not constant_time_equal(b"a" * 32, b"a" * 31 + b"b")
    assert not constant_time_equal(b"a", b"aa")
