"""TPM 2.0 structures, read by hand: TPMT_PUBLIC, TPMT_SIGNATURE and TPMS_ATTEST of a quote.

Source: TCG TPM 2.0 Library, Part 2 (Structures), sections named at each type. The reader is strict, total and
bounded: it accepts only what the verifier may rely on, every accepted input encodes to the same bytes again,
and everything else raises Malformed. The owner's side needs no TPM software stack for this.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from ...crypto.signatures import ecdsa_public_der, rsa_public_der
from ...errors import Malformed
from .wire import TpmReader, der_integers, sized, uint
from .wire import encode_name as _encode_name

__all__ = ["Attest", "PcrSelection", "PublicArea", "Signature", "parse_attest", "parse_public", "parse_signature"]

# Part 2 §6.3 TPM_ALG_ID, §6.4 TPM_ECC_CURVE, §6.2 TPM_GENERATED, §6.9 TPM_ST
ALG_RSA: Final = 0x0001
ALG_AES: Final = 0x0006
ALG_SHA256: Final = 0x000B
ALG_NULL: Final = 0x0010
ALG_RSASSA: Final = 0x0014
ALG_RSAPSS: Final = 0x0016
ALG_ECDSA: Final = 0x0018
ALG_ECC: Final = 0x0023
ALG_CFB: Final = 0x0043
_CURVE_P256: Final = 0x0003
_GENERATED: Final = 0xFF544347
_ST_QUOTE: Final = 0x8018

# Part 2 §8.3 TPMA_OBJECT
FIXED_TPM: Final = 1 << 1
ST_CLEAR: Final = 1 << 2
FIXED_PARENT: Final = 1 << 4
SENSITIVE_DATA_ORIGIN: Final = 1 << 5
USER_WITH_AUTH: Final = 1 << 6
ADMIN_WITH_POLICY: Final = 1 << 7
NO_DA: Final = 1 << 10
ENCRYPTED_DUPLICATION: Final = 1 << 11
RESTRICTED: Final = 1 << 16
DECRYPT: Final = 1 << 17
SIGN: Final = 1 << 18
_KNOWN_ATTRIBUTES: Final = (
    FIXED_TPM | ST_CLEAR | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | USER_WITH_AUTH | ADMIN_WITH_POLICY | NO_DA
    | ENCRYPTED_DUPLICATION | RESTRICTED | DECRYPT | SIGN
)  # fmt: skip

_MAX_STRUCTURE: Final = 2048
_RSA_BITS: Final = (2048, 3072, 4096)
_MAX_BANKS: Final = 16


@dataclass(frozen=True)
class PublicArea:
    """TPMT_PUBLIC (Part 2 §12.2.4) with name algorithm SHA-256: an ECC P-256 or an RSA key.

    ``symmetric_bits``: 0 for none, else AES-CFB. ``scheme``: ALG_NULL, or a signature scheme over SHA-256.
    ``unique``: for ECC the x and y coordinates (32 bytes each), for RSA the modulus alone.
    """

    algorithm: int
    attributes: int
    auth_policy: bytes
    symmetric_bits: int
    scheme: int
    rsa_bits: int
    unique: tuple[bytes, ...]

    def encode(self) -> bytes:
        """The bytes that were parsed."""
        out = uint(self.algorithm, 2) + uint(ALG_SHA256, 2) + uint(self.attributes, 4) + sized(self.auth_policy)
        if self.symmetric_bits:
            out += uint(ALG_AES, 2) + uint(self.symmetric_bits, 2) + uint(ALG_CFB, 2)
        else:
            out += uint(ALG_NULL, 2)
        out += uint(self.scheme, 2) + (b"" if self.scheme == ALG_NULL else uint(ALG_SHA256, 2))
        if self.algorithm == ALG_ECC:
            out += uint(_CURVE_P256, 2) + uint(ALG_NULL, 2)
        else:
            out += uint(self.rsa_bits, 2) + uint(0, 4)
        return out + b"".join(sized(part) for part in self.unique)

    def name(self) -> bytes:
        """Part 1 §16: nameAlg ‖ SHA-256(public area), 34 bytes."""
        return _encode_name(self.encode())

    @lru_cache(maxsize=64)  # noqa: B019 - of values, and few: a node's keys come with each piece of evidence
    def der(self) -> bytes:
        """SubjectPublicKeyInfo; Malformed if the point is not on the curve or the RSA numbers are unusable."""
        if self.algorithm == ALG_ECC:
            return ecdsa_public_der("P-256", self.unique[0], self.unique[1])
        return rsa_public_der(self.unique[0], 65537)


@lru_cache(maxsize=64)  # of at most _MAX_STRUCTURE bytes
def parse_public(data: bytes) -> PublicArea:
    """Parse a TPMT_PUBLIC strictly."""
    read = TpmReader(data, "key", _MAX_STRUCTURE)
    algorithm = read.one_of(2, (ALG_ECC, ALG_RSA))
    read.one_of(2, (ALG_SHA256,))
    attributes = read.uint(4)
    if attributes & ~_KNOWN_ATTRIBUTES:
        raise Malformed("tpm.structure", "A TPM key has attributes that are not known.")
    policy = read.tpm2b((0, 32))
    symmetric = 0
    if read.one_of(2, (ALG_NULL, ALG_AES)) == ALG_AES:
        symmetric = read.one_of(2, (128, 256))
        read.one_of(2, (ALG_CFB,))
    schemes = (ALG_NULL, ALG_ECDSA) if algorithm == ALG_ECC else (ALG_NULL, ALG_RSASSA, ALG_RSAPSS)
    scheme = read.one_of(2, schemes)
    if scheme != ALG_NULL:
        read.one_of(2, (ALG_SHA256,))
    bits = 0
    if algorithm == ALG_ECC:
        read.one_of(2, (_CURVE_P256,))
        read.one_of(2, (ALG_NULL,))
        unique: tuple[bytes, ...] = (read.tpm2b((32,)), read.tpm2b((32,)))
    else:
        bits = read.one_of(2, _RSA_BITS)
        read.one_of(4, (0,))  # Part 2 §12.2.3.5: zero stands for the exponent 65537
        unique = (read.tpm2b((bits // 8,)),)
    read.end()
    return PublicArea(algorithm, attributes, policy, symmetric, scheme, bits, unique)


@dataclass(frozen=True)
class Signature:
    """TPMT_SIGNATURE (Part 2 §11.3.4) over SHA-256. ``parts``: (r, s) for ECDSA, one string for RSA."""

    scheme: int
    parts: tuple[bytes, ...]

    def encode(self) -> bytes:
        """The bytes that were parsed."""
        return uint(self.scheme, 2) + uint(ALG_SHA256, 2) + b"".join(sized(part) for part in self.parts)

    def raw(self) -> bytes:
        """What crypto libraries expect: DER for ECDSA (RFC 3279 §2.2.3), the bare string for RSA."""
        return der_integers(*self.parts) if self.scheme == ALG_ECDSA else self.parts[0]


def parse_signature(data: bytes) -> Signature:
    """Parse a TPMT_SIGNATURE strictly."""
    read = TpmReader(data, "signature", _MAX_STRUCTURE)
    scheme = read.one_of(2, (ALG_ECDSA, ALG_RSASSA, ALG_RSAPSS))
    read.one_of(2, (ALG_SHA256,))
    if scheme == ALG_ECDSA:
        # Older TPMs drop leading zero bytes of r and s; they may not add any.
        parts: tuple[bytes, ...] = (read.scalar(32), read.scalar(32))
    else:
        parts = (read.tpm2b(tuple(bits // 8 for bits in _RSA_BITS)),)
    read.end()
    return Signature(scheme, parts)


@dataclass(frozen=True)
class PcrSelection:
    """TPMS_PCR_SELECTION (Part 2 §10.6.2): a bank and a bit map, lowest PCR in the lowest bit of the first byte."""

    bank: int
    bitmap: bytes

    def encode(self) -> bytes:
        """The bytes that were parsed."""
        return uint(self.bank, 2) + uint(len(self.bitmap), 1) + self.bitmap


@dataclass(frozen=True)
class Attest:
    """TPMS_ATTEST of type quote (Part 2 §10.12.12). ``clock`` is in milliseconds; ``safe`` says whether it can be
    relied on to have never run backwards."""

    qualified_signer: bytes
    extra_data: bytes
    clock: int
    reset_count: int
    restart_count: int
    safe: bool
    firmware: int
    selections: tuple[PcrSelection, ...]
    pcr_digest: bytes

    def encode(self) -> bytes:
        """The bytes that were parsed."""
        clock = uint(self.clock, 8) + uint(self.reset_count, 4) + uint(self.restart_count, 4) + uint(int(self.safe), 1)
        banks = uint(len(self.selections), 4) + b"".join(s.encode() for s in self.selections)
        head = uint(_GENERATED, 4) + uint(_ST_QUOTE, 2) + sized(self.qualified_signer) + sized(self.extra_data)
        return head + clock + uint(self.firmware, 8) + banks + sized(self.pcr_digest)


def parse_attest(data: bytes) -> Attest:
    """Parse a quote strictly.

    The magic number matters: a restricted key signs only what the TPM made itself or what doesn't begin with
    it (Part 1 §25.2), so outside data can't be passed off as a quote.
    """
    read = TpmReader(data, "quote", _MAX_STRUCTURE)
    read.one_of(4, (_GENERATED,))
    read.one_of(2, (_ST_QUOTE,))
    signer = read.tpm2b((34,))
    extra = read.tpm2b(tuple(range(65)))
    clock, resets, restarts = read.uint(8), read.uint(4), read.uint(4)
    safe = read.one_of(1, (0, 1)) == 1
    firmware = read.uint(8)
    count = read.uint(4)
    if count > _MAX_BANKS:
        raise Malformed("tpm.structure", "A TPM quote selects more PCR banks than any TPM has.")
    selections = tuple(PcrSelection(read.uint(2), read.take(read.one_of(1, (0, 1, 2, 3, 4)))) for _ in range(count))
    digest = read.tpm2b((20, 32, 48, 64))
    read.end()
    return Attest(signer, extra, clock, resets, restarts, safe, firmware, selections, digest)
