"""Endorsement keys: the templates that TPMs derive them from (TCG EK Credential Profile 2.6, annex B), and nothing
else.

An endorsement key is read only if it is one that a template gives. So its public area is fixed but for the key itself,
and what a certificate says of the key says all of it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from ...crypto.signatures import ecdsa_public_der, rsa_public_der
from ...errors import Malformed
from . import parser
from .wire import sized, uint

__all__ = ["TEMPLATES", "EndorsementKey", "Template", "parse_endorsement"]

_HASHES: Final = {"sha256": 0x000B, "sha384": 0x000C}
_CURVES: Final = {0x0003: ("P-256", 32), 0x0004: ("P-384", 48)}
_LOW: Final = 0x000300B2  # fixedTPM, fixedParent, sensitiveDataOrigin, adminWithPolicy, restricted, decrypt
_HIGH: Final = 0x000300F2  # and userWithAuth
# §B.6.2 PolicyA: TPM2_PolicySecret(endorsement hierarchy). §B.6.3 PolicyB: that, or a policy that an administrator
# sets.
_POLICY_A: Final = "837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa"
_POLICY_B: Final = "ca3d0a99a2b93906f7a3342414efcfb3a385d44cd1fd459089d19b5071c0b7a0"
_POLICY_B384: Final = "b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419cacb47ba09699646150f9fc000f3f80e12"


@dataclass(frozen=True)
class Template:
    """``size``: bits of the RSA modulus, or the ECC curve's number. ``index``: where a TPM keeps the certificate."""

    name: str
    algorithm: int
    size: int
    hash_name: str
    attributes: int
    policy: bytes
    symmetric_bits: int
    index: int

    @property
    def by_policy(self) -> bool:
        """Whether the key is used by policy alone; else also with its own password, which is empty."""
        return self.attributes == _LOW

    def prefix(self) -> bytes:
        """The TPMT_PUBLIC up to the key itself."""
        head = (
            uint(self.algorithm, 2) + uint(_HASHES[self.hash_name], 2) + uint(self.attributes, 4) + sized(self.policy)
        )
        head += uint(parser.ALG_AES, 2) + uint(self.symmetric_bits, 2) + uint(parser.ALG_CFB, 2)
        head += uint(parser.ALG_NULL, 2)
        if self.algorithm == parser.ALG_RSA:
            return head + uint(self.size, 2) + uint(0, 4)
        return head + uint(self.size, 2) + uint(parser.ALG_NULL, 2)

    def lengths(self) -> tuple[int, ...]:
        """Bytes of each part of the key: modulus, or x and y."""
        if self.algorithm == parser.ALG_RSA:
            return (self.size // 8,)
        return (_CURVES[self.size][1],) * 2

    def template(self) -> bytes:
        """What TPM2_CreatePrimary takes. The low range fills the key's place with zeros, the high range leaves it
        out."""
        fill = self.lengths() if self.by_policy else (0,) * len(self.lengths())
        return self.prefix() + b"".join(sized(bytes(n)) for n in fill)


def _template(
    name: str,
    algorithm: int,
    size: int,
    index: int,
    *,
    low: bool = False,
    policy: str = _POLICY_B,
    strong: bool = False,
) -> Template:
    attributes = _LOW if low else _HIGH
    hash_name, bits = ("sha384", 256) if strong else ("sha256", 128)
    return Template(name, algorithm, size, hash_name, attributes, bytes.fromhex(policy), bits, index)


TEMPLATES: Final = (
    _template("L-2", parser.ALG_ECC, 0x0003, 0x01C0000A, low=True, policy=_POLICY_A),
    _template("L-1", parser.ALG_RSA, 2048, 0x01C00002, low=True, policy=_POLICY_A),
    _template("H-2", parser.ALG_ECC, 0x0003, 0x01C00014),
    _template("H-3", parser.ALG_ECC, 0x0004, 0x01C00016, policy=_POLICY_B384, strong=True),
    _template("H-1", parser.ALG_RSA, 2048, 0x01C00012),
    _template("H-6", parser.ALG_RSA, 3072, 0x01C0001C, policy=_POLICY_B384, strong=True),
    _template("H-7", parser.ALG_RSA, 4096, 0x01C0001E, policy=_POLICY_B384, strong=True),
)
"""In the order in which a node looks for a certificate."""


@dataclass(frozen=True)
class EndorsementKey:
    """``unique``: for RSA the modulus alone, for ECC x and y."""

    template: Template
    unique: tuple[bytes, ...]

    def encode(self) -> bytes:
        """The TPMT_PUBLIC that was parsed."""
        return self.template.prefix() + b"".join(sized(part) for part in self.unique)

    def name(self) -> bytes:
        """Part 1 §16: name algorithm ‖ hash of the public area."""
        name = self.template.hash_name
        return uint(_HASHES[name], 2) + hashlib.new(name, self.encode()).digest()

    def der(self) -> bytes:
        """SubjectPublicKeyInfo; Malformed if these numbers are no key."""
        if self.template.algorithm == parser.ALG_RSA:
            return rsa_public_der(self.unique[0], 65537)
        return ecdsa_public_der(_CURVES[self.template.size][0], *self.unique)


def parse_endorsement(data: bytes) -> EndorsementKey:
    """Read a TPMT_PUBLIC that one of the templates gives; Malformed ``tpm.ek-template`` for any other."""
    for template in TEMPLATES:
        prefix = template.prefix()
        if data.startswith(prefix):
            parts: list[bytes] = []
            at = len(prefix)
            for length in template.lengths():
                if data[at : at + 2] != uint(length, 2):
                    break
                parts.append(data[at + 2 : at + 2 + length])
                at += 2 + length
            if at == len(data) and len(parts) == len(template.lengths()):
                return EndorsementKey(template, tuple(parts))
    raise Malformed("tpm.ek-template", "An endorsement key is not one that a template of the TCG's EK profile gives.")
