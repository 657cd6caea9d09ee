"""SEV-SNP guests of the Confidential Containers kind: their evidence back to a report, and what that proves. Pure.

Their attester sends no report of 1,184 bytes but the fields of one, as its library serializes them to JSON:
``{"attestation_report": {…}, "cert_chain": null | [{"cert_type", "data"}, …]}``, bytes as lists of numbers. The names
are of the library's structure, of which two shapes are known:

| field | older | newer |
|---|---|---|
| key information | ``_author_key_en`` | ``key_info`` |
| CPUID | in ``_reserved_1`` (24 bytes) | ``cpuid_fam_id``, ``cpuid_mod_id``, ``cpuid_step``, or null |
| firmware | ``current_build``, ``…_minor``, ``…_major``; ``committed_…`` | ``current``, ``committed``: three numbers |
| mitigations | in ``_reserved_4`` (168 bytes) | ``launch_mit_vector``, ``current_mit_vector``: null, or left out |
| TCB versions | ``bootloader``, ``tee``, ``_reserved``, ``snp``, ``microcode`` | ``fmc`` (null before Turin), four |

What the second shape leaves out is reserved in the report, so it was zero. If it was not, the bytes that are put
together here are not those that AMD's hardware signed, and the signature does not verify: nothing is believed of the
JSON itself.

Sources: confidential-containers/guest-components, ``attestation-agent/attester/src/snp`` (the object); virtee/sev,
``firmware/guest/types/snp.rs``, ``firmware/host/types/snp.rs`` and ``certs/snp/ecdsa`` (the fields); AMD 56860,
chapter 7 (the report).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ...crypto.x509 import Certificate
from ...errors import Malformed
from ...fields import Fields
from ..collateral import Collateral, Staleness
from ..guests import Guest
from ..models import guest_digest
from .certs import attester_id, read_amd
from .endorsements import MAX_CERTIFICATES
from .products import product_of_cpuid
from .report import SIZE, parse_report
from .roots import AMD_ROOTS
from .verifier import level_of, prove_guest

__all__ = ["SnpGuestJudge", "read_stock_certificates", "read_stock_report", "stock_fields"]

_MAX_ENTRIES: Final = 8
_MAX_CERTIFICATE: Final = 8 * 1024
_CHAIN: Final = ("ARK", "ASK", "VCEK", "VLEK")
_OTHERS: Final = ("Empty", "CRL")  # and {"OTHER": a GUID}: what the host put beside them, and nobody here needs
_TCB: Final = ("bootloader", "tee", "snp", "microcode")


class SnpGuestJudge:
    """See ``guests.GuestJudge``. Reports of VMPL 0 only reach ``cpu-tee``; see ``level_of``. ``roots``: only tests have
    others than AMD's."""

    tee = "snp"

    def __init__(self, collateral: Collateral, staleness: Staleness, *, roots: Mapping[str, str] = AMD_ROOTS) -> None:
        self._collateral = collateral
        self._staleness = staleness
        self._roots = dict(roots)

    def judge(self, primary: object, report: bytes, *, now: int) -> Guest:
        """The report data must be ``report`` (32 bytes) and 32 zero bytes, exactly. Without AMD's revocation list in
        the collateral nothing is accepted."""
        f = Fields(primary, "SEV-SNP evidence")
        raw = read_stock_report(f.raw("attestation_report"))
        given = read_stock_certificates(f.raw("cert_chain", optional=True))
        f.done()
        cpu, leaf = prove_guest(
            raw, given, report, self._collateral, self._staleness, now=now, require_crl=True, roots=self._roots
        )
        return Guest(
            level=level_of(cpu),
            attester=attester_id(leaf.signing_key, cpu.identity or leaf.csp_id),
            agent=guest_digest(self.tee, {"launch": cpu.measurements["launch"]}),
            device=cpu,
        )


def read_stock_certificates(value: object) -> list[Certificate]:
    """The VCEK or VLEK and what stands above it, from a ``cert_chain``; none from null. Raises Malformed."""
    found: list[Certificate] = []
    for entry in Fields({"cert_chain": value}, "SEV-SNP evidence").items(
        "cert_chain", lambda item: Fields(item, "SEV-SNP certificate"), limit=_MAX_ENTRIES, optional=True
    ):
        kind, data = entry.raw("cert_type"), entry.raw("data")
        entry.done()
        if not isinstance(data, list) or len(data) > _MAX_CERTIFICATE:
            raise _malformed()
        if kind in _OTHERS or (isinstance(kind, dict) and set(kind) == {"OTHER"}):
            continue
        if kind not in _CHAIN or len(found) == MAX_CERTIFICATES:
            raise _malformed()
        found.append(read_amd(_octets(data, len(data))))
    return found


def read_stock_report(value: object) -> bytes:
    """The 1,184 bytes of the report whose fields ``value`` holds. Raises Malformed for what is no such object, one
    field too many included; whether the bytes are a report is ``parse_report``'s question."""
    f = Fields(value, "SEV-SNP report")
    older = isinstance(value, dict) and "_author_key_en" in value
    tcb = _older_tcb if older else _newer_tcb
    head = (
        _number(f, "version", 4) + _number(f, "guest_svn", 4) + _number(f, "policy", 8) + _bytes(f, "family_id", 16)
        + _bytes(f, "image_id", 16) + _number(f, "vmpl", 4) + _number(f, "sig_algo", 4) + tcb(f, "current_tcb")
        + _number(f, "plat_info", 8)
        + (_number(f, "_author_key_en", 4) + _number(f, "_reserved_0", 4) if older else _number(f, "key_info", 8))
    )  # fmt: skip
    digests = {"report_data": 64, "measurement": 48, "host_data": 32, "id_key_digest": 48, "author_key_digest": 48}
    middle = b"".join(_bytes(f, name, size) for name, size in {**digests, "report_id": 32, "report_id_ma": 32}.items())
    middle += tcb(f, "reported_tcb") + (_bytes(f, "_reserved_1", 24) if older else _cpuid(f))
    tail = _bytes(f, "chip_id", 64) + tcb(f, "committed_tcb") + (_older_firmware(f) if older else _newer_firmware(f))
    tail += tcb(f, "launch_tcb") + (_bytes(f, "_reserved_4", 168) if older else _mitigations(f))
    signature = _signature(f, older)
    f.done()
    report = head + middle + tail + signature
    if len(report) != SIZE:
        raise _malformed()
    return report


def stock_fields(raw: bytes) -> dict[str, Any]:
    """The fields of a report as today's attesters write them: what ``read_stock_report`` reads. For our own nodes,
    where a contract sends them to a stock attestation service. Raises Malformed for what is no report."""
    report = parse_report(raw)
    turin = report.cpuid is not None and product_of_cpuid(*report.cpuid[:2]) == "turin"

    def tcb(version: bytes) -> dict[str, int | None]:
        if turin:
            return {"fmc": version[0], **dict(zip(_TCB, (*version[1:4], version[7]), strict=True))}
        return {"fmc": None, **dict(zip(_TCB, (*version[:2], *version[6:]), strict=True))}

    def firmware(version: tuple[int, int, int]) -> dict[str, int]:
        return dict(zip(("major", "minor", "build"), version, strict=True))

    octets = ("family_id", "image_id", "report_data", "measurement", "host_data", "id_key_digest", "author_key_digest")
    cpuid = report.cpuid or (None, None, None)
    return {
        **{name: list(getattr(report, name)) for name in (*octets, "report_id", "report_id_ma", "chip_id")},
        **{name: tcb(getattr(report, name)) for name in ("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb")},
        **dict(zip(("cpuid_fam_id", "cpuid_mod_id", "cpuid_step"), cpuid, strict=True)),
        "committed": firmware(report.committed_version),
        "current": firmware(report.current_version),
        "current_mit_vector": report.current_mitigations,
        "guest_svn": report.guest_svn,
        "key_info": int.from_bytes(raw[0x48:0x4C], "little"),
        "launch_mit_vector": report.launch_mitigations,
        "plat_info": report.platform,
        "policy": report.policy,
        "sig_algo": int.from_bytes(raw[0x34:0x38], "little"),
        "signature": {"r": list(raw[0x2A0:0x2E8]), "s": list(raw[0x2E8:0x330])},
        "version": report.version,
        "vmpl": report.vmpl,
    }


def _malformed() -> Malformed:
    return Malformed("snp.form", "The SEV-SNP evidence is not a report and certificates as its attester writes them.")


def _octets(value: Any, size: int) -> bytes:
    if not isinstance(value, list) or len(value) != size or any(type(octet) is not int for octet in value):
        raise _malformed()
    try:
        return bytes(value)
    except ValueError:  # one of them is no octet
        raise _malformed() from None


def _bytes(f: Fields, name: str, size: int) -> bytes:
    return _octets(f.raw(name), size)


def _number(f: Fields, name: str, size: int) -> bytes:
    """Little-endian. No field that is written as a number has more bits in use than JSON's readers agree on."""
    return f.integer(name, high=min(2 ** (8 * size), 2**53) - 1).to_bytes(size, "little")


def _octet(f: Fields, name: str) -> bytes:
    return _number(f, name, 1)


def _older_tcb(f: Fields, name: str) -> bytes:
    tcb = f.child(name)
    found = _octet(tcb, "bootloader") + _octet(tcb, "tee") + _bytes(tcb, "_reserved", 4)
    found += _octet(tcb, "snp") + _octet(tcb, "microcode")
    tcb.done()
    return found


def _newer_tcb(f: Fields, name: str) -> bytes:
    """Turin puts the FMC first, and the microcode alone stands at the end (AMD 56860, TCB_VERSION)."""
    tcb = f.child(name)
    fmc = None if tcb.raw("fmc", optional=True) is None else _octet(tcb, "fmc")
    bootloader, tee, snp, microcode = (_octet(tcb, part) for part in _TCB)
    tcb.done()
    if fmc is None:
        return bootloader + tee + bytes(4) + snp + microcode
    return fmc + bootloader + tee + snp + bytes(3) + microcode


def _cpuid(f: Fields) -> bytes:
    names = ("cpuid_fam_id", "cpuid_mod_id", "cpuid_step")
    return b"".join(bytes(1) if f.raw(name, optional=True) is None else _octet(f, name) for name in names) + bytes(21)


def _older_firmware(f: Fields) -> bytes:
    names = ["current_build", "current_minor", "current_major", "_reserved_2"]
    names += ["committed_build", "committed_minor", "committed_major", "_reserved_3"]
    return b"".join(_octet(f, name) for name in names)


def _newer_firmware(f: Fields) -> bytes:
    found = b""
    for name in ("current", "committed"):
        version = f.child(name)
        found += _octet(version, "build") + _octet(version, "minor") + _octet(version, "major") + bytes(1)
        version.done()
    return found


def _mitigations(f: Fields) -> bytes:
    names = ("launch_mit_vector", "current_mit_vector")
    found = (bytes(8) if f.raw(name, optional=True) is None else _number(f, name, 8) for name in names)
    return b"".join(found) + bytes(152)


def _signature(f: Fields, older: bool) -> bytes:
    """r and s as they stand in the report, little-endian, and the unused rest."""
    signature = f.child("signature")
    found = _bytes(signature, "r", 72) + _bytes(signature, "s", 72)
    found += _bytes(signature, "_reserved", 368) if older else bytes(368)
    signature.done()
    return found
