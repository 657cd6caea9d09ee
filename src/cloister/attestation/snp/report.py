"""ATTESTATION_REPORT of AMD SEV-SNP, versions 2 to 5 (AMD 56860, SEV Secure Nested Paging Firmware ABI, chapter 7).

1,184 bytes, integers little-endian. What each version has:

| version | in the ABI | new |
|---|---|---|
| 2 | to 1.55 | |
| 3 | 1.56 | CPUID family, model and stepping at 188h |
| 4 | not published | nothing that is public |
| 5 | 1.58 | mitigation vectors at 1F8h and 200h |

All that a version reserves must be zero, or the report is refused. The bits of guest policy, platform info and key
information are those of ABI 1.58 whatever the version: firmware of every line got some of them in its own updates, so a
bit's age can't be told from the version. Bits that 1.58 doesn't have are refused: nobody here knows what they allow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from ...errors import Malformed
from ..reader import Reader

__all__ = [
    "HOST_REQUESTED",
    "PLATFORM_BITS",
    "POLICY_BITS",
    "SIGNED",
    "SIZE",
    "VERSIONS",
    "Report",
    "flags",
    "parse_report",
]

SIZE: Final = 0x4A0
SIGNED: Final = 0x2A0
"""Bytes from the start that the signature covers."""
VERSIONS: Final = range(2, 6)
HOST_REQUESTED: Final = 0xFFFF_FFFF
"""The VMPL of a report that the host asked for, not the guest."""

# Guest policy: bits 0 to 15 are the least ABI version, bit 17 is always one.
_POLICY_ONE: Final = 17
POLICY_BITS: Final = {
    "smt": 16,
    "migrate_ma": 18,
    "debug": 19,
    "single_socket": 20,
    "cxl": 21,
    "aes_256_xts": 22,
    "rapl_disabled": 23,
    "ciphertext_hiding": 24,
    "page_swap_disabled": 25,
}
PLATFORM_BITS: Final = {
    "smt": 0,
    "tsme": 1,
    "ecc": 2,
    "rapl_disabled": 3,
    "ciphertext_hiding": 4,
    "alias_check": 5,
    "iommu_write_safe": 6,
    "tio": 7,
}
_SIGNING_KEYS: Final = {0: "vcek", 1: "vlek", 7: "none"}
_ECDSA_P384_SHA384: Final = 1
_CPUID_SINCE: Final = 3
_MITIGATIONS_SINCE: Final = 5
_HALF: Final = 72  # bytes of r, and of s; P-384 fills 48


@dataclass(frozen=True)
class Report:
    """A parsed report. Nothing in it is true before its signature has been verified.

    TCB versions are 8 raw bytes, whose meaning depends on the product (``products.split_tcb``). Firmware versions are
    (major, minor, build). ``cpuid`` is (family, model, stepping), None before version 3; mitigations are bit masks,
    None before version 5. ``signature`` is r ‖ s, big-endian, 96 bytes, over ``signed``.
    """

    version: int
    guest_svn: int
    policy: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    current_tcb: bytes
    platform: int
    author_key: bool
    mask_chip_key: bool
    signing_key: str
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    reported_tcb: bytes
    cpuid: tuple[int, int, int] | None
    chip_id: bytes
    committed_tcb: bytes
    current_version: tuple[int, int, int]
    committed_version: tuple[int, int, int]
    launch_tcb: bytes
    launch_mitigations: int | None
    current_mitigations: int | None
    signed: bytes = field(repr=False)
    signature: bytes = field(repr=False)


def flags(value: int, bits: dict[str, int]) -> dict[str, bool]:
    """The named bits of ``value``."""
    return {name: bool(value >> bit & 1) for name, bit in bits.items()}


def parse_report(data: bytes) -> Report:
    """Read exactly one report. Raises Malformed: ``snp.version`` for another version, else ``snp.structure``."""
    reader = Reader(data, "SEV-SNP report", limit=SIZE, order="little", code="snp.structure")
    version = reader.uint(4)
    if version not in VERSIONS:
        raise Malformed("snp.version", "A SEV-SNP report must be of version 2 to 5; this one is of another.")
    guest_svn = reader.uint(4)
    policy = _policy(reader)
    family_id, image_id = reader.take(16), reader.take(16)
    vmpl = reader.one_of(4, (0, 1, 2, 3, HOST_REQUESTED))
    reader.one_of(4, (_ECDSA_P384_SHA384,))
    current_tcb = reader.take(8)
    platform = _known(reader, 8, sum(1 << bit for bit in PLATFORM_BITS.values()))
    author_key, mask_chip_key, signing_key = _key_information(reader)
    reader.zeros(4)
    report_data, measurement, host_data = reader.take(64), reader.take(48), reader.take(32)
    id_key_digest, author_key_digest = reader.take(48), reader.take(48)
    report_id, report_id_ma = reader.take(32), reader.take(32)
    reported_tcb = reader.take(8)
    cpuid = (reader.uint(1), reader.uint(1), reader.uint(1)) if version >= _CPUID_SINCE else None
    reader.zeros(0x1A0 - reader.at)
    chip_id, committed_tcb = reader.take(64), reader.take(8)
    current_version, committed_version = _firmware(reader), _firmware(reader)
    launch_tcb = reader.take(8)
    mitigations = (reader.uint(8), reader.uint(8)) if version >= _MITIGATIONS_SINCE else (None, None)
    reader.zeros(SIGNED - reader.at)
    signature = _half(reader) + _half(reader)
    reader.zeros(SIZE - reader.at)
    return Report(
        version=version,
        guest_svn=guest_svn,
        policy=policy,
        family_id=family_id,
        image_id=image_id,
        vmpl=vmpl,
        current_tcb=current_tcb,
        platform=platform,
        author_key=author_key,
        mask_chip_key=mask_chip_key,
        signing_key=signing_key,
        report_data=report_data,
        measurement=measurement,
        host_data=host_data,
        id_key_digest=id_key_digest,
        author_key_digest=author_key_digest,
        report_id=report_id,
        report_id_ma=report_id_ma,
        reported_tcb=reported_tcb,
        cpuid=cpuid,
        chip_id=chip_id,
        committed_tcb=committed_tcb,
        current_version=current_version,
        committed_version=committed_version,
        launch_tcb=launch_tcb,
        launch_mitigations=mitigations[0],
        current_mitigations=mitigations[1],
        signed=data[:SIGNED],
        signature=signature,
    )


def _policy(reader: Reader) -> int:
    known = 0xFFFF | 1 << _POLICY_ONE | sum(1 << bit for bit in POLICY_BITS.values())
    policy = _known(reader, 8, known)
    if not policy >> _POLICY_ONE & 1:
        raise reader.bad("has a guest policy without the bit that is always one")
    return policy


def _key_information(reader: Reader) -> tuple[bool, bool, str]:
    """AUTHOR_KEY_EN, MASK_CHIP_KEY and SIGNING_KEY, in bits 0, 1 and 2 to 4."""
    value = _known(reader, 4, 0x1F)
    signing_key = _SIGNING_KEYS.get(value >> 2)
    if signing_key is None:
        raise reader.bad("names a signing key that is reserved")
    return bool(value & 1), bool(value & 2), signing_key


def _firmware(reader: Reader) -> tuple[int, int, int]:
    build, minor, major = reader.uint(1), reader.uint(1), reader.uint(1)
    reader.zeros(1)
    return major, minor, build


def _half(reader: Reader) -> bytes:
    """r or s, big-endian. Bytes beyond the size of the curve must be zero: one signature, one encoding."""
    number = reader.take(48)
    reader.zeros(_HALF - 48)
    return number[::-1]


def _known(reader: Reader, size: int, mask: int) -> int:
    """An integer in which no bit outside of ``mask`` is set."""
    value = reader.uint(size)
    if value & ~mask:
        raise reader.bad("has reserved bits that are set")
    return value
