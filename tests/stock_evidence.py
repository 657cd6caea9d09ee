"""Evidence as stock guests write it, from a report's or a quote's bytes. Nothing of Cloister's reader is asked.

The names and shapes are those that the attester's library serializes; the offsets are the forge's table of AMD 56860.
"""

from __future__ import annotations

import base64
from typing import Any

from tests.snp_forge import FIELDS

_NUMBERS = {
    "version": "version", "guest_svn": "guest_svn", "policy": "policy", "vmpl": "vmpl", "algorithm": "sig_algo",
    "platform": "plat_info",
}  # fmt: skip
_BYTES = (
    "family_id", "image_id", "report_data", "measurement", "host_data", "id_key_digest", "author_key_digest",
    "report_id", "report_id_ma", "chip_id",
)  # fmt: skip
_TCBS = ("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb")


def older(report: bytes) -> dict[str, Any]:
    """The shape in which every byte of the report has a place."""
    found = _common(report)
    found |= {name: _older_tcb(_part(report, name)) for name in _TCBS}
    found |= {
        "_author_key_en": int.from_bytes(_part(report, "key_information"), "little"),
        "_reserved_0": int.from_bytes(_part(report, "reserved_4c"), "little"),
        "_reserved_1": list(report[0x188:0x1A0]),
        "_reserved_2": report[0x1EB],
        "_reserved_3": report[0x1EF],
        "_reserved_4": list(report[0x1F8:0x2A0]),
    }
    for name, at in (("current", 0x1E8), ("committed", 0x1EC)):
        found |= {f"{name}_build": report[at], f"{name}_minor": report[at + 1], f"{name}_major": report[at + 2]}
    found["signature"]["_reserved"] = list(report[0x330:0x4A0])
    return found


def newer(report: bytes, *, mitigations: bool = True) -> dict[str, Any]:
    """The shape of today, which leaves out what is reserved. ``mitigations``: whether the library knows them."""
    version = report[0]
    turin = report[0x188] >= 0x1A if version >= 3 else not any(report[0x1A8:0x1E0])
    found = _common(report)
    found |= {name: _newer_tcb(_part(report, name), turin) for name in _TCBS}
    cpuid = report[0x188:0x18B] if version >= 3 else (None, None, None)
    found |= dict(zip(("cpuid_fam_id", "cpuid_mod_id", "cpuid_step"), cpuid, strict=True))
    found["key_info"] = int.from_bytes(_part(report, "key_information"), "little")
    for name, at in (("current", 0x1E8), ("committed", 0x1EC)):
        found[name] = {"major": report[at + 2], "minor": report[at + 1], "build": report[at]}
    for name, field in (("launch_mit_vector", "launch_mitigations"), ("current_mit_vector", "current_mitigations")):
        if mitigations:
            found[name] = int.from_bytes(_part(report, field), "little") if version >= 5 else None
    return found


def chain(**certificates: bytes) -> list[dict[str, Any]]:
    """A table of certificates: VCEK, VLEK, ASK, ARK by name, in DER; any other name is a GUID's."""
    known = ("VCEK", "VLEK", "ASK", "ARK", "CRL", "Empty")
    return [
        {"cert_type": name if name in known else {"OTHER": name}, "data": list(der)}
        for name, der in certificates.items()
    ]


def snp(report: bytes, certificates: list[dict[str, Any]] | None, *, shape: Any = newer) -> dict[str, Any]:
    return {"attestation_report": shape(report), "cert_chain": certificates}


def tdx(quote: bytes, *, cc_eventlog: bytes | None = None, **more: Any) -> dict[str, Any]:
    log = None if cc_eventlog is None else base64.b64encode(cc_eventlog).decode()
    return {"quote": base64.b64encode(quote).decode(), "cc_eventlog": log, **more}


def _part(report: bytes, field: str) -> bytes:
    offset, size = FIELDS[field]
    return report[offset : offset + size]


def _common(report: bytes) -> dict[str, Any]:
    numbers = {theirs: int.from_bytes(_part(report, ours), "little") for ours, theirs in _NUMBERS.items()}
    signature = {"r": list(report[0x2A0:0x2E8]), "s": list(report[0x2E8:0x330])}
    return {**numbers, **{name: list(_part(report, name)) for name in _BYTES}, "signature": signature}


def _older_tcb(tcb: bytes) -> dict[str, Any]:
    return {"bootloader": tcb[0], "tee": tcb[1], "_reserved": list(tcb[2:6]), "snp": tcb[6], "microcode": tcb[7]}


def _newer_tcb(tcb: bytes, turin: bool) -> dict[str, Any]:
    if turin:
        return {"fmc": tcb[0], "bootloader": tcb[1], "tee": tcb[2], "snp": tcb[3], "microcode": tcb[7]}
    return {"fmc": None, "bootloader": tcb[0], "tee": tcb[1], "snp": tcb[6], "microcode": tcb[7]}
