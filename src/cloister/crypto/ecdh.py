"""The sender's half of ECDH on P-256, for keys whose private half lies in a device (SP 800-56A Rev. 3 §5.7.1.2)."""

from __future__ import annotations

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ..errors import Malformed

__all__ = ["POINT_SIZE", "check_point", "ecdh_send"]

POINT_SIZE = 65  # SEC 1 §2.3.3, uncompressed: 04 ‖ x ‖ y


def ecdh_send(public: bytes) -> tuple[bytes, bytes]:
    """(ephemeral public point, 65 bytes; shared secret, 32 bytes) towards the holder of ``public`` (65 bytes).

    The shared secret is the x-coordinate: not uniform, so it goes through ``hkdf`` with both points before use. The
    ephemeral private key exists only in here. Raises Malformed if ``public`` is no point of the curve.
    """
    ephemeral = ec.generate_private_key(ec.SECP256R1())
    shared = ephemeral.exchange(ec.ECDH(), _point(public))
    point = ephemeral.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    return point, shared


def check_point(public: bytes) -> None:
    """Raise Malformed unless these are a point of P-256, uncompressed.

    For a point that goes into a device together with its private key: one that is on another curve would let whoever
    chose it learn that key bit by bit, and not every device checks. P-256 has cofactor 1: no more has to be checked.
    """
    _point(public)


def _point(public: bytes) -> ec.EllipticCurvePublicKey:
    try:
        if len(public) != POINT_SIZE:  # the library would take compressed points, too: one point, one form
            raise ValueError
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), public)
    except ValueError:
        raise Malformed("key.point", "A public key is not an uncompressed point of P-256.") from None
