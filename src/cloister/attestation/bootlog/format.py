"""Boot event logs as firmware writes them: TPM logs in both formats, and Intel's CCEL logs, which share the second.

Sources: TCG PC Client Platform Firmware Profile 1.06 (below: PFP) §10, TCG EFI Protocol Specification §5, and the UEFI
Specification's chapter on confidential computing (CC event logs). The reader is strict, total and bounded: every
accepted log encodes to the same bytes again, everything else is Malformed, and the work is linear in the bytes.

Nothing in a log is signed. Its *digests* become true when their replay equals a signed register; its event *types*
never do, and its event *data* only where the digest is one of that very data (see ``believed``).
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from hashlib import new as _hash
from typing import Final, Literal

from ...errors import Malformed

__all__ = ["MAX_EVENTS", "MAX_LOG", "SIZES", "BootEvent", "BootLog", "Registers", "encode_log", "parse_log"]

MAX_LOG: Final = 1 << 20
"""Bytes. Firmware reserves 64 KiB to 512 KiB."""
MAX_EVENTS: Final = 10_000
_MAX_ALGORITHMS: Final = 8

Registers = Literal["pcr", "rtmr"]
"""What a log's indices count: a TPM's PCRs, or a TD's measurement registers (0 is MRTD, 1 to 4 are RTMR 0 to 3)."""

SIZES: Final[dict[str, int]] = {"sha1": 20, "sha256": 32, "sha384": 48, "sha512": 64}
"""The banks that can be replayed, with the bytes of a digest."""
_NAMES: Final[dict[int, str]] = {0x0004: "sha1", 0x000B: "sha256", 0x000C: "sha384", 0x000D: "sha512"}
_MAX_INDEX: Final[dict[str, int]] = {"pcr": 23, "rtmr": 4}
# EDK2's firmware for trust domains names register 1 in the header of a CCEL log, other firmware 0. It only informs.
_HEADER_INDICES: Final[dict[str, tuple[int, ...]]] = {"pcr": (0,), "rtmr": (0, 1)}

# PFP §10.4.1, table 27
EV_NO_ACTION: Final = 0x00000003
EV_EFI_VARIABLE_DRIVER_CONFIG: Final = 0x80000001
EV_EFI_HCRTM_EVENT: Final = 0x80000010
EV_EFI_VARIABLE_AUTHORITY: Final = 0x800000E0
EV_EFI_SPDM_DEVICE_POLICY: Final = 0x800000E3
EV_EFI_SPDM_DEVICE_AUTHORITY: Final = 0x800000E4

_SIGNATURE: Final = b"Spec ID Event03\0"  # PFP §10.4.5.1: a log whose later events are TCG_PCR_EVENT2
_HEADER: Final = struct.Struct("<II20sI")
_FIRST: Final = struct.Struct("<III")
_NO_DIGEST: Final = bytes(20)


@dataclass(frozen=True)
class BootEvent:
    """One event. ``index``: the register; ``kind``: the type, never authenticated; ``digests``: by bank, sha1 and so on
    (a bank that isn't in ``SIZES`` is named by its number, 0x0012)."""

    index: int
    kind: int
    digests: Mapping[str, bytes]
    data: bytes

    @property
    def extends(self) -> bool:
        """Whether the event stands in a register. PFP §10.4.1: EV_NO_ACTION only informs."""
        return self.kind != EV_NO_ACTION

    def believed(self, algorithm: str) -> bool:
        """Whether this event's digest in the bank ``algorithm`` is that of its data, so that the register covers it.

        Whatever the type says: types aren't covered, and the same data under another type is still that data.
        """
        digest = self.digests.get(algorithm)
        return self.extends and digest is not None and _hash(algorithm, self.data).digest() == digest


@dataclass(frozen=True)
class BootLog:
    """A whole log. ``header``: the data of the event that names the banks, empty in a log with SHA-1 alone;
    ``header_index``: the register that this event names. ``padding``: the unused rest of a CCEL log's memory."""

    registers: Registers
    algorithms: tuple[str, ...]
    events: tuple[BootEvent, ...]
    header: bytes = b""
    padding: bytes = field(default=b"", repr=False)
    header_index: int = 0

    def trimmed(self, indices: Collection[int]) -> BootLog:
        """Without the events of other registers, and without data that no digest covers: what a verifier needs.

        What informs stays (a start from another locality changes PCR 0's first value).
        """
        kept = [e for e in self.events if not e.extends or e.index in indices]
        return replace(
            self, events=tuple(e if self._needs_data(e) else replace(e, data=b"") for e in kept), padding=b""
        )

    def _needs_data(self, event: BootEvent) -> bool:
        if not event.extends:
            return event.index == 0
        # Some versions of shim give a signer's data one byte more than they hash: ``secure_boot`` knows how to read it.
        return event.kind == EV_EFI_VARIABLE_AUTHORITY or any(
            event.believed(name) for name in self.algorithms if name in SIZES
        )


def _bad(why: str) -> Malformed:
    return Malformed("bootlog.structure", f"A boot event log {why}; read it anew from the firmware.")


def parse_log(data: bytes, registers: Registers = "pcr") -> BootLog:
    """Read a log of either format; ``registers`` says where it comes from.

    A CCEL log may be followed by the unused rest of its memory, all ones or all zeros; a TPM log ends with its events.
    Raises Malformed ``bootlog.structure`` or ``bootlog.size``.
    """
    if len(data) > MAX_LOG:
        raise Malformed("bootlog.size", f"A boot event log is longer than {MAX_LOG} bytes.")
    data = bytes(data)
    if not data:
        raise _bad("is empty")
    first, at = _sha1_event(data, 0, registers)
    if first.kind == EV_NO_ACTION and first.data.startswith(_SIGNATURE):
        if first.index not in _HEADER_INDICES[registers] or first.digests["sha1"] != _NO_DIGEST:
            raise _bad("has a header with a register or a digest")
        return replace(_agile(data, at, first.data, registers), header_index=first.index)
    if registers == "rtmr":
        raise _bad("of confidential computing does not name its banks")
    events = [first]
    while at < len(data):
        event, at = _sha1_event(data, at, registers)
        _append(events, event)
    return BootLog(registers, ("sha1",), tuple(events))


def _append(events: list[BootEvent], event: BootEvent) -> None:
    if len(events) >= MAX_EVENTS:
        raise _bad(f"has more than {MAX_EVENTS} events")
    events.append(event)


def _check_index(index: int, kind: int, registers: Registers) -> None:
    # What only informs may name any register; systems write 0xFFFFFFFF there.
    if index > _MAX_INDEX[registers] and kind != EV_NO_ACTION:
        raise _bad("names a register that doesn't exist")


def _sha1_event(data: bytes, at: int, registers: Registers) -> tuple[BootEvent, int]:
    """TCG_PCR_EVENT (PFP §10.2.1) at ``at``, and where it ends."""
    if len(data) - at < _HEADER.size:
        raise _bad("ends inside an event")
    index, kind, digest, size = _HEADER.unpack_from(data, at)
    _check_index(index, kind, registers)
    end = at + _HEADER.size + size
    if end > len(data):
        raise _bad("has an event that is longer than the log")
    return BootEvent(index, kind, {"sha1": digest}, data[at + _HEADER.size : end]), end


def _banks(header: bytes) -> dict[int, tuple[str, int]]:
    """TCG_EfiSpecIDEvent (PFP §10.4.5.1): by number, each bank's name and the bytes of its digests."""
    if len(header) < 29:
        raise _bad("has a header that is too short")
    # The errata and the width of UINTN say nothing about the events that follow, and firmware disagrees about them.
    minor, major, count = struct.unpack_from("<BBxxI", header, 20)
    if (major, minor) != (2, 0):
        raise _bad("is of a version that is not known")
    if not 1 <= count <= _MAX_ALGORITHMS or len(header) < 28 + 4 * count + 1:
        raise _bad("has a header with too many banks or none")
    banks: dict[int, tuple[str, int]] = {}
    for number, size in struct.iter_unpack("<HH", header[28 : 28 + 4 * count]):
        name = _NAMES.get(number, f"0x{number:04x}")
        if number in banks or not 1 <= size <= 64 or SIZES.get(name, size) != size:
            raise _bad("has a header with a bank twice or of a wrong size")
        banks[number] = (name, size)
    if len(header) != 28 + 4 * count + 1 + header[28 + 4 * count]:
        raise _bad("has a header of another length than it says")
    return banks


def _agile(data: bytes, at: int, header: bytes, registers: Registers) -> BootLog:
    banks = _banks(header)
    events: list[BootEvent] = []
    # An event may end with the same byte as the rest that follows, so the rest begins only where no event does. It is
    # looked for once: after every event would be quadratic.
    unused = min(len(data.rstrip(b"\xff")), len(data.rstrip(b"\0"))) if registers == "rtmr" else len(data)
    while at < unused:
        if registers == "rtmr" and data[at : at + 8] == bytes(8):
            raise _bad("has bytes in its unused rest")
        event, at = _agile_event(data, at, banks, registers)
        _append(events, event)
    return BootLog(registers, tuple(name for name, _ in banks.values()), tuple(events), header, data[at:])


def _agile_event(
    data: bytes, at: int, banks: dict[int, tuple[str, int]], registers: Registers
) -> tuple[BootEvent, int]:
    """TCG_PCR_EVENT2 (PFP §10.2.2) at ``at``, and where it ends."""
    if len(data) - at < _FIRST.size:
        raise _bad("ends inside an event")
    index, kind, count = _FIRST.unpack_from(data, at)
    at += _FIRST.size
    _check_index(index, kind, registers)
    if count > len(banks):
        raise _bad("has an event with more digests than banks")
    digests: dict[str, bytes] = {}
    for _ in range(count):
        bank = banks.get(int.from_bytes(data[at : at + 2], "little"))
        if bank is None or bank[0] in digests:
            raise _bad("has a digest of a bank that it didn't name, or two of one")
        name, size = bank
        digests[name] = data[at + 2 : at + 2 + size]
        at += 2 + size
    size = int.from_bytes(data[at : at + 4], "little")
    # One check for the digests, too: they lie before the end, so if that is inside the log, nothing was cut.
    end = at + 4 + size
    if end > len(data):
        raise _bad("ends inside an event")
    return BootEvent(index, kind, digests, data[at + 4 : end]), end


def encode_log(log: BootLog) -> bytes:
    """The bytes that ``parse_log`` read, or those of a log that was trimmed or made."""
    out = bytearray()
    if not log.header:
        for event in log.events:
            out += _HEADER.pack(event.index, event.kind, event.digests["sha1"], len(event.data)) + event.data
        return bytes(out)
    numbers = {name: number for number, (name, _) in _banks(log.header).items()}
    out += _HEADER.pack(log.header_index, EV_NO_ACTION, _NO_DIGEST, len(log.header)) + log.header
    for event in log.events:
        out += _FIRST.pack(event.index, event.kind, len(event.digests))
        for name, digest in event.digests.items():
            out += numbers[name].to_bytes(2, "little") + digest
        out += len(event.data).to_bytes(4, "little") + event.data
    return bytes(out + log.padding)
