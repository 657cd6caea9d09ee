"""What a piece of collateral says about itself, verified as far as pieces beside it allow. Pure.

This decides what may replace what in a cache, and tells people what they have. It decides nothing about evidence: the
verifiers check everything again. What a piece says it is has to be what it is called: else a genuine document about one
processor would keep out the one that its place is for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from ..attestation import nvidia, snp, tdx
from ..attestation.collateral import Collateral, Item, Staleness
from ..attestation.nvidia.rim import Manifest, open_manifest
from ..attestation.snp.certs import check_chain
from ..attestation.snp.roots import intermediate_name, root_name
from ..attestation.tdx.documents import LEEWAY, hex_field, read_signed, signer_of, split_answer, time_field
from ..attestation.tdx.revocation import read_intel_crl
from ..crypto import parse_json
from ..crypto.ocsp import SKEW, read_ocsp, verify_ocsp
from ..crypto.x509 import Certificate, Crl, read_certificates, read_crl, verify_authorities, verify_crl
from ..errors import CloisterError, Malformed, Untrusted
from ..fields import Fields

__all__ = ["PINNED", "Examined", "Pinned", "check_displaces", "examine"]

TIME_CODES: Final = frozenset(
    {"collateral.future", "collateral.stale", "crl.future", "crl.stale", "x509.expired", "x509.not-yet"}
)
_EARLY_CODES: Final = frozenset({"collateral.future", "crl.future", "x509.not-yet"})
_TEES: Final = {"SGX": "sgx", "TDX": "tdx", "QE": "sgx", "TD_QE": "tdx"}
_PCK_AUTHORITIES: Final = {"platform": "Intel SGX PCK Platform CA", "processor": "Intel SGX PCK Processor CA"}
_WITH_ROOT: Final = (
    ("intel-qe-identity", "tdx"),
    ("intel-qe-identity", "sgx"),
    ("intel-pck-crl", "platform"),
    ("intel-pck-crl", "processor"),
)
_INTEL_ROOT: Final = "Intel SGX Root CA"
_DRIVER: Final = re.compile(r"NV_GPU_(?:CC_)?DRIVER_([A-Z]{2})[0-9A-Z]*_.*")
_EVER: Final = 1 << 40
"""Seconds: a grace after which nothing is asked of time any more."""


@dataclass(frozen=True)
class Examined:
    """``begins`` and ``ends``: by its own word (POSIX seconds). ``version``: a later piece has a higher one; None where
    that can't be told. ``checked``: whether a signature up to a pinned root was verified. ``refusal``: why it is not
    good now."""

    begins: int | None = None
    ends: int | None = None
    version: tuple[int, ...] | None = None
    checked: bool = False
    refusal: CloisterError | None = None

    @property
    def only_time(self) -> bool:
        """Whether nothing but the clock speaks against it."""
        return self.refusal is not None and self.refusal.code in TIME_CODES


@dataclass(frozen=True)
class Pinned:
    """The vendors' roots; only tests have others. ``gpus``: over NVIDIA's devices, ``nvidia``: over its manifests."""

    amd: Mapping[str, str] = field(default_factory=lambda: dict(snp.AMD_ROOTS))
    intel: Collection[str] = tdx.ROOTS
    gpus: Collection[str] = tuple(nvidia.DEVICE_ROOTS)
    nvidia: Collection[str] = tuple(nvidia.MANIFEST_ROOTS)


PINNED: Final = Pinned()
_Look = Callable[[Item, Collateral, int, Pinned], Examined]


def examine(item: Item, beside: Collateral, *, now: int, pinned: Pinned = PINNED) -> Examined:
    """Look at one piece, with ``beside`` for the certificates that its own signature needs. Raises nothing."""
    try:
        found = _LOOKS[item.kind](item, beside, now, pinned)
    except CloisterError as error:
        return Examined(refusal=error)
    if found.refusal is None and found.begins is not None and now < found.begins:
        return _late(found, "collateral.future", "It is not good yet; check the clock.")
    if found.refusal is None and found.ends is not None and now >= found.ends:
        return _late(found, "collateral.stale", "It has run out; fetch or import a newer one.")
    return found


def _late(found: Examined, code: str, why: str) -> Examined:
    return Examined(found.begins, found.ends, found.version, found.checked, Untrusted(code, why))


def check_displaces(item: Item, known: Item | None, beside: Collateral, *, now: int, pinned: Pinned = PINNED) -> None:
    """Return if ``item`` may take the place of ``known``, the piece of its kind and name that a cache has. Raises
    Untrusted: see ``CollateralStore.put``."""
    if item.obtained > now:
        raise Untrusted(
            "collateral.future", "A piece of collateral was obtained in the future; check the clocks.", name=item.name
        )
    found = examine(item, beside, now=now, pinned=pinned)
    if found.refusal is not None and not found.only_time:
        raise Untrusted(found.refusal.code, f"The {item.kind} {item.name} is not genuine: {found.refusal.message}")
    if _early(found, now):
        # However it came about, it would keep every genuine piece out until its own date.
        raise Untrusted(
            "collateral.future", f"The {item.kind} {item.name} is not good yet; check the clock, or who brought it."
        )
    if known is None or (known.data, known.chain) == (item.data, item.chain):
        return
    before = examine(known, beside, now=now, pinned=pinned)
    if before.refusal is not None and not before.only_time:
        return  # one that is here and not genuine is no reason to keep another one out
    if before.checked and not found.checked:
        raise Untrusted(
            "collateral.unchecked", f"Nothing shows that the {item.kind} {item.name} is genuine, unlike the one here."
        )
    if found.checked and not before.checked:
        return  # the date of what may be anybody's is no reason either
    if before.version is not None and found.version is not None and found.version < before.version:
        raise Untrusted(
            "collateral.older", f"The {item.kind} {item.name} is older than the one that is here; fetch a new one."
        )


def _early(found: Examined, now: int) -> bool:
    """Whether it becomes good later than now, by more than a clock may be behind. The leeway is that of the verifiers
    for Intel's documents: what they would take is not refused here."""
    if found.begins is not None:
        return found.begins > now + LEEWAY
    return found.refusal is not None and found.refusal.code in _EARLY_CODES


def _amd_chain(item: Item, _: Collateral, now: int, pinned: Pinned) -> Examined:
    chain = read_certificates(item.data, limit=2)
    name = item.name.removesuffix("-vlek")
    if len(chain) != 2 or name not in pinned.amd:
        raise Malformed("snp.certificates", "It must be the ASK or ASVK of a known product, then the ARK.")
    above = intermediate_name(name, "vlek" if item.name.endswith("-vlek") else "vcek"), root_name(name)
    _same(tuple(c.subject_attributes.get("CN") for c in chain), above)
    verify_authorities(chain, roots={pinned.amd[name]}, now=_moment(now, *chain))
    begins, ends = max(c.not_before for c in chain), min(c.not_after for c in chain)
    return Examined(begins, ends + 1, checked=True)


def _amd_vcek(item: Item, beside: Collateral, now: int, pinned: Pinned) -> Examined:
    leaf = snp.read_leaf(snp.read_amd(item.data))
    # The form of snp.vcek_name: chip id, then the TCB version with its most significant byte first.
    _same(f"{leaf.hwid.hex()}-{leaf.tcb[::-1].hex()}", item.name)
    certificate = leaf.certificate
    span = certificate.not_before, certificate.not_after + 1
    above = beside.find("amd-chain", snp.chain_name(leaf.product, leaf.signing_key))
    if above is None:
        return Examined(*span)
    chain = read_certificates(above.data, limit=2)
    check_chain(leaf, chain, roots=pinned.amd, now=_moment(now, certificate, *chain))
    return Examined(*span, checked=True)


def _amd_crl(item: Item, beside: Collateral, now: int, pinned: Pinned) -> Examined:
    crl = read_crl(item.data)
    name = item.name.removesuffix("-vlek")
    if name not in pinned.amd:
        raise Malformed("snp.certificates", "It must be named after a known product.")
    _same_issuer(crl, root_name(name))
    above = beside.find("amd-chain", item.name)
    if above is None:
        return _crl(crl, None)
    root = read_certificates(above.data, limit=2)[-1]
    verify_authorities([root], roots={pinned.amd[name]}, now=_moment(now, root))
    return _crl(crl, root)


def _crl(crl: Crl, issuer: Certificate | None) -> Examined:
    if issuer is not None:
        verify_crl(crl, issuer, now=crl.this_update)  # whether it is in its time is said apart
    return Examined(crl.this_update, crl.next_update, (crl.this_update,), checked=issuer is not None)


def _intel_document(name: str, beginning: str) -> _Look:
    def look(item: Item, _: Collateral, now: int, pinned: Pinned) -> Examined:
        answer = split_answer(item.data, name)
        claimed = Fields(parse_json(answer.body), "document")
        begins, ends = time_field(claimed, beginning), time_field(claimed, "nextUpdate")
        number = claimed.integer("tcbEvaluationDataNumber")
        _same(_called(claimed, name), item.name)
        # The signer is judged at the document's own time: that the document has run out is said apart.
        at = _moment(now, *read_certificates(item.chain, limit=4), begins=begins, ends=ends)
        signer, _root = signer_of(item.chain, now=at, roots=pinned.intel)
        read_signed(answer, signer)
        return Examined(begins, ends, (number, begins), checked=True)

    return look


def _called(document: Fields, name: str) -> str:
    """Which piece a document of Intel's is by its own word. TCB info of version 2 is older than TDX, and has no id."""
    if name == "enclaveIdentity":
        return _TEES[document.text("id", choices=("QE", "TD_QE"))]
    tee = "SGX" if document.integer("version") == 2 else document.text("id", choices=("SGX", "TDX"))
    return f"{hex_field(document, 'fmspc', 6).hex()}-{_TEES[tee]}"


def _intel_pck_crl(item: Item, _: Collateral, now: int, pinned: Pinned) -> Examined:
    crl = read_intel_crl(item.data)
    if item.name not in _PCK_AUTHORITIES:
        raise _other()
    _same_issuer(crl, _PCK_AUTHORITIES[item.name])
    if not item.chain:
        return _crl(crl, None)
    chain = read_certificates(item.chain, limit=3)
    if len(chain) != 2:
        raise Untrusted("x509.root", "Its issuer chain is not the authority's certificate and the root's.")
    verify_authorities(chain, roots=pinned.intel, now=_moment(now, *chain))
    return _crl(crl, chain[0])


def _intel_root_crl(item: Item, beside: Collateral, now: int, pinned: Pinned) -> Examined:
    crl = read_intel_crl(item.data)
    _same(item.name, "root")
    _same_issuer(crl, _INTEL_ROOT)
    for kind, name in _WITH_ROOT:
        other = beside.find(kind, name)
        if other is not None and other.chain:
            root = read_certificates(other.chain, limit=4)[-1]
            if root.key_fingerprint in pinned.intel:
                verify_authorities([root], roots=pinned.intel, now=_moment(now, root))
                return _crl(crl, root)
    return _crl(crl, None)


def _nvidia_rim(item: Item, _: Collateral, now: int, pinned: Pinned) -> Examined:
    try:
        manifest, late = open_manifest(item, roots=pinned.nvidia, now=now, staleness=Staleness()), None
    except Untrusted as error:
        if error.code not in TIME_CODES:
            raise
        # Certificates are judged before the signature: one that has run out says nothing of it yet.
        lasting = Staleness(grace=_EVER)
        manifest = open_manifest(replace(item, obtained=now), roots=pinned.nvidia, now=now, staleness=lasting)
        late = error
    _same_manifest(manifest, item.name)
    return Examined(checked=True, refusal=late)


def _same_manifest(manifest: Manifest, name: str) -> None:
    """A manifest does not hold the id that it is published under (its ``tagId`` is another number). The id ends with
    the version that the manifest states, without dots for a VBIOS, and a driver's names the chip."""
    version, told = manifest.version.upper(), name.upper()
    if not told.endswith((f"_{version}", f"_{version.replace('.', '')}")):
        raise _other()
    driver = _DRIVER.fullmatch(told)
    if driver is not None:
        _same(manifest.product[:2].upper(), driver[1])


def _nvidia_crl(item: Item, _: Collateral, __: int, ___: Pinned) -> Examined:
    return _crl(read_crl(item.data), None)


def _nvidia_ocsp(item: Item, _: Collateral, now: int, pinned: Pinned) -> Examined:
    # Whose word it is can't be told without the certificate that it is about and those above it. Its times are compared
    # all the same, so that an older "good" never takes the place of a newer "revoked".
    response = read_ocsp(item.data)
    version = response.this_update, response.produced_at
    found = Examined(max(version) - SKEW, response.next_update, version)
    if not item.chain:
        return found
    chain = read_certificates(item.chain)
    _same(chain[0].fingerprint, item.name)
    if len(chain) < 2:
        raise Malformed(
            "x509.count", "The chain beside it must hold the certificate that it is about, and its issuers."
        )
    at = _moment(now, *chain, begins=max(version), ends=response.next_update - 1)
    verify_authorities(chain, roots=pinned.gpus, now=at)
    verify_ocsp(response, chain[0], chain[1:], now=at)
    return replace(found, checked=True)


def _moment(now: int, *certificates: Certificate, begins: int | None = None, ends: int | None = None) -> int:
    """The nearest moment at which all certificates are good, and the piece too (``begins``, ``ends``): its time is told
    apart from its signature. One that never was good would be let through unverified, as one that has run out."""
    first = max([*(c.not_before for c in certificates), *([] if begins is None else [begins])])
    last = min([*(c.not_after for c in certificates), *([] if ends is None else [ends])])
    if first > last:
        raise Untrusted("collateral.never", "Its own time and that of its certificates have no moment in common.")
    return max(first, min(now, last))


def _same(found: object, expected: object) -> None:
    if found != expected:
        raise _other()


def _same_issuer(crl: Crl, common: str) -> None:
    _same(f"CN={common}" in crl.issuer.split(","), True)


def _other() -> Untrusted:
    return Untrusted("collateral.other", "It is another piece than its name says; fetch the one that is meant.")


_LOOKS: Final[Mapping[str, _Look]] = {
    "amd-chain": _amd_chain,
    "amd-vcek": _amd_vcek,
    "amd-crl": _amd_crl,
    "intel-tcb": _intel_document("tcbInfo", "issueDate"),
    "intel-qe-identity": _intel_document("enclaveIdentity", "issueDate"),
    "intel-pck-crl": _intel_pck_crl,
    "intel-root-crl": _intel_root_crl,
    "nvidia-rim": _nvidia_rim,
    "nvidia-crl": _nvidia_crl,
    "nvidia-ocsp": _nvidia_ocsp,
}
