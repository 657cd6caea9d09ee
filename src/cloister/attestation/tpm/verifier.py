"""Verify a TPM 2.0 quote and the node's event log (PROTOCOL §1, §2). Pure: no TPM, no clock, no network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ...crypto import constant_time_equal, sha256, verify_hardware_signature
from ...errors import Malformed, Untrusted
from ..bootlog import BootLog, check_replay, parse_log, secure_boot
from ..events import OpenedLog, open_log, replay
from ..models import Claims, Device, Evidence, Fact
from ..reader import canonical_base64
from . import parser
from .enrolment import Enrolment, check_ak
from .parser import Attest, PublicArea, Signature, parse_attest, parse_public, parse_signature
from .wire import encode_name, uint

__all__ = ["BOOT_PCRS", "EVENT_PCR", "MAX_BOOT_LOG", "QUOTED_PCRS", "TpmVerifier", "attester_id", "boot_facts"]

EVENT_PCR: Final = 15
"""Where the node agent records launches. Never 16 or 23: those can be reset without a reboot."""
BOOT_PCRS: Final = tuple(range(8))
"""What firmware and boot loader measure into (PC Client Platform Firmware Profile §3.3.4)."""
QUOTED_PCRS: Final = (*BOOT_PCRS, EVENT_PCR)
MAX_BOOT_LOG: Final = 96 * 1024
"""Bytes of a boot event log inside evidence."""

_SELECTION = parser.PcrSelection(parser.ALG_SHA256, b"\xff\x80\x00")  # bits 0-7 and 15, and no other
_ENDORSEMENT: Final = 0x4000000B  # Part 2 §7.4 TPM_RH_ENDORSEMENT
_FIELDS = {"quote", "signature", "ak_public", "ek_public", "pcrs"}
_EK_MUST = (
    parser.FIXED_TPM | parser.FIXED_PARENT | parser.SENSITIVE_DATA_ORIGIN | parser.RESTRICTED | parser.DECRYPT
)  # fmt: skip
_MAX_FIELD: Final = 4096
_HEX32 = re.compile(r"[0-9a-f]{64}")

_HARDWARE = (
    "TPM 2.0 of unproven origin: a software TPM, or one whose endorsement key no vendor was shown to have signed"
)
_NOTES = (
    "Level none: no vendor's root vouches for the endorsement key, so a software TPM gives the same evidence.",
    "The host's administrator can read the workload's memory and can run a software TPM.",
)
_NOTES_ENROLLED_NONE = (
    "Level none: the endorsement key was enrolled under a root that is no manufacturer's shipped with this program.",
    "The host's administrator can read the workload's memory and can run a software TPM.",
)
_NOTES_TPM = ("Level tpm: the host's administrator can read the workload's memory.",)


@dataclass(frozen=True)
class _Parts:
    quote_bytes: bytes
    signature: Signature
    ak: PublicArea
    ek: PublicArea
    pcrs: dict[str, str]
    boot_log: BootLog | None


def attester_id(ak_public: bytes) -> str:
    """SHA-256 of the attestation key's Name, hex: what a contract pins. ``ak_public`` is a TPMT_PUBLIC."""
    return sha256(parse_public(ak_public).name()).hex()


class TpmVerifier:
    """Checks quotes by a restricted signing key.

    Guaranteed: the named attestation key signed, over this report, the PCR values and the event log that the claims
    repeat; and, with a boot log, that this log led to PCR 0 to 7. That the key lives in a manufacturer's TPM is what an
    enrolment says: ``enrolments`` maps an attestation key's Name (hex) to its record. The level is the record's,
    ``tpm`` only under a shipped root; without a record it is ``none``. *Not* guaranteed, ever: that nobody reads the
    host's memory.
    """

    tee = "tpm"

    def __init__(self, enrolments: Mapping[str, Enrolment] | None = None) -> None:
        self._enrolments = {} if enrolments is None else enrolments

    def verify(self, evidence: Evidence, report: bytes, *, now: int) -> Claims:
        """See ``ports.Verifier``. ``now`` is unused: certificates were judged at enrolment."""
        del now
        if evidence.tee != self.tee:
            raise Untrusted("tpm.tee", "The evidence is of another platform than TPM.")
        parts = _parse_primary(evidence.primary)
        # 1. The key may only sign what a TPM itself has made, and can't have left it.
        _check_attributes(parts.ak, parts.ek)
        # 2. That key signed the quote.
        _check_signature(parts)
        quote = parse_attest(parts.quote_bytes)
        # 3. The quote is for this report: fresh, and for this workload's key and this event log.
        _check_report(quote, report)
        # 4. The key is a child of the endorsement key that the evidence shows.
        _check_signer(quote, parts)
        # 5. The quote covers exactly the PCRs that we read, in one bank, and their values are those given.
        _check_pcrs(quote, parts.pcrs)
        # 6. The event log leads to PCR 15, begins with the agent, and holds the asking sandbox's launch.
        log = open_log(evidence.additional)
        if replay(log.digests).hex() != parts.pcrs[str(EVENT_PCR)]:
            raise Untrusted("tpm.replay", "The event log does not lead to the quoted value of PCR 15.")
        # 7. The firmware's log, where there is one, leads to PCR 0 to 7.
        if parts.boot_log is not None:
            check_replay(parts.boot_log, "sha256", {i: bytes.fromhex(parts.pcrs[str(i)]) for i in BOOT_PCRS})
        # 8. Whose TPM it is, the owner found out before.
        return _claims(parts, log, self._enrolled(parts.ak))

    def _enrolled(self, ak: PublicArea) -> Enrolment | None:
        name = ak.name().hex()
        found = self._enrolments.get(name)
        if found is not None and found.ak_name != name:
            raise Untrusted("tpm.enrolment", "An enrolment is kept under another attestation key than its own.")
        return found


def _parse_primary(primary: dict[str, Any]) -> _Parts:
    if set(primary) - {"boot_log"} != _FIELDS:
        raise Malformed("tpm.form", "The TPM evidence does not have exactly the expected fields.")
    signature = parse_signature(_base64(primary["signature"]))
    ak, ek = parse_public(_base64(primary["ak_public"])), parse_public(_base64(primary["ek_public"]))
    boot_log = None
    if "boot_log" in primary:
        boot_log = parse_log(_base64(primary["boot_log"], 4 * (MAX_BOOT_LOG // 3)))
    return _Parts(_base64(primary["quote"]), signature, ak, ek, _parse_pcrs(primary["pcrs"]), boot_log)


def _base64(text: object, limit: int = _MAX_FIELD) -> bytes:
    return canonical_base64(text, "TPM", limit=limit, code="tpm.base64")


def _parse_pcrs(value: object) -> dict[str, str]:
    names = {str(i) for i in QUOTED_PCRS}
    if not isinstance(value, dict) or set(value) != names:
        raise Malformed("tpm.pcrs", "The TPM evidence does not give the values of PCR 0 to 7 and 15.")
    if not all(isinstance(v, str) and _HEX32.fullmatch(v) for v in value.values()):
        raise Malformed("tpm.pcrs", "A PCR value is not 64 lower-case hex digits.")
    return {str(i): value[str(i)] for i in QUOTED_PCRS}


def _check_attributes(ak: PublicArea, ek: PublicArea) -> None:
    check_ak(ak)
    if ek.attributes & _EK_MUST != _EK_MUST or ek.attributes & parser.SIGN:
        raise Untrusted("tpm.ek-attributes", "The endorsement key is not a restricted decryption key.")


def _check_signature(parts: _Parts) -> None:
    if parts.signature.scheme != parts.ak.scheme:
        raise Untrusted("tpm.ak-scheme", "The quote is signed with another scheme than the attestation key's.")
    pss = parts.ak.scheme == parser.ALG_RSAPSS
    verify_hardware_signature(parts.ak.der(), parts.quote_bytes, parts.signature.raw(), pss=pss)


def _check_report(quote: Attest, report: bytes) -> None:
    if len(report) != 32:
        raise Malformed("tpm.report-size", "A TPM report has exactly 32 bytes.")
    if not constant_time_equal(quote.extra_data, report):
        raise Untrusted("tpm.report", "The quote was made for another challenge, workload key or event log.")


def _check_signer(quote: Attest, parts: _Parts) -> None:
    # Part 1 §26.6: qualified name = H(parent's qualified name ‖ name); a primary's parent is its hierarchy's handle.
    endorsement = encode_name(uint(_ENDORSEMENT, 4) + parts.ek.name())
    if quote.qualified_signer != encode_name(endorsement + parts.ak.name()):
        raise Untrusted("tpm.signer", "The quote was signed by a key that is not under the endorsement key shown.")


def _check_pcrs(quote: Attest, pcrs: dict[str, str]) -> None:
    if quote.selections != (_SELECTION,):
        raise Untrusted("tpm.pcr-selection", "The quote does not cover exactly PCR 0 to 7 and 15 of the SHA-256 bank.")
    values = b"".join(bytes.fromhex(pcrs[str(i)]) for i in QUOTED_PCRS)
    if not constant_time_equal(quote.pcr_digest, sha256(values)):
        raise Untrusted("tpm.pcr-digest", "The PCR values are not those that the TPM signed.")


def boot_facts(log: BootLog) -> tuple[dict[str, Fact], tuple[str, ...]]:
    """What a replayed log proves about secure boot, in the SHA-256 bank, and what to tell people where it proves
    nothing.

    A log that doesn't show it isn't refused: firmware varies, and facts that are missing satisfy no policy.
    """
    try:
        return secure_boot(log, "sha256").facts(), ()
    except Untrusted as error:
        return {}, (error.message,)


def _claims(parts: _Parts, log: OpenedLog, enrolment: Enrolment | None) -> Claims:
    level = "none" if enrolment is None else enrolment.level
    hardware = _HARDWARE if enrolment is None else enrolment.hardware
    notes: tuple[str, ...] = _NOTES if enrolment is None else _NOTES_ENROLLED_NONE
    if level == "tpm":
        notes = _NOTES_TPM
    return Claims(
        tee="tpm",
        level=level,
        attester=sha256(parts.ak.name()).hex(),
        measurement=log.launch["measurement"],
        agent=log.agent["measurement"],
        instance=log.launch["instance"],
        contract=log.launch["contract"],
        job=log.launch["job"],
        pcrs=dict(parts.pcrs),
        hardware=hardware,
        notes=notes,
        devices=_devices(parts, enrolment, hardware),
        gpus=log.gpus,
        tenancy=log.tenancy,
    )


def _devices(parts: _Parts, enrolment: Enrolment | None, hardware: str) -> tuple[Device, ...]:
    """The TPM itself, where there is more to say of it than the claims do."""
    facts: dict[str, Fact] = {}
    notes: tuple[str, ...] = ()
    if parts.boot_log is not None:
        facts, notes = boot_facts(parts.boot_log)
    elif enrolment is None:
        return ()
    if enrolment is not None and enrolment.level == "tpm":
        facts |= {"manufacturer": enrolment.manufacturer, "model": enrolment.model, "version": enrolment.version}
    measurements = {f"pcr{index}": value for index, value in parts.pcrs.items()}
    identity = "" if enrolment is None else enrolment.ek
    return (Device("tpm0", "tpm", identity, measurements, facts, hardware, notes),)
