"""The attestation report of NVIDIA's GPUs and switches: an SPDM request, its response, and the signature over both.

SPDM 1.1 (DMTF DSP0274 1.1.0): GET_MEASUREMENTS in §10.11.1, MEASUREMENTS in §10.11.2, measurement blocks in tables 52
and 53. SPDM 1.2 signs more than the report holds (version, capabilities and algorithms, §15.1), so a 1.2 report could
not be verified on its own; NVIDIA's devices don't make any, and they are refused. What stands in the opaque data is
NVIDIA's own; the field numbers are those that its open verifiers read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from ...errors import Malformed, Untrusted
from ..reader import Reader

__all__ = ["MAX_REPORT", "MIN_SVN", "Field", "Report", "parse_report"]

MAX_REPORT: Final = 16 * 1024
"""Bytes. A report of 64 measurements has about 4,300."""
MIN_SVN: Final = 0x87
"""The value type of a security version number in opaque data that says its types."""

_VERSION_1_1: Final = 0x11
_OTHER_VERSIONS: Final = (0x10, 0x12, 0x13, 0x14)
_GET_MEASUREMENTS, _MEASUREMENTS = 0xE0, 0x60
_WITH_SIGNATURE: Final = 0x01
_ALL: Final = 0xFF
_SLOTS: Final = range(8)
_DMTF: Final = 0x01
_SIGNATURE: Final = 96
_MAX_VALUE: Final = 1024
_MAX_FIELDS: Final = 256

# Opaque data with a header: magic, profile, major and minor version, two bytes that are not used yet.
_MAGIC: Final = b"NVDAOD"
_MAX_MAJOR: Final = 2

DRIVER_VERSION, VBIOS_VERSION, NVDEC0 = 3, 6, 11
CHIP_SKU, PROJECT, PROJECT_SKU, FWID = 15, 17, 18, 20
PROTECTED_PCIE, SWITCH_PDIS, GPU_PDIS = 21, 22, 26
OPAQUE_VERSION, CHIP_INFO, FEATURE = 34, 35, 36

_PDI: Final = 8
_TOKEN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
_DRIVER: Final = re.compile(r"[0-9]{2,4}(\.[0-9]{1,4}){1,3}")
_BIOS: Final = re.compile(r"[0-9A-F]{2}(\.[0-9A-F]{2}){4}")
_MODES: Final = {0: "mpt", 1: "spt", 2: "ppcie"}
_ON, _OFF = 0xAA, 0x55


@dataclass(frozen=True)
class Field:
    """One field of the opaque data. ``kind``: its value type, 0 where the data doesn't say types."""

    kind: int
    value: bytes


@dataclass(frozen=True)
class Report:
    """A parsed report; nothing in it is true until its signature was verified.

    ``nonce``: 32 bytes, the request's. ``measurements``: by NVIDIA's index, which is SPDM's less one. ``opaque``: by
    field number. ``signed``: the bytes under ``signature`` (r ‖ s, 96 bytes).
    """

    nonce: bytes
    measurements: dict[int, bytes]
    opaque: dict[int, Field]
    signed: bytes
    signature: bytes

    def text(self, number: int) -> str | None:
        """A field that is text, NUL-padded; None where it is absent. Malformed where it isn't plain ASCII."""
        if number not in self.opaque:
            return None
        text = self.opaque[number].value.rstrip(b"\0").decode("ascii", "replace")
        if not _TOKEN.fullmatch(text):
            raise _bad("names a version or part in a way that is not understood")
        return text

    def number(self, number: int) -> int | None:
        """A field that is a little-endian number of at most 8 bytes."""
        if number not in self.opaque:
            return None
        value = self.opaque[number].value
        if not 1 <= len(value) <= 8:
            raise _bad("has a number of another size than expected")
        return int.from_bytes(value, "little")

    @property
    def driver(self) -> str | None:
        """The driver's version, as 550.90.07."""
        text = self.text(DRIVER_VERSION)
        if text is not None and not _DRIVER.fullmatch(text):
            raise _bad("names a driver version in a way that is not understood")
        return text

    @property
    def vbios(self) -> str | None:
        """The firmware's version, as 96.00.9F.00.01: upper-case hex in five pairs. GPUs give it as 8 bytes, the first
        four reversed and then the fifth; switches as text."""
        if VBIOS_VERSION not in self.opaque:
            return None
        value = self.opaque[VBIOS_VERSION].value
        if len(value) == 8:
            if any(value[5:]):
                raise _bad("names a firmware version in a way that is not understood")
            return ".".join(f"{b:02X}" for b in (value[3], value[2], value[1], value[0], value[4]))
        text = value.rstrip(b"\0").decode("ascii", "replace").upper()
        if not _BIOS.fullmatch(text):
            raise _bad("names a firmware version in a way that is not understood")
        return text

    @property
    def nvdec0(self) -> bool | None:
        """Whether the first video decoder is enabled; None where the report doesn't say."""
        return self._switch(NVDEC0)

    @property
    def mode(self) -> str | None:
        """``spt`` (one GPU passed through), ``mpt`` (several) or ``ppcie`` (only the bus protected, links to switches
        in the clear). None where the report is older than the field that says it."""
        flag = self.number(FEATURE)
        if flag is not None:
            if flag not in _MODES:
                raise _bad("names a mode that is not known")
            return _MODES[flag]
        return "ppcie" if self._switch(PROTECTED_PCIE) else None

    def pdis(self, number: int) -> tuple[str, ...]:
        """The distinct device ids (8 bytes, hex) that a field lists, without its empty places."""
        if number not in self.opaque:
            return ()
        value = self.opaque[number].value
        if len(value) % _PDI:
            raise _bad("lists device ids of another size than expected")
        found = {value[i : i + _PDI] for i in range(0, len(value), _PDI)}
        return tuple(sorted(pdi.hex() for pdi in found if any(pdi)))

    def _switch(self, number: int) -> bool | None:
        value = self.number(number)
        if value is not None and value not in (_ON, _OFF):
            raise Untrusted("nvidia.status", "A GPU reports a status that is neither on nor off, so it isn't trusted.")
        return None if value is None else value == _ON


def _bad(why: str) -> Malformed:
    return Malformed("nvidia.report", f"A GPU's report {why}; it was changed or is of an unsupported kind.")


def parse_report(data: bytes) -> Report:
    """Parse a report strictly. Raises Malformed (``nvidia.report``)."""
    reader = Reader(data, "GPU's report", limit=MAX_REPORT, order="little", code="nvidia.report")
    if data[:1] and data[0] in _OTHER_VERSIONS:
        raise Malformed(
            "nvidia.report",
            "A GPU's report is not of SPDM 1.1, and by another version's report alone its signature can't be checked; "
            "collect the evidence through the GPU's driver, which asks for 1.1.",
        )
    # GET_MEASUREMENTS: all blocks, signed; 37 bytes.
    reader.one_of(1, (_VERSION_1_1,))
    reader.one_of(1, (_GET_MEASUREMENTS,))
    reader.one_of(1, (_WITH_SIGNATURE,))
    reader.one_of(1, (_ALL,))
    nonce = reader.take(32)
    slot = reader.one_of(1, _SLOTS)
    # MEASUREMENTS.
    reader.one_of(1, (_VERSION_1_1,))
    reader.one_of(1, (_MEASUREMENTS,))
    reader.zeros(1)
    reader.one_of(1, (slot,))
    blocks = reader.uint(1)
    record = reader.sized(3, MAX_REPORT)
    reader.take(32)  # the device's own nonce: it keeps signatures apart, and says nothing to us
    opaque = reader.sized(2, MAX_REPORT)
    signed = data[: reader.at]
    signature = reader.take(_SIGNATURE)
    reader.end()
    return Report(nonce, _measurements(record, blocks), _opaque(opaque), signed, signature)


def _measurements(record: bytes, blocks: int) -> dict[int, bytes]:
    reader = Reader(record, "GPU's measurement record", limit=MAX_REPORT, order="little", code="nvidia.report")
    found: dict[int, bytes] = {}
    for _ in range(blocks):
        index = reader.uint(1)
        reader.one_of(1, (_DMTF,))
        block = Reader(
            reader.sized(2, _MAX_VALUE), "GPU's measurement", limit=_MAX_VALUE, order="little", code="nvidia.report"
        )
        # Which kind of thing was measured, and whether it is a digest: what is compared is the value.
        block.take(1)
        value = block.sized(2, _MAX_VALUE)
        block.end()
        if not 1 <= index < _ALL or index - 1 in found:
            raise _bad("has a measurement twice, or with an index that can't be")
        found[index - 1] = value
    reader.end()
    if not found:
        raise _bad("has no measurement")
    return found


def _opaque(data: bytes) -> dict[int, Field]:
    reader = Reader(data, "GPU's opaque data", limit=MAX_REPORT, order="little", code="nvidia.report")
    typed = data.startswith(_MAGIC)
    major = 0
    if typed:
        reader.take(len(_MAGIC))
        reader.zeros(2)  # profile 0 is the only one
        major = reader.uint(1)
        reader.take(3)  # minor version, and two bytes without a meaning yet
    found: dict[int, Field] = {}
    while reader.left:
        number = reader.uint(2)
        kind = reader.uint(2) if typed else 0
        value = reader.sized(2, MAX_REPORT)
        # A field twice could be read one way here and another way elsewhere.
        if number in found or len(found) >= _MAX_FIELDS:
            raise _bad("has a field twice, or too many")
        found[number] = Field(kind, value)
    if not typed and OPAQUE_VERSION in found:
        major = int.from_bytes(found[OPAQUE_VERSION].value, "little")
    if major > _MAX_MAJOR:
        raise _bad("has opaque data of a newer version than is understood")
    return found
