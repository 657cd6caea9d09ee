"""Verifying vendors' raw evidence, offline: files in, proven facts out. For looking at what a platform says.

Nothing is fetched. What certificates and lists the evidence doesn't bring is given as files, in the forms in which the
vendors and their tools write them. A success says that the hardware signed these facts, as of the time that is asked
about; whether they are good enough is an owner's policy, but for two rules: what can be debugged is refused, and so is
a TPM's quote, since nothing that is given here shows that a TPM made it.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ..attestation import nvidia, snp, tdx
from ..attestation.collateral import CollateralSet, Item, Staleness
from ..attestation.models import Device
from ..attestation.nvidia.forms import read_entries
from ..attestation.snp.endorsements import find_endorsements
from ..attestation.snp.roots import intermediate_name, root_name
from ..attestation.tpm import quoting
from ..attestation.tpm.azure import verify_azure_snp, verify_azure_tdx
from ..attestation.tpm.hcl import parse_azure
from ..attestation.tpm.parser import parse_attest
from ..broker.collateral_store import read_bundle
from ..crypto import parse_json
from ..crypto.x509 import Certificate, read_certificates, read_crl
from ..errors import CloisterError, Denied, Malformed, Misuse
from ..fields import Fields

__all__ = ["PLATFORMS", "Given", "Proven", "verify_evidence"]

_MAX_JSON: Final = 1024 * 1024
_HEX = re.compile(rb"\s*(?:[0-9a-fA-F]{2})+\s*")
_NOT_FRESH: Final = "No nonce was given, so nothing is said about when, and for whom, this evidence was made."
_UNVOUCHED: Final = (
    "No maker vouches for this TPM's key, so this proves nothing: anybody can make such a quote with a key of its own."
)
_NOT_REVOKED: Final = "No revocation list was given, so a revoked certificate would not have been noticed."


@dataclass(frozen=True)
class Given:
    """A file: its name, without folders, and its bytes."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Proven:
    """What is true of each piece of hardware, by signatures up to its vendor's root. ``notes`` say what was not.
    ``unvouched``: names of devices whose key no vendor stands for; what they say is nobody's word."""

    platform: str
    at: int
    devices: tuple[Device, ...]
    notes: tuple[str, ...]
    unvouched: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        shown = ("name", "tee", "identity", "hardware", "measurements", "facts", "notes")
        devices = [{key: _plain(getattr(device, key)) for key in shown} for device in self.devices]
        return {
            "at": self.at,
            "devices": devices,
            "notes": list(self.notes),
            "platform": self.platform,
            "unvouched": list(self.unvouched),
            "verified": not self.unvouched,
        }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class _Question:
    evidence: Sequence[Given]
    collateral: Sequence[Given]
    at: int
    nonce: bytes | None

    @property
    def first(self) -> bytes:
        return self.evidence[0].data

    @property
    def binary(self) -> bytes:
        """The first file; vendors' tools write some of them in hex."""
        return binascii.unhexlify(self.first.strip()) if _HEX.fullmatch(self.first) else self.first


def verify_evidence(
    platform: str,
    evidence: Sequence[Given],
    collateral: Sequence[Given],
    *,
    at: int,
    nonce: bytes | None = None,
    allow_debug: bool = False,
    allow_unvouched: bool = False,
) -> Proven:
    """Verify ``evidence`` of ``platform`` as of ``at`` (POSIX seconds).

    Raises Misuse for a platform or files that don't fit together, Malformed, Untrusted or Unavailable for evidence that
    does not verify, and Denied: ``evidence.debug`` for what can be debugged unless ``allow_debug`` says otherwise,
    ``evidence.unvouched`` for a key that no vendor stands for unless ``allow_unvouched`` does.
    """
    check = _PLATFORMS.get(platform)
    if check is None:
        raise Misuse("evidence.platform", f"Name one of the platforms {', '.join(sorted(_PLATFORMS))}.")
    if not evidence:
        raise Misuse("evidence.files", "Name the file with the evidence.")
    devices, notes = check(_Question(evidence, collateral, at, nonce))
    if nonce is None:
        notes = (*notes, _NOT_FRESH)
    debug = sorted(device.name for device in devices if device.facts.get("debug") is True)
    if debug and not allow_debug:
        raise Denied(
            "evidence.debug",
            f"The signatures hold, but {debug[0]} can be debugged, so whoever runs the host can read its memory.",
        )
    # What makes a TPM one is its enrolment (attestation.tpm.enrolment), and only an owner's broker keeps that.
    unvouched = tuple(device.name for device in devices if device.tee == "tpm" and not device.identity)
    if unvouched and not allow_unvouched:
        raise Denied("evidence.unvouched", f"{_UNVOUCHED} Add --allow-unvouched to see what it says.")
    return Proven(platform, at, devices, (*notes, _UNVOUCHED) if unvouched else notes, unvouched)


_Answer = tuple[tuple[Device, ...], tuple[str, ...]]


def _snp(q: _Question) -> _Answer:
    raw = q.binary
    report = snp.parse_report(raw)
    certificates, crls = _amd_files([*q.evidence[1:], *q.collateral])
    items = [kept.item for kept in _bundled(q.collateral)]
    given = _chosen(certificates, items)
    found = find_endorsements(report, given, CollateralSet(items), Staleness(), now=q.at)
    device = snp.verify_report(
        raw, found.leaf.certificate, found.chain, now=q.at, crls=[*crls, *found.crls], require_crl=False
    )
    if q.nonce is not None and report.report_data != q.nonce.ljust(64, b"\0"):
        raise Denied("evidence.nonce", "The report was made for another nonce.")
    return (device,), (() if device.facts.get("revocation_checked") else (_NOT_REVOKED,))


def _amd_files(files: Sequence[Given]) -> tuple[list[Certificate], list[Any]]:
    certificates: dict[str, Certificate] = {}
    crls = []
    for file in files:
        if _is_bundle(file):
            continue
        try:
            found = read_certificates(file.data) if b"-----BEGIN" in file.data else (snp.read_amd(file.data),)
        except CloisterError:
            crls.append(read_crl(file.data))
            continue
        certificates |= {certificate.fingerprint: certificate for certificate in found}
    return list(certificates.values()), crls


def _chosen(certificates: Sequence[Certificate], items: Sequence[Item]) -> list[Certificate]:
    """The leaf, and the authorities of its own product: whoever has all of AMD's chains may give them all."""
    leaves = [c for c in certificates if snp.role_of(c) == "leaf"]
    leaves += [snp.read_amd(item.data) for item in items if item.kind == "amd-vcek"][: 0 if leaves else 1]
    if len(leaves) != 1:
        raise Misuse("evidence.files", "Give exactly one VCEK or VLEK certificate beside the report.")
    leaf = snp.read_leaf(leaves[0])
    names = {intermediate_name(leaf.product, leaf.signing_key), root_name(leaf.product)}
    return [leaves[0], *(c for c in certificates if c.subject_attributes.get("CN") in names)]


def _tdx(tee: str) -> Callable[[_Question], _Answer]:
    def check(q: _Question) -> _Answer:
        raw = q.binary
        parsed = tdx.parse_quote(raw)
        if parsed.tee != tee:
            raise Misuse("evidence.platform", f"This quote is of platform {parsed.tee}.")
        items = _intel_items(q)
        device = tdx.verify_quote(raw, CollateralSet(items) if items else None, now=q.at)
        if q.nonce is not None and parsed.body.report_data != q.nonce.ljust(64, b"\0"):
            raise Denied("evidence.nonce", "The quote was made for another nonce.")
        return (device,), ()

    return check


def _intel_items(q: _Question) -> list[Item]:
    """Collateral files as tools keep them: one JSON file of all, or the service's answers, lists and chains apart."""
    items = [kept.item for kept in _bundled(q.collateral)]
    parts: dict[str, bytes] = {}
    for file in (f for f in q.collateral if not _is_bundle(f)):
        if file.data.lstrip()[:1] != b"{":
            _intel_part(file.data, parts)
            continue
        body = parse_json(file.data, limit=_MAX_JSON)
        if "tcb_info" in body:
            items += tdx.read_collateral(file.data, obtained=q.at)
        elif "tcbInfo" in body or "enclaveIdentity" in body:
            parts["tcb_info" if "tcbInfo" in body else "qe_identity"] = file.data
        else:
            raise Malformed("evidence.collateral", f"{file.name} is no collateral that is known here.")
    chain = parts.pop("chain", b"")
    chains = {f"{part}_chain": chain for part in ("tcb_info", "qe_identity") if part in parts}
    for part in ("pck_crl", "root_crl"):
        if part in parts:
            items += tdx.service_items(obtained=q.at, **{part: parts.pop(part)})
    items += tdx.service_items(obtained=q.at, **parts, **chains)
    if q.collateral and not items:
        raise Misuse(
            "evidence.collateral", "The collateral holds certificates alone; add TCB info, identity and lists."
        )
    return items


def _intel_part(data: bytes, parts: dict[str, bytes]) -> None:
    if b"BEGIN CERTIFICATE" in data:
        parts["chain"] = data
        return
    issuer = tdx.service_items(obtained=0, pck_crl=data)[0].kind
    parts["root_crl" if issuer == "intel-root-crl" else "pck_crl"] = data


def _nvidia(q: _Question) -> _Answer:
    items = [kept.item for kept in _bundled(q.collateral)]
    items += [_manifest(file, q.at) for file in q.collateral if not _is_bundle(file)]
    collateral = CollateralSet(items) if items else None
    if len(q.evidence) == 2:
        return (nvidia.verify_report(q.binary, q.evidence[1].data, now=q.at, nonce=q.nonce, collateral=collateral),), ()
    devices: list[Device] = []
    for number, entry in enumerate(read_entries(parse_json(q.first, limit=_MAX_JSON))):
        said = entry.said.get("nonce", "")
        nonce = q.nonce if q.nonce is not None or not _HEX.fullmatch(said.encode()) else bytes.fromhex(said)
        arch = None if entry.architecture is None else entry.architecture.name
        found = nvidia.verify_report(
            entry.report, entry.certificates, arch, now=q.at, nonce=nonce, collateral=collateral, name=f"gpu{number}"
        )
        devices.append(found)
    return tuple(devices), ()


def _manifest(file: Given, at: int) -> Item:
    """A manifest by its file's name, or the service's answer, which says its id."""
    if file.data.lstrip()[:1] == b"{":
        f = Fields(parse_json(file.data, limit=2 * _MAX_JSON), "manifest service's answer")
        return Item("nvidia-rim", f.text("id", limit=256), f.base64("rim", limit=2 * _MAX_JSON), at)
    stem = re.sub(r"(_PROD)?\.(xml|swidtag)$", "", file.name)
    return Item("nvidia-rim", stem if stem.startswith("NV_") else f"NV_GPU_VBIOS_{stem}", file.data, at)


def _tpm(q: _Question) -> _Answer:
    """JSON with quote, signature, ak_public (base64) and pcrs (hex by number); then, perhaps, the firmware's log."""
    f = Fields(parse_json(q.first, limit=_MAX_JSON), "TPM evidence")
    message = f.base64("quote")
    pcrs = f.mapping("pcrs", _pcr, limit=24)
    nonce = q.nonce if q.nonce is not None else parse_attest(message).extra_data
    device = quoting.verify_quote(
        message,
        f.base64("signature"),
        f.base64("ak_public"),
        {int(number): value for number, value in pcrs.items()},
        nonce,
        boot_log=q.evidence[1].data if len(q.evidence) > 1 else None,
    )
    return (device,), ()


def _pcr(number: str, value: Any) -> bytes:
    if not re.fullmatch(r"[0-9]|1[0-9]|2[0-3]", number):
        raise Malformed("evidence.pcr", "A PCR has a number from 0 to 23.")
    return Fields({"value": value}, "PCR").hex("value", 32)


def _azure(verify: Callable[..., Device], intel: bool) -> Callable[[_Question], _Answer]:
    def check(q: _Question) -> _Answer:
        body = parse_json(q.first, limit=_MAX_JSON)
        nonce = q.nonce if q.nonce is not None else parse_attest(parse_azure(body).quote.message).extra_data
        if intel:
            items = _intel_items(q)
            found = verify(body, nonce, CollateralSet(items) if items else None, Staleness(), now=q.at)
            return (found,), ()
        items = [kept.item for kept in _bundled(q.collateral)] + _amd_items(q)
        found = verify(body, nonce, CollateralSet(items), Staleness(), now=q.at, require_crl=False)
        return (found,), (() if found.facts.get("revocation_checked") else (_NOT_REVOKED,))

    return check


def _amd_items(q: _Question) -> list[Item]:
    """AMD's chains and lists from files, named by what the certificates call themselves."""
    items = []
    for file in (f for f in q.collateral if not _is_bundle(f)):
        if b"BEGIN CERTIFICATE" not in file.data:
            crl = read_crl(file.data)
            product = crl.issuer.rpartition("ARK-")[2].partition(",")[0].lower()
            items.append(Item("amd-crl", product, file.data, q.at))
            continue
        chain = read_certificates(file.data, limit=2)
        middle = chain[0].subject_attributes.get("CN", "").removeprefix("SEV-")
        name = f"{middle[5:]}-vlek" if middle.startswith("VLEK-") else middle
        items.append(Item("amd-chain", name.lower() or "unknown", file.data, q.at))
    return items


def _is_bundle(file: Given) -> bool:
    return b'"type":"collateral-bundle/' in file.data[-64:]


def _bundled(files: Sequence[Given]) -> list[Any]:
    return [kept for file in files if _is_bundle(file) for kept in read_bundle(file.data)]


_PLATFORMS: Final[dict[str, Callable[[_Question], _Answer]]] = {
    "az-snp-vtpm": _azure(verify_azure_snp, intel=False),
    "az-tdx-vtpm": _azure(verify_azure_tdx, intel=True),
    "nvidia": _nvidia,
    "sgx": _tdx("sgx"),
    "snp": _snp,
    "tdx": _tdx("tdx"),
    "tpm": _tpm,
}
PLATFORMS: Final = tuple(sorted(_PLATFORMS))
