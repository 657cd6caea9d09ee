"""One quote by itself, for tools: what a signature of an attestation key over PCRs proves, without a node's event
log."""

from __future__ import annotations

from collections.abc import Mapping

from ...crypto import constant_time_equal, sha256, verify_hardware_signature
from ...errors import Malformed, Untrusted
from ..bootlog import check_replay, parse_log
from ..models import Device, Fact
from . import parser
from .enrolment import Enrolment, check_ak
from .verifier import BOOT_PCRS, boot_facts

__all__ = ["verify_quote"]

_LAST_PCR = 23
_UNKNOWN = "TPM 2.0 of unproven origin"


def verify_quote(
    message: bytes,
    signature: bytes,
    ak_public: bytes,
    pcrs: Mapping[int, bytes],
    nonce: bytes,
    *,
    boot_log: bytes | None = None,
    enrolment: Enrolment | None = None,
    name: str = "tpm0",
) -> Device:
    """What a quote proves about the TPM that made it.

    ``message``: TPMS_ATTEST; ``signature``: TPMT_SIGNATURE; ``ak_public``: TPMT_PUBLIC. ``pcrs``: exactly the values
    that were quoted, of the SHA-256 bank, 32 bytes each. ``nonce``: exactly what was asked for. ``boot_log``: the
    firmware's log, which must lead to those of PCR 0 to 7 that were quoted. ``enrolment``: this key's, if there is one;
    without it the device has no identity. Raises Malformed for what breaks a form, Untrusted for what does not hold.
    """
    ak = parser.parse_public(ak_public)
    check_ak(ak)
    made = parser.parse_signature(signature)
    if made.scheme != ak.scheme:
        raise Untrusted("tpm.ak-scheme", "The quote is signed with another scheme than the attestation key's.")
    verify_hardware_signature(ak.der(), message, made.raw(), pss=ak.scheme == parser.ALG_RSAPSS)
    quote = parser.parse_attest(message)
    if not constant_time_equal(quote.extra_data, nonce):
        raise Untrusted("tpm.report", "The quote was made for another challenge.")
    _check_pcrs(quote, pcrs)
    facts: dict[str, Fact] = {"clock_safe": quote.safe, "firmware": f"{quote.firmware:016x}"}
    notes: tuple[str, ...] = ()
    if boot_log is not None:
        log = parse_log(boot_log)
        check_replay(log, "sha256", {index: pcrs[index] for index in BOOT_PCRS if index in pcrs})
        shown, notes = boot_facts(log)
        facts |= shown
    if enrolment is not None and enrolment.ak_name != ak.name().hex():
        raise Untrusted("tpm.enrolment", "The enrolment is another attestation key's.")
    if enrolment is not None and enrolment.level == "tpm":
        facts |= {"manufacturer": enrolment.manufacturer, "model": enrolment.model, "version": enrolment.version}
    measurements = {f"pcr{index}": value.hex() for index, value in sorted(pcrs.items())}
    identity, hardware = ("", _UNKNOWN) if enrolment is None else (enrolment.ek, enrolment.hardware)
    return Device(name, "tpm", identity, measurements, facts, hardware, notes)


def _check_pcrs(quote: parser.Attest, pcrs: Mapping[int, bytes]) -> None:
    if not pcrs or not all(0 <= index <= _LAST_PCR and len(value) == 32 for index, value in pcrs.items()):
        raise Malformed("tpm.pcrs", "PCR values are 32 bytes each, of PCR 0 to 23, and at least one.")
    wanted = sum(1 << index for index in pcrs)
    if len(quote.selections) != 1 or quote.selections[0].bank != parser.ALG_SHA256:
        raise Untrusted("tpm.pcr-selection", "The quote does not cover exactly the SHA-256 bank.")
    if int.from_bytes(quote.selections[0].bitmap, "little") != wanted:
        raise Untrusted("tpm.pcr-selection", "The quote does not cover exactly the PCRs whose values are given.")
    values = b"".join(pcrs[index] for index in sorted(pcrs))
    if not constant_time_equal(quote.pcr_digest, sha256(values)):
        raise Untrusted("tpm.pcr-digest", "The PCR values are not those that the TPM signed.")
