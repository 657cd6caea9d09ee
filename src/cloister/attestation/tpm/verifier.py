"""Verify a TPM 2.0 quote and the node's event log (PROTOCOL §1, §2). Pure: no TPM, no clock, no network."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Any, Final

from ...crypto import constant_time_equal, sha256, verify_hardware_signature
from ...errors import Malformed, Untrusted
from ..events import OpenedLog, open_log, replay
from ..models import Claims, Evidence
from . import parser
from .parser import Attest, PublicArea, Signature, parse_attest, parse_public, parse_signature
from .wire import encode_name, uint

__all__ = ["EVENT_PCR", "QUOTED_PCRS", "TpmVerifier", "attester_id"]

EVENT_PCR: Final = 15
"""Where the node agent records launches. Never 16 or 23: those can be reset without a reboot."""
QUOTED_PCRS: Final = (0, 1, 2, 3, 4, 5, 6, 7, EVENT_PCR)

_SELECTION = parser.PcrSelection(parser.ALG_SHA256, b"\xff\x80\x00")  # bits 0-7 and 15, and no other
_ENDORSEMENT: Final = 0x4000000B  # Part 2 §7.4 TPM_RH_ENDORSEMENT
_FIELDS = {"quote", "signature", "ak_public", "ek_public", "pcrs"}
_AK_MUST = (
    parser.FIXED_TPM | parser.FIXED_PARENT | parser.SENSITIVE_DATA_ORIGIN | parser.RESTRICTED | parser.SIGN
)  # fmt: skip
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


@dataclass(frozen=True)
class _Parts:
    quote_bytes: bytes
    signature: Signature
    ak: PublicArea
    ek: PublicArea
    pcrs: dict[str, str]


def attester_id(ak_public: bytes) -> str:
    """SHA-256 of the attestation key's Name, hex: what a contract pins. ``ak_public`` is a TPMT_PUBLIC."""
    return sha256(parse_public(ak_public).name()).hex()


class TpmVerifier:
    """Checks quotes by a restricted signing key.

    Guaranteed: the named attestation key signed, over this report, the PCR values and the event log that the
    claims repeat. *Not* guaranteed: that this key lives in hardware. That would take an endorsement certificate
    chain to a pinned vendor root, which this verifier doesn't support yet; so the level is always ``none``.
    """

    tee = "tpm"

    def verify(self, evidence: Evidence, report: bytes, *, now: int) -> Claims:
        """See ``ports.Verifier``. ``now`` is unused: no certificate takes part."""
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
        return _claims(parts, log)


def _parse_primary(primary: dict[str, Any]) -> _Parts:
    if set(primary) != _FIELDS:
        raise Malformed("tpm.form", "The TPM evidence does not have exactly the expected fields.")
    signature = parse_signature(_base64(primary["signature"]))
    ak, ek = parse_public(_base64(primary["ak_public"])), parse_public(_base64(primary["ek_public"]))
    return _Parts(_base64(primary["quote"]), signature, ak, ek, _parse_pcrs(primary["pcrs"]))


def _base64(text: object) -> bytes:
    if not isinstance(text, str) or len(text) > _MAX_FIELD:
        raise Malformed("tpm.base64", "A field of the TPM evidence is not base64.")
    try:
        raw = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise Malformed("tpm.base64", "A field of the TPM evidence is not base64.") from None
    if base64.b64encode(raw).decode() != text:
        raise Malformed("tpm.base64", "A field of the TPM evidence is not canonical base64.")
    return raw


def _parse_pcrs(value: object) -> dict[str, str]:
    names = {str(i) for i in QUOTED_PCRS}
    if not isinstance(value, dict) or set(value) != names:
        raise Malformed("tpm.pcrs", "The TPM evidence does not give the values of PCR 0 to 7 and 15.")
    if not all(isinstance(v, str) and _HEX32.fullmatch(v) for v in value.values()):
        raise Malformed("tpm.pcrs", "A PCR value is not 64 lower-case hex digits.")
    return {str(i): value[str(i)] for i in QUOTED_PCRS}


def _check_attributes(ak: PublicArea, ek: PublicArea) -> None:
    if ak.attributes & _AK_MUST != _AK_MUST or ak.attributes & parser.DECRYPT:
        raise Untrusted(
            "tpm.ak-attributes", "The attestation key is not a restricted signing key that was made in its TPM."
        )
    if ak.scheme == parser.ALG_NULL or ak.symmetric_bits:
        raise Untrusted("tpm.ak-scheme", "The attestation key does not have one fixed signature scheme.")
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


def _claims(parts: _Parts, log: OpenedLog) -> Claims:
    return Claims(
        tee="tpm",
        level="none",
        attester=sha256(parts.ak.name()).hex(),
        measurement=log.launch["measurement"],
        agent=log.agent["measurement"],
        instance=log.launch["instance"],
        contract=log.launch["contract"],
        job=log.launch["job"],
        pcrs=dict(parts.pcrs),
        hardware=_HARDWARE,
        notes=_NOTES,
    )
