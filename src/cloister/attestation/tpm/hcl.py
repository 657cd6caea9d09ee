"""Azure confidential VMs: a virtual TPM whose key the hardware vouches for, through Microsoft's paravisor (the HCL).

The chain: the CPU signs a report (SEV-SNP) or a quote (TDX) about the paravisor; its report data is SHA-256 of a JSON
text that the paravisor wrote; the text names the vTPM's attestation key; that key signs quotes. Source: Microsoft's
documentation of guest attestation for confidential VMs (the report in NV index 0x01400001), and the evidence format of
Confidential Containers' Trustee, versions 1 and 2.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from ...crypto import constant_time_equal, parse_json, sha256, unb64url, verify_hardware_signature
from ...crypto.signatures import rsa_public_der
from ...errors import Malformed, Untrusted
from ..reader import Reader
from .parser import ALG_SHA256, Attest, PcrSelection, parse_attest

__all__ = ["AzureEvidence", "HclReport", "VtpmQuote", "check_binding", "parse_azure", "parse_hcl", "verify_quote"]

Hardware = Literal["snp", "tdx"]

_MAX_REPORT: Final = 16 * 1024
_MAX_RUNTIME: Final = 8 * 1024
_MAX_HARDWARE: Final = 32 * 1024
_MAGIC: Final = b"HCLA"
_HARDWARE_SIZE: Final = 1184
"""An SNP report's size; a TD report has 1,024 and is followed by zeros."""
_TYPES: Final[dict[int, Hardware]] = {2: "snp", 4: "tdx"}
_HASH_SHA256: Final = 1
_RSA_BYTES: Final = frozenset({256, 384, 512})
_AK: Final = "HCLAkPub"
_PCRS: Final = 24
_SELECTION: Final = PcrSelection(ALG_SHA256, b"\xff\xff\xff")
_FACTS: Final = {"secure-boot": "hcl.secure_boot", "console-enabled": "hcl.console", "tpm-persisted": "hcl.persisted"}


@dataclass(frozen=True)
class HclReport:
    """``hardware``: the report inside (1,184 bytes), which nothing here verifies. ``runtime``: the JSON text as it was
    hashed. ``ak``: the vTPM's attestation key as SubjectPublicKeyInfo, from that text. ``facts``: what the paravisor
    says of the VM's configuration in the same text."""

    kind: Hardware
    hardware: bytes
    runtime: bytes
    ak: bytes
    user_data: bytes
    facts: dict[str, bool]


@dataclass(frozen=True)
class VtpmQuote:
    """``pcrs``: all 24 of the SHA-256 bank, 32 bytes each."""

    message: bytes
    signature: bytes
    pcrs: tuple[bytes, ...]


@dataclass(frozen=True)
class AzureEvidence:
    """Trustee's evidence of this kind. ``endorsement``: for SNP the VCEK (DER), for TDX the TD quote."""

    version: int
    quote: VtpmQuote
    report: HclReport
    endorsement: bytes


def parse_hcl(data: bytes) -> HclReport:
    """Read a report strictly: header, hardware report, lengths, JSON, zeros.

    Raises Malformed ``hcl.structure``, ``hcl.runtime``, or what ``parse_json`` raises.
    """
    reader = Reader(data, "report of an Azure vTPM", limit=_MAX_REPORT, order="little", code="hcl.structure")
    if reader.take(4) != _MAGIC:
        raise reader.bad("does not begin with HCLA")
    reader.take(28)  # version, sizes, status: no signature covers them, so nothing may follow from them
    hardware = reader.take(_HARDWARE_SIZE)
    reader.take(4)  # size of what follows, padding aside: the text's own length says it
    reader.one_of(4, (1,))
    kind = _TYPES[reader.one_of(4, _TYPES)]
    reader.one_of(4, (_HASH_SHA256,))
    runtime = reader.sized(4, _MAX_RUNTIME)
    reader.zeros(reader.left)
    ak, user_data, facts = _runtime(runtime)
    return HclReport(kind, hardware, runtime, ak, user_data, facts)


def _bad_runtime() -> Malformed:
    return Malformed("hcl.runtime", "The runtime data of an Azure vTPM's report is not of the expected form.")


def _runtime(text: bytes) -> tuple[bytes, bytes, dict[str, bool]]:
    body = parse_json(text, limit=_MAX_RUNTIME)
    if not isinstance(body, dict) or not isinstance(body.get("keys"), list) or len(body["keys"]) > 16:
        raise _bad_runtime()
    keys = [key for key in body["keys"] if isinstance(key, dict) and key.get("kid") == _AK]
    # Two keys of that name would leave it to each reader which one the hardware vouches for.
    if len(keys) != 1:
        raise _bad_runtime()
    configuration = body.get("vm-configuration", {})
    if not isinstance(configuration, dict):
        raise _bad_runtime()
    facts = {fact: value for name, fact in _FACTS.items() if isinstance(value := configuration.get(name), bool)}
    return _rsa(keys[0]), _user_data(body.get("user-data", "")), facts


def _rsa(key: Mapping[str, Any]) -> bytes:
    """SubjectPublicKeyInfo of a JWK (RFC 7518 §6.3.1) that signs with RSA."""
    n, e = key.get("n"), key.get("e")
    if key.get("kty") != "RSA" or e != "AQAB" or not isinstance(n, str) or len(n) > 1024:
        raise _bad_runtime()
    if key.get("key_ops", ["sign"]) != ["sign"]:
        raise _bad_runtime()
    modulus = unb64url(n)
    if len(modulus) not in _RSA_BYTES or modulus[0] == 0:
        raise _bad_runtime()
    return rsa_public_der(modulus, 65537)


def _user_data(value: object) -> bytes:
    if not isinstance(value, str) or len(value) > 256:
        raise _bad_runtime()
    try:
        return bytes.fromhex(value)
    except ValueError:
        raise _bad_runtime() from None


def _bad() -> Malformed:
    return Malformed("hcl.form", "The evidence of an Azure vTPM is not of a form or version that is known.")


def parse_azure(body: object) -> AzureEvidence:
    """Read Trustee's JSON: version, ``tpm_quote`` {message, pcrs, signature} in hex, ``hcl_report`` and either ``vcek``
    or ``td_quote`` in URL-safe base64 with padding. Malformed ``hcl.form`` for anything else."""
    if not isinstance(body, dict):
        raise _bad()
    kind: Hardware = "snp" if "vcek" in body else "tdx"
    name = "vcek" if kind == "snp" else "td_quote"
    if set(body) != {"version", "tpm_quote", "hcl_report", name}:
        raise _bad()
    version = body["version"]
    if isinstance(version, bool) or version not in ((1, 2) if kind == "snp" else (1,)):
        raise _bad()
    report = parse_hcl(_base64(body["hcl_report"], _MAX_REPORT))
    if report.kind != kind:
        raise Untrusted("hcl.kind", "The vTPM's report is about other hardware than the evidence.")
    return AzureEvidence(version, _quote(body["tpm_quote"]), report, _base64(body[name], _MAX_HARDWARE))


def _base64(text: object, limit: int) -> bytes:
    if not isinstance(text, str) or not text.isascii() or len(text) > 4 * ((limit + 2) // 3):
        raise _bad()
    try:
        raw = base64.b64decode(text.encode(), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        raise _bad() from None
    if base64.urlsafe_b64encode(raw).decode() != text:
        raise _bad()
    return raw


def _hex(text: object, sizes: range) -> bytes:
    if not isinstance(text, str) or len(text) % 2 or len(text) // 2 not in sizes or text != text.lower():
        raise _bad()
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raise _bad() from None
    if raw.hex() != text:  # fromhex skips blanks
        raise _bad()
    return raw


def _quote(body: object) -> VtpmQuote:
    if not isinstance(body, dict) or set(body) != {"message", "pcrs", "signature"}:
        raise _bad()
    pcrs = body["pcrs"]
    if not isinstance(pcrs, list) or len(pcrs) != _PCRS:
        raise _bad()
    signature = _hex(body["signature"], range(256, 513))
    return VtpmQuote(_hex(body["message"], range(1, 1025)), signature, tuple(_hex(p, range(32, 33)) for p in pcrs))


def verify_quote(report: HclReport, quote: VtpmQuote, nonce: bytes) -> Attest:
    """Check that the report's key signed the quote, for exactly ``nonce``, over exactly the PCR values given.

    True only together with ``check_binding`` and a verified hardware report. Raises Untrusted ``signature.invalid``,
    ``hcl.nonce``, ``hcl.pcr-selection``, ``hcl.pcr-digest``; Malformed for a message that is no quote.
    """
    verify_hardware_signature(report.ak, quote.message, quote.signature)
    attest = parse_attest(quote.message)
    if not constant_time_equal(attest.extra_data, nonce):
        raise Untrusted("hcl.nonce", "The vTPM's quote was made for another challenge, workload key or event log.")
    if attest.selections != (_SELECTION,):
        raise Untrusted("hcl.pcr-selection", "The vTPM's quote does not cover exactly the SHA-256 bank's 24 PCRs.")
    if not constant_time_equal(attest.pcr_digest, sha256(b"".join(quote.pcrs))):
        raise Untrusted("hcl.pcr-digest", "The PCR values are not those that the vTPM signed.")
    return attest


def check_binding(report: HclReport, report_data: bytes) -> None:
    """Return if the hardware's 64 bytes of report data are SHA-256 of the runtime text and 32 zeros; Untrusted
    ``hcl.report-data`` if not: then another machine's report was put around this text."""
    if not constant_time_equal(report_data, sha256(report.runtime) + bytes(32)):
        raise Untrusted("hcl.report-data", "The hardware's report is not about this vTPM's keys and configuration.")
