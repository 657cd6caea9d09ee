"""The launch measurement that an SEV-SNP guest will report, computed from what it is started with.

Sources: AMD's SEV-SNP Firmware ABI, 8.17.2 (PAGE_INFO and the digest of pages), AMD64 APM volume 2, table B-4 (VMSA),
QEMU's hashes table for a kernel that is started directly, OVMF's SEV metadata. What a hypervisor chooses enters, too:
the number and type of virtual CPUs, and their state at reset, which differs between hypervisors.
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass
from typing import Final

from ...errors import Malformed, Misuse
from ..firmware import PAGE, at_end, bad, guid_table

__all__ = ["CPU_TYPES", "HYPERVISORS", "DirectKernel", "SnpGuest", "launch_digest"]

_HASHES_TABLE: Final = "7255371f-3a3b-4b04-927b-1da6efa8d454"
_RESET_BLOCK: Final = "00f771de-1a7e-4fcb-890e-68c77e2fb44e"
_METADATA: Final = "dc886566-984a-4798-a75e-5585a7bf67cc"
_NORMAL, _VMSA, _ZERO, _SECRETS, _CPUID = 1, 2, 3, 5, 6  # page types, ABI table 66
_SEC_MEM, _SEC_SECRETS, _SEC_CPUID, _SEC_SVSM_CAA, _SEC_HASHES = 1, 2, 3, 4, 0x10
_MOST_SECTIONS: Final = 64
_MOST_ZEROS: Final = 64 * 1024 * 1024
_VMSA_GPA: Final = 0xFFFFFFFFF000
_BSP_RESET: Final = 0xFFFFFFF0
_FOUR_GIB: Final = 1 << 32
MAX_VCPUS: Final = 512


@dataclass(frozen=True)
class _Reset:
    """What hypervisors do differently when they make a CPU: attributes of segments, registers, order of pages."""

    boot_code: int = 0x9B
    stack: int = 0x93
    task: int = 0x8B
    pat: int = 0x7040600070406
    rdx: int | None = 0x600  # None: the CPU's signature
    mxcsr: int = 0
    x87: int = 0
    cpuid_last: bool = False
    memory: int = 3  # page type of the early memory: zero, or not measured


HYPERVISORS: Final[dict[str, _Reset]] = {
    "qemu": _Reset(rdx=None, mxcsr=0x1F80, x87=0x37F),
    "ec2": _Reset(boot_code=0x9A, stack=0x92, task=0x83, cpuid_last=True),
    "gce": _Reset(pat=0x00070106, memory=4),
}


def _signature(family: int, model: int, stepping: int) -> int:
    """CPUID Fn0000_0001 EAX (AMD publication 25481)."""
    low, high = min(family, 15), max(family - 15, 0)
    return high << 20 | (model >> 4) << 16 | low << 8 | (model & 15) << 4 | stepping


CPU_TYPES: Final[dict[str, int]] = {
    "EPYC": _signature(23, 1, 2),
    "EPYC-v4": _signature(23, 1, 2),
    "EPYC-Rome": _signature(23, 49, 0),
    "EPYC-Milan": _signature(25, 1, 1),
    "EPYC-Milan-v2": _signature(25, 1, 1),
    "EPYC-Genoa": _signature(25, 17, 0),
    "EPYC-Turin": _signature(26, 0, 0),
}
"""QEMU's CPU models that can run it, with what CPUID answers at reset."""


@dataclass(frozen=True)
class DirectKernel:
    """A kernel that the firmware starts directly: SHA-256 of the kernel and of the initrd, and the command line."""

    kernel: bytes
    initrd: bytes
    cmdline: str

    def table(self) -> bytes:
        """QEMU's table of hashes: GUID, length and hash of each, padded to 16 bytes."""
        line = hashlib.sha256(self.cmdline.encode() + b"\0").digest()
        entries = (
            ("97d02dd8-bd20-4c94-aa78-e7714d36ab2a", line),
            ("44baf731-3a2f-4bd7-9af1-41e29169781d", self.initrd),
            ("4de79437-abd2-427f-b835-d5b172d2045b", self.kernel),
        )
        body = b"".join(_guid(guid) + (50).to_bytes(2, "little") + digest for guid, digest in entries)
        table = _guid("9438d606-4f22-4cc9-b479-a793d411fd21") + (18 + len(body)).to_bytes(2, "little") + body
        return table + bytes(-len(table) % 16)


def _guid(text: str) -> bytes:
    return uuid.UUID(text).bytes_le


@dataclass(frozen=True)
class SnpGuest:
    """What a guest is started with. ``cpu``: one of ``CPU_TYPES``; ``features``: of the VMSA, 1 for SNP alone.
    ``hypervisor``: one of ``HYPERVISORS``."""

    firmware: bytes
    vcpus: int
    cpu: str
    kernel: DirectKernel | None = None
    hypervisor: str = "qemu"
    features: int = 1


class _Digest:
    """The launch digest as the secure processor extends it, page by page (ABI 8.17.2)."""

    def __init__(self) -> None:
        self.value = bytes(48)

    def _extend(self, kind: int, gpa: int, contents: bytes) -> None:
        info = (
            self.value + contents + (0x70).to_bytes(2, "little") + bytes([kind]) + bytes(5) + gpa.to_bytes(8, "little")
        )
        self.value = hashlib.sha384(info).digest()

    def pages(self, kind: int, gpa: int, data: bytes) -> None:
        for offset in range(0, len(data), PAGE):
            self._extend(kind, gpa + offset, hashlib.sha384(data[offset : offset + PAGE]).digest())

    def empty(self, kind: int, gpa: int, size: int = PAGE) -> None:
        for offset in range(0, size, PAGE):
            self._extend(kind, gpa + offset, bytes(48))

    def vcpu(self, page: bytes) -> None:
        self._extend(_VMSA, _VMSA_GPA, hashlib.sha384(page).digest())


def launch_digest(guest: SnpGuest) -> bytes:
    """48 bytes: the report's MEASUREMENT. Raises Malformed for firmware that can't be measured so, Misuse for a CPU
    type, hypervisor or number that is not known here."""
    known = guest.cpu in CPU_TYPES and guest.hypervisor in HYPERVISORS
    if not known or not 1 <= guest.vcpus <= MAX_VCPUS or not 0 <= guest.features < 1 << 64:
        raise Misuse(
            "launch.guest",
            f"Give 1 to {MAX_VCPUS} virtual CPUs of a type among {', '.join(CPU_TYPES)}, on qemu, ec2 or gce.",
        )
    reset = HYPERVISORS[guest.hypervisor]
    table = guid_table(guest.firmware)
    digest = _Digest()
    digest.pages(_NORMAL, _FOUR_GIB - len(guest.firmware), guest.firmware)
    sections = _sections(guest.firmware, table)
    hashes = None if guest.kernel is None else _hashes_page(table, guest.kernel)
    for gpa, size, kind in sections:
        _section(digest, gpa, size, kind, hashes, reset)
    if reset.cpuid_last:
        for gpa, _, kind in sections:
            if kind == _SEC_CPUID:
                digest.empty(_CPUID, gpa)
    if hashes is not None and not any(kind == _SEC_HASHES for _, _, kind in sections):
        raise Malformed(
            "launch.kernel", "The firmware does not measure a kernel that is started directly; use another."
        )
    if _RESET_BLOCK not in table and guest.vcpus > 1:
        raise bad("does not say where further CPUs start")
    start = int.from_bytes(table.get(_RESET_BLOCK, b"")[:4], "little")
    pages = [_vmsa(eip, guest, reset) for eip in (_BSP_RESET, start)]
    for number in range(guest.vcpus):
        digest.vcpu(pages[min(number, 1)])
    return digest.value


def _sections(image: bytes, table: dict[str, bytes]) -> list[tuple[int, int, int]]:
    """(address, size, kind) of each section of the SEV metadata: "ASEV", length, version 1, count, the sections."""
    if _METADATA not in table:
        raise bad("has no metadata for SEV-SNP")
    start = at_end(image, table[_METADATA], 16)
    head = image[start : start + 16]
    count = int.from_bytes(head[12:16], "little")
    if head[:4] != b"ASEV" or head[8:12] != b"\1\0\0\0" or not 0 < count <= _MOST_SECTIONS:
        raise bad("has metadata for SEV-SNP of another form")
    body = image[start + 16 : start + 16 + 12 * count]
    if len(body) != 12 * count:
        raise bad("points outside itself")
    words = [int.from_bytes(body[i : i + 4], "little") for i in range(0, len(body), 4)]
    sections = [(words[i], words[i + 1], words[i + 2]) for i in range(0, len(words), 3)]
    if sum(size for _, size, _ in sections) > _MOST_ZEROS or any(
        gpa % PAGE or size % PAGE for gpa, size, _ in sections
    ):
        raise bad("has metadata for SEV-SNP of another form")
    return sections


def _section(digest: _Digest, gpa: int, size: int, kind: int, hashes: bytes | None, reset: _Reset) -> None:
    if kind in (_SEC_MEM, _SEC_SVSM_CAA):
        digest.empty(reset.memory if kind == _SEC_MEM else _ZERO, gpa, size)
    elif kind == _SEC_SECRETS:
        digest.empty(_SECRETS, gpa)
    elif kind == _SEC_CPUID:
        if not reset.cpuid_last:
            digest.empty(_CPUID, gpa)
    elif kind == _SEC_HASHES:
        if hashes is None:
            digest.empty(_ZERO, gpa, size)
        elif size == PAGE:
            digest.pages(_NORMAL, gpa, hashes)
        else:
            raise bad("has metadata for SEV-SNP of another form")
    else:
        raise bad("has a section of a kind that is not known here")


def _hashes_page(table: dict[str, bytes], kernel: DirectKernel) -> bytes:
    entry = table.get(_HASHES_TABLE, b"")
    offset = int.from_bytes(entry[:4], "little") % PAGE
    content = kernel.table()
    if len(entry) < 4 or offset + len(content) > PAGE:
        raise bad("has no place for the hashes of a kernel that is started directly")
    return bytes(offset) + content + bytes(PAGE - offset - len(content))


def _segment(selector: int, attributes: int, base: int = 0) -> bytes:
    return (
        selector.to_bytes(2, "little")
        + attributes.to_bytes(2, "little")
        + (0xFFFF).to_bytes(4, "little")
        + base.to_bytes(8, "little")
    )


def _vmsa(eip: int, guest: SnpGuest, reset: _Reset) -> bytes:
    """A CPU's save area as the hypervisor makes it at reset; offsets are those of APM volume 2, table B-4."""
    page = bytearray(PAGE)
    segments = (
        _segment(0, 0x93),
        _segment(0xF000, reset.boot_code if eip == _BSP_RESET else 0x9B, eip & 0xFFFF0000),
        _segment(0, reset.stack),
        *[_segment(0, 0x93)] * 3,
        _segment(0, 0),  # GDTR
        _segment(0, 0x82),  # LDTR
        _segment(0, 0),  # IDTR
        _segment(0, reset.task),
    )
    page[0 : 16 * len(segments)] = b"".join(segments)
    registers = {
        0xD0: 0x1000,  # EFER.SVME, which KVM sets
        0x148: 0x40,  # CR4.MCE, likewise
        0x158: 0x10,  # CR0
        0x160: 0x400,  # DR7
        0x168: 0xFFFF0FF0,  # DR6
        0x170: 0x2,  # RFLAGS
        0x178: eip & 0xFFFF,  # RIP
        0x268: reset.pat,
        0x310: CPU_TYPES[guest.cpu] if reset.rdx is None else reset.rdx,
        0x3B0: guest.features,
        0x3E8: 0x1,  # XCR0
        0x408: reset.mxcsr,
        0x410: reset.x87,
    }
    for offset, value in registers.items():
        page[offset : offset + 8] = value.to_bytes(8, "little")
    return bytes(page)
