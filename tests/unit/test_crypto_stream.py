"""The keystream against NIST's own example."""

import pytest

from cloister.crypto.stream import keystream
from cloister.errors import Misuse

# NIST SP 800-38A, F.5.5 (CTR-AES256.Encrypt): key, first counter block, plaintext and ciphertext of four blocks.
KEY = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
COUNTER = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
PLAIN = bytes.fromhex(
    "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
    "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
)
CIPHER = bytes.fromhex(
    "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
    "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
)


def test_the_stream_is_nist_s():
    assert bytes(a ^ b for a, b in zip(keystream(KEY, COUNTER, len(PLAIN)), PLAIN, strict=True)) == CIPHER


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 1000])
def test_a_shorter_stream_is_the_beginning_of_a_longer_one(length):
    assert keystream(KEY, COUNTER, length) == keystream(KEY, COUNTER, 1000)[:length]


@pytest.mark.parametrize(
    ("key", "nonce", "length"),
    [(KEY[:31], COUNTER, 1), (KEY, COUNTER[:15], 1), (KEY, COUNTER, -1), (KEY, COUNTER, 1 << 39)],
)
def test_other_sizes_are_refused(key, nonce, length):
    with pytest.raises(Misuse) as caught:
        keystream(key, nonce, length)
    assert caught.value.code == "stream.size"
