"""Firmware images for tests of launch measurements: pages of noise with the tables that OVMF has at its end."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from itertools import count

HASHES_TABLE = "7255371f-3a3b-4b04-927b-1da6efa8d454"
RESET_BLOCK = "00f771de-1a7e-4fcb-890e-68c77e2fb44e"
SEV_METADATA = "dc886566-984a-4798-a75e-5585a7bf67cc"
TDX_METADATA = "e47a6535-984a-4798-865e-4685a7bf8ec2"
FOOTER = "96b582de-1fb2-45f7-baea-a366c55a082d"
SNP_SECTIONS = ((0x800000, 0x3000, 1), (0x80A000, 0x1000, 2), (0x80B000, 0x1000, 3), (0x810000, 0x1000, 0x10))


def noise(size: int) -> bytes:
    out = bytearray()
    for n in count():
        if len(out) >= size:
            return bytes(out[:size])
        out += hashlib.sha256(b"firmware %d" % n).digest()
    return b""


def entry(guid: str, data: bytes) -> bytes:
    return data + (len(data) + 18).to_bytes(2, "little") + uuid.UUID(guid).bytes_le


def image(entries: Sequence[bytes], *, pages: int = 16, blob: bytes = b"", blob_at: int = 0x3000) -> bytes:
    """``blob`` lies ``blob_at`` bytes before the end, where an entry can point to."""
    data = bytearray(noise(pages * 4096))
    data[len(data) - blob_at : len(data) - blob_at + len(blob)] = blob
    body = b"".join(entries)
    table = body + (len(body) + 18).to_bytes(2, "little") + uuid.UUID(FOOTER).bytes_le
    data[len(data) - 32 - len(table) : len(data) - 32] = table
    return bytes(data)


def pointer(distance: int = 0x3000) -> bytes:
    return distance.to_bytes(4, "little")


def sev_metadata(sections: Sequence[tuple[int, int, int]] = SNP_SECTIONS) -> bytes:
    body = b"".join(value.to_bytes(4, "little") for section in sections for value in section)
    return b"ASEV" + (16 + len(body)).to_bytes(4, "little") + b"\1\0\0\0" + len(sections).to_bytes(4, "little") + body


def snp_image(sections: Sequence[tuple[int, int, int]] = SNP_SECTIONS) -> bytes:
    entries = [
        entry(HASHES_TABLE, (0x810C00).to_bytes(4, "little") + bytes(4)),
        entry(RESET_BLOCK, (0x80B004).to_bytes(4, "little")),
        entry(SEV_METADATA, pointer()),
    ]
    return image(entries, blob=sev_metadata(sections))


def tdx_metadata(sections: Sequence[tuple[int, int, int, int, int, int]]) -> bytes:
    """(data offset, raw size, address, memory size, type, attributes) each."""
    sizes = (4, 4, 8, 8, 4, 4)
    body = b"".join(v.to_bytes(n, "little") for section in sections for v, n in zip(section, sizes, strict=True))
    return b"TDVF" + (16 + len(body)).to_bytes(4, "little") + b"\1\0\0\0" + len(sections).to_bytes(4, "little") + body


TDX_SECTIONS = (
    (0x2000, 0x6000, 0xFFFF2000, 0x6000, 0, 1),  # BFV: measured
    (0x0000, 0x2000, 0xFFFF0000, 0x2000, 1, 0),  # CFV: added only
    (0, 0, 0x810000, 0x3000, 3, 0),  # temporary memory
    (0, 0, 0x809000, 0x2000, 2, 0),  # TD HOB
    (0, 0, 0x900000, 0x4000, 4, 2),  # permanent memory that is accepted later
)


def tdx_image(sections: Sequence[tuple[int, int, int, int, int, int]] = TDX_SECTIONS) -> bytes:
    return image([entry(TDX_METADATA, pointer())], blob=tdx_metadata(sections))
