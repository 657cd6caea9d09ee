"""Verify the evidence of a node in a TDX trust domain (PROTOCOL §1, §2). Pure: no device, no clock, no network."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from ...crypto import constant_time_equal, frame, sha256
from ...errors import Malformed, Untrusted
from ..bootlog import BootLog, check_replay, parse_log, secure_boot
from ..collateral import Collateral, Staleness
from ..events import OpenedLog, open_log
from ..models import Claims, Device, Evidence, Fact, Level, guest_digest
from ..reader import canonical_base64
from .device import describe
from .quote import MAX_QUOTE, Quote, TdReport
from .quoting import authenticate_quote, judge_quote
from .roots import ROOTS
from .runtime import RTMR_START, replay_rtmr3
from .tcb import NOT_SUPPORTED

__all__ = [
    "BOOT_REGISTERS",
    "GUEST_MEASUREMENTS",
    "TdxVerifier",
    "attester_id",
    "boot_facts",
    "level_of",
    "prove_domain",
    "read_boot_log",
    "read_quote",
]

BOOT_REGISTERS: Final = (0, 1, 2)
"""RTMRs that the boot event log (CCEL) must lead to. RTMR 3 belongs to what runs later."""
GUEST_MEASUREMENTS: Final = ("mrtd", "rtmr0", "rtmr1", "rtmr2")
"""What a guest digest is made of: firmware, its configuration, boot loader and kernel, command line and initrd."""

_BANK: Final = "sha384"
_MAX_BOOT_LOG: Final = 128 * 1024
_NOTE_NONE: Final = "Level none: debugging, a migration domain or unknown attributes can open the guest's memory."


def attester_id(identity: str) -> str:
    """64 hex digits that name the platform as an attester; ``identity`` is a device's (hex)."""
    return sha256(frame("cloister/tdx-platform/v1", bytes.fromhex(identity))).hex()


def level_of(device: Device) -> Level:
    """``cpu-tee``, or ``none`` where somebody outside of the measured guest can reach its memory.

    None: it can be debugged; it may be migrated, so a service domain that nobody appraised here holds the keys to its
    memory; such a domain is bound to it; attributes are set that this version doesn't know.
    """
    facts = device.facts
    bound = any(bytes.fromhex(device.measurements.get("mrservicetd", "")))
    opened = facts["debug"] or facts["attributes.migratable"] or facts["attributes.reserved"] or bound
    return "none" if opened else "cpu-tee"


class TdxVerifier:
    """See ``ports.Verifier``: TDX quotes of versions 4 and 5, with collateral of Intel's.

    ``roots``: SHA-256 of root keys; only tests have others than Intel's.
    """

    tee = "tdx"

    def __init__(self, collateral: Collateral, staleness: Staleness, *, roots: Collection[str] = ROOTS) -> None:
        self._collateral = collateral
        self._staleness = staleness
        self._roots = frozenset(roots)

    def verify(self, evidence: Evidence, report: bytes, *, now: int) -> Claims:
        """See ``ports.Verifier``. The report data must be ``report`` (32 bytes) and 32 zero bytes, exactly.

        Beside the port's errors it raises Unavailable ``tdx.collateral`` for collateral that is missing.
        """
        if evidence.tee != self.tee:
            raise Untrusted("tdx.tee", "The evidence is of another platform than TDX.")
        raw, boot_log = _parse_primary(evidence.primary)
        # 1-12. Intel's root to this challenge.
        cpu, body = prove_domain(raw, report, self._collateral, self._staleness, now=now, roots=self._roots)
        # 13. The boot event log, where one came along, leads to the boot registers.
        cpu.facts.update(boot_facts(boot_log, body))
        # 14. The measured agent wrote the event log, which the report data covers, and which RTMR 3 may hold besides.
        log = open_log(evidence.additional)
        cpu.facts["rtmr3_log"] = _check_rtmr3(log, body)
        return _claims(cpu, log)


def prove_domain(
    raw: bytes, report: bytes, collateral: Collateral, staleness: Staleness, *, now: int, roots: Collection[str]
) -> tuple[Device, TdReport]:
    """Steps 1 to 12: what a quote proves of a trust domain that was asked with ``report`` (32 bytes). Says nothing
    about any event log. Raises as ``TdxVerifier.verify``."""
    if len(report) != 32:
        raise Malformed("tdx.report-size", "The data that a TDX quote must carry has exactly 32 bytes.")
    # 1-5. Intel's root, the platform, its quoting enclave, the attestation key, the quote.
    authentic = authenticate_quote(raw, now=now, roots=roots)
    quote = authentic.quote
    # 11. It is a trust domain's, and nothing but zeros of a buffer follows it.
    body = _trust_domain(quote)
    # 12. It was made for this challenge, workload key and additional evidence.
    if not constant_time_equal(body.report_data, report + bytes(32)):
        raise Untrusted("tdx.report", "The quote was made for another challenge, workload key or event log.")
    # 6-10. Revocation, Intel's documents, the TDX module, the state of the platform.
    judged = judge_quote(authentic, collateral, now=now, staleness=staleness, roots=roots)
    if judged.status == NOT_SUPPORTED:
        raise Untrusted("tdx.tcb-unknown", "Intel's TCB info has no level for this platform; update its firmware.")
    return describe(quote, authentic.platform, judged, "cpu0"), body


def read_quote(value: object) -> bytes:
    """A quote's bytes from the base64 of evidence. Raises Malformed."""
    return _base64(value, MAX_QUOTE)


def read_boot_log(value: object) -> BootLog:
    """A CCEL log from the base64 of evidence. Raises Malformed."""
    return parse_log(_base64(value, _MAX_BOOT_LOG), "rtmr")


def _parse_primary(primary: dict[str, Any]) -> tuple[bytes, BootLog | None]:
    if not {"quote"} <= set(primary) <= {"quote", "cc_eventlog"}:
        raise Malformed("tdx.form", "The TDX evidence does not have exactly a quote and perhaps a boot event log.")
    log = read_boot_log(primary["cc_eventlog"]) if "cc_eventlog" in primary else None
    return read_quote(primary["quote"]), log


def _base64(text: object, limit: int) -> bytes:
    return canonical_base64(text, "TDX", limit=4 * (limit // 3 + 1), code="tdx.base64")


def _trust_domain(quote: Quote) -> TdReport:
    if not isinstance(quote.body, TdReport):
        raise Untrusted("tdx.body", "The quote is of an SGX enclave, in which no workload of this system runs.")
    if any(quote.trailing):
        raise Malformed("tdx.trailing", "Something other than zeros follows the quote; send only the quote.")
    return quote.body


def boot_facts(log: BootLog | None, report: TdReport) -> dict[str, Fact]:
    """Raises Untrusted ``bootlog.replay`` where a log came that doesn't explain the boot registers, or RTMR 3 if it has
    events of that."""
    if log is None:
        return {"boot_log": False}
    told = {event.index - 1 for event in log.events if event.extends} & {3}
    check_replay(log, _BANK, {n: report.rtmrs[n] for n in {*BOOT_REGISTERS, *told}})
    try:
        return {"boot_log": True, **secure_boot(log, _BANK).facts()}
    except Untrusted as error:
        # The log is whole, but doesn't show secure boot's state. Nothing is claimed then, exactly as without a log.
        return {"boot_log": True, "secure_boot.unknown": error.message}


def _check_rtmr3(log: OpenedLog, report: TdReport) -> bool:
    """Whether RTMR 3 holds the event log. Where nobody extended it, the agent's word stands, which the quote covers."""
    register = report.rtmrs[3]
    if register == RTMR_START:
        return False
    if not constant_time_equal(register, replay_rtmr3(log.digests)):
        raise Untrusted("tdx.rtmr3", "RTMR 3 was extended with something other than the node's event log.")
    return True


def _claims(cpu: Device, log: OpenedLog) -> Claims:
    level = level_of(cpu)
    return Claims(
        tee="tdx",
        level=level,
        attester=attester_id(cpu.identity),
        measurement=log.launch["measurement"],
        agent=guest_digest("tdx", {name: cpu.measurements[name] for name in GUEST_MEASUREMENTS}),
        instance=log.launch["instance"],
        contract=log.launch["contract"],
        job=log.launch["job"],
        hardware=cpu.hardware,
        notes=cpu.notes if level != "none" else (_NOTE_NONE, *cpu.notes),
        devices=(cpu,),
        gpus=log.gpus,
        tenancy=log.tenancy,
    )
