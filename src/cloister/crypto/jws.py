"""JSON Web Signatures that somebody else made (RFC 7515 compact): ES256, ES384, EdDSA with Ed25519.

The key, and with it the algorithm, comes from whoever pinned it. A header is the signer's word about itself: its
``alg`` must agree with the pin, and its ``jwk``, ``x5c``, ``jku`` and ``kid`` are never looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from ..errors import Malformed, Untrusted
from .canonical import parse_json
from .framing import sha256
from .jwe import unb64url
from .signatures import ecdsa_public_der, raw_ecdsa, verify_ed25519, verify_hardware_signature

__all__ = ["JWS_ALGORITHMS", "JwsKey", "verify_jws"]

JWS_ALGORITHMS: Final = ("ES256", "ES384", "EdDSA")
_CURVES: Final = {"ES256": ("P-256", "sha256", 32), "ES384": ("P-384", "sha384", 48)}
_MAX_HEADER = 32 * 1024  # certificates may stand in it, unread


@dataclass(frozen=True)
class JwsKey:
    """A pinned key. ``public``: a SubjectPublicKeyInfo in DER for ES256 and ES384, 32 raw bytes for EdDSA."""

    algorithm: str
    public: bytes

    @classmethod
    def from_jwk(cls, jwk: Any, algorithm: str) -> JwsKey:
        """The key of a public JWK (RFC 7518 §6.2, RFC 8037 §2) that is to sign with ``algorithm``. Raises Malformed."""
        if not isinstance(jwk, dict) or algorithm not in JWS_ALGORITHMS or "d" in jwk:
            raise Malformed("jws.key", "The key is not a public JWK for ES256, ES384 or EdDSA.")
        if algorithm == "EdDSA":
            kind, sizes = {"crv": "Ed25519", "kty": "OKP"}, {"x": 32}
        else:
            curve, _, size = _CURVES[algorithm]
            kind, sizes = {"crv": curve, "kty": "EC"}, {"x": size, "y": size}
        parts = {name: unb64url(jwk.get(name)) for name in sizes}
        if any(jwk.get(name) != value for name, value in kind.items()) or jwk.get("alg", algorithm) != algorithm:
            raise Malformed("jws.key", "The key is of another kind than its algorithm signs with.")
        if any(len(parts[name]) != size for name, size in sizes.items()):
            raise Malformed("jws.key", "A number of the JWK does not have the size of its curve.")
        public = parts["x"] if algorithm == "EdDSA" else ecdsa_public_der(kind["crv"], parts["x"], parts["y"])
        return cls(algorithm, public)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of ``public``, hex."""
        return sha256(self.public).hex()

    def verify(self, message: bytes, signature: bytes) -> None:
        """Raises Untrusted if the signature does not hold, Malformed for one of another size."""
        if self.algorithm == "EdDSA":
            return verify_ed25519(self.public, message, signature)
        _, hash_name, size = _CURVES[self.algorithm]
        if len(signature) != 2 * size:  # RFC 7518 §3.4: r ‖ s, each as long as the curve's order
            raise Malformed("jws.signature", "A signature does not have the size of its curve.")
        return verify_hardware_signature(self.public, message, raw_ecdsa(signature), hash_name=hash_name)


def verify_jws(token: str, key: JwsKey, *, limit: int) -> bytes:
    """The payload of a compact JWS that ``key`` signed. Raises Malformed for what is none, or is longer than ``limit``
    characters; Untrusted("jws.algorithm") where the header names another algorithm than the pin; Untrusted if the
    signature does not hold."""
    parts = token.split(".") if isinstance(token, str) and len(token) <= limit else []
    if len(parts) != 3:
        raise Malformed("jws.form", f"The text is not a signed token of at most {limit} characters.")
    header = parse_json(unb64url(parts[0]), limit=_MAX_HEADER)
    if not isinstance(header, dict):
        raise Malformed("jws.form", "The token's header is not an object.")
    if header.get("alg") != key.algorithm:
        raise Untrusted("jws.algorithm", f"The token is not signed with {key.algorithm}, which is pinned.")
    if "crit" in header or "b64" in header:
        # RFC 7515 §4.1.11: who doesn't know a critical extension refuses. RFC 7797's would change what is signed.
        raise Untrusted("jws.critical", "The token needs an extension that is not known here.")
    key.verify(f"{parts[0]}.{parts[1]}".encode(), unb64url(parts[2]))
    return unb64url(parts[1])
