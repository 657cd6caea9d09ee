"""Keys to which nothing can be encrypted: found out before anything is logged, or else the log tells of keys that never
went out."""

from __future__ import annotations

from typing import Any

import pytest

from cloister.crypto.jwe import RSA_OAEP, b64url
from cloister.errors import Malformed
from tests.broker_world import HPKE, World, nothing_granted

pytest_plugins = ["tests.broker_fixtures"]


class Public:
    """The public half of a key that nobody has."""

    def __init__(self, public: bytes) -> None:
        self.public = public


class Jwk:
    def __init__(self, **numbers: int) -> None:
        self.public_jwk: dict[str, Any] = {"alg": RSA_OAEP, "kty": "RSA"}
        for name, value in numbers.items():
            self.public_jwk[name] = b64url(value.to_bytes((value.bit_length() + 7) // 8, "big"))


@pytest.mark.parametrize(
    "public",
    [
        HPKE.public[:-32] + bytes(32),  # a point of low order: every shared secret would be zero
        HPKE.public[:-32] + b"\x01" + bytes(31),
        b"\xff" * 1184 + HPKE.public[-32:],  # coefficients beyond ML-KEM's modulus
        HPKE.public[:-1],
        HPKE.public + b"\x00",
        b"",
    ],
)
def test_a_knock_with_an_hpke_key_that_is_none(calm: World, public: bytes) -> None:
    workload = calm.workload(hpke=Public(public))
    with nothing_granted(calm.hospital), pytest.raises(Malformed) as caught:
        calm.hospital.broker.releases.challenge(workload.request())
    assert caught.value.code == "hpke.public"


@pytest.mark.parametrize(
    "jwk",
    [
        Jwk(n=(1 << 2047) | (1 << 2000), e=65537),  # even
        Jwk(n=(1 << 2047) | 1, e=3),
        Jwk(n=(1 << 2047) | 1, e=1),
        Jwk(n=(1 << 2047) | 1, e=65536),
    ],
)
def test_an_attestation_of_an_rsa_key_that_is_none(calm: World, jwk: Jwk) -> None:
    workload, broker = calm.workload(jwe=jwk), calm.hospital.broker
    size = len(calm.hospital.log())
    cookie, challenge = broker.releases.challenge(workload.request())
    with nothing_granted(calm.hospital), pytest.raises(Malformed) as caught:
        broker.releases.attest(cookie, workload.attestation(challenge["nonce"]))
    assert caught.value.code == "jwe.key"
    assert [facts.kind for facts in calm.hospital.log()[size:]] == ["attest.refused"]
