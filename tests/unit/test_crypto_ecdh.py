"""The sender's half of ECDH on P-256."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from cloister.crypto.ecdh import POINT_SIZE, check_point, ecdh_send
from cloister.errors import Malformed


def pair() -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    private = ec.generate_private_key(ec.SECP256R1())
    encoding, form = serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    return private, private.public_key().public_bytes(encoding, form)


def test_the_holder_of_the_key_gets_the_same_secret() -> None:
    private, public = pair()
    ephemeral, shared = ecdh_send(public)
    point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), ephemeral)
    assert private.exchange(ec.ECDH(), point) == shared
    assert (len(ephemeral), len(shared)) == (POINT_SIZE, 32)
    check_point(ephemeral)


def test_every_message_has_its_own_secret() -> None:
    _, public = pair()
    made = {ecdh_send(public) for _ in range(4)}
    assert len(made) == len({shared for _, shared in made}) == 4


def test_compressed_points_and_points_of_other_curves_are_refused() -> None:
    private, public = pair()
    encoding = serialization.Encoding.X962
    compressed = private.public_key().public_bytes(encoding, serialization.PublicFormat.CompressedPoint)
    other = ec.generate_private_key(ec.SECP256K1()).public_key()
    foreign = other.public_bytes(encoding, serialization.PublicFormat.UncompressedPoint)
    for wrong in (compressed, foreign, public[:-1], public + b"\0", b"", b"\0", b"\x04" + bytes(64)):
        for refuse in (check_point, ecdh_send):
            with pytest.raises(Malformed) as info:
                refuse(wrong)
            assert info.value.code == "key.point"


@given(st.binary(min_size=64, max_size=64))
def test_points_off_the_curve_are_refused(coordinates: bytes) -> None:
    with pytest.raises(Malformed):
        check_point(b"\x04" + coordinates)
