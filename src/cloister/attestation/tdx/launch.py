"""MRTD, the build-time measurement of a TDX guest, computed from the firmware (TDVF) that it is started with.

Sources: Intel's TDX Module Base Architecture Specification, section on measurement (TDH.MEM.PAGE.ADD and TDH.MR.EXTEND
as they enter MRTD), and the TDVF Design Guide's metadata, to which an entry in OVMF's table points. The run-time
registers are not computed here: RTMR0 depends on tables that the hypervisor makes, so they are taken from a machine
that was looked at.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final, Protocol

from ..firmware import PAGE, at_end, bad, guid_table

__all__ = ["mrtd"]

_METADATA: Final = "e47a6535-984a-4798-865e-4685a7bf8ec2"
_HEAD, _SECTION = 16, 32
_MOST_SECTIONS: Final = 64
_MOST_MEMORY: Final = 64 * 1024 * 1024
_EXTEND, _AUGMENT = 1, 2  # attributes: the content is measured; the page is added later, and not measured
_CHUNK: Final = 256


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


@dataclass(frozen=True)
class _Section:
    offset: int
    raw: int
    address: int
    size: int
    attributes: int


def mrtd(firmware: bytes, *, two_passes: bool = False) -> bytes:
    """48 bytes. ``two_passes``: the hypervisor adds all pages of a section before it measures them, as kernels with
    Intel's early patches do; Linux 6.16 and later measure each page when it is added. Raises Malformed.
    """
    digest = hashlib.sha384()
    for section in _sections(firmware):
        if section.attributes & (_EXTEND | _AUGMENT) == _AUGMENT:
            continue  # added after the launch, however large it is
        pages = range(0, section.size, PAGE)
        if two_passes:
            for page in pages:
                _add(digest, section, page)
        for page in pages:
            if not two_passes:
                _add(digest, section, page)
            if section.attributes & _EXTEND:
                _extend(digest, section, page, firmware)
    return digest.digest()


def _add(digest: _Hash, section: _Section, page: int) -> None:
    if not section.attributes & _AUGMENT:
        digest.update(_record(b"MEM.PAGE.ADD", section.address + page))


def _extend(digest: _Hash, section: _Section, page: int, firmware: bytes) -> None:
    for at in range(page, page + PAGE, _CHUNK):
        digest.update(_record(b"MR.EXTEND", section.address + at))
        data = (
            firmware[section.offset + at : section.offset + min(at + _CHUNK, section.raw)] if at < section.raw else b""
        )
        digest.update(data.ljust(_CHUNK, b"\0"))


def _record(name: bytes, address: int) -> bytes:
    return (name.ljust(16, b"\0") + address.to_bytes(8, "little")).ljust(128, b"\0")


def _sections(image: bytes) -> list[_Section]:
    """The metadata: "TDVF", length, version 1, count, and 32 bytes for each section."""
    table = guid_table(image)
    if _METADATA not in table:
        raise bad("has no metadata for TDX")
    start = at_end(image, table[_METADATA], _HEAD)
    head = image[start : start + _HEAD]
    length, count = (int.from_bytes(head[i : i + 4], "little") for i in (4, 12))
    if head[:4] != b"TDVF" or head[8:12] != b"\1\0\0\0" or not 0 < count <= _MOST_SECTIONS:
        raise bad("has metadata for TDX of another form")
    body = image[start + _HEAD : start + _HEAD + count * _SECTION]
    if len(body) != count * _SECTION or length != _HEAD + len(body):
        raise bad("has metadata for TDX of another form")
    sections = [_section(body[i : i + _SECTION]) for i in range(0, len(body), _SECTION)]
    measured = sum(s.size for s in sections if not s.attributes & _AUGMENT or s.attributes & _EXTEND)
    fits = all(s.offset + s.raw <= len(image) and s.raw <= s.size for s in sections)
    if measured > _MOST_MEMORY or not fits or any(s.address % PAGE or s.size % PAGE for s in sections):
        raise bad("has metadata for TDX of another form")
    return sections


def _section(raw: bytes) -> _Section:
    def number(start: int, size: int) -> int:
        return int.from_bytes(raw[start : start + size], "little")

    if number(28, 4) & ~(_EXTEND | _AUGMENT) or number(8, 8) + number(16, 8) > 1 << 52:
        raise bad("has metadata for TDX of another form")
    return _Section(number(0, 4), number(4, 4), number(8, 8), number(16, 8), number(28, 4))
