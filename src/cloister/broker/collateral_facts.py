"""What a piece of collateral says about itself, verified as far as pieces beside it allow. Pure.

This decides what may replace what in a cache, and tells people what they have. It decides nothing about evidence: the
verifiers check everything again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from ..attestation import nvidia, snp, tdx
from ..attestation.collateral import Collateral, Item, Staleness
from ..attestation.nvidia.rim import open_manifest
from ..attestation.snp.certs import check_chain
from ..attestation.tdx.documents import read_signed, signer_of, split_answer, time_field
from ..attestation.tdx.revocation import read_intel_crl
from ..crypto import parse_json
from ..crypto.ocsp import SKEW, read_ocsp
from ..crypto.x509 import Certificate, Crl, read_certificates, read_crl, verify_chain, verify_crl
from ..errors import CloisterError, Malformed, Untrusted
from ..fields import Fields

__all__ = ["PINNED", "Examined", "Pinned", "examine"]

TIME_CODES: Final = frozenset(
    {"collateral.future", "collateral.stale", "crl.future", "crl.stale", "x509.expired", "x509.not-yet"}
)


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
    """The vendors' roots; only tests have others."""

    amd: Mapping[str, str] = field(default_factory=lambda: dict(snp.AMD_ROOTS))
    intel: Collection[str] = tdx.ROOTS
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


def _amd_chain(item: Item, _: Collateral, now: int, pinned: Pinned) -> Examined:
    chain = read_certificates(item.data, limit=2)
    name = item.name.removesuffix("-vlek")
    if len(chain) != 2 or name not in pinned.amd:
        raise Malformed("snp.certificates", "It must be the ASK or ASVK of a known product, then the ARK.")
    verify_chain(chain[1:], roots={pinned.amd[name]}, now=_within(chain[1], now))
    begins, ends = max(c.not_before for c in chain), min(c.not_after for c in chain)
    return Examined(begins, ends + 1, checked=True)


def _amd_vcek(item: Item, beside: Collateral, now: int, pinned: Pinned) -> Examined:
    leaf = snp.read_leaf(snp.read_amd(item.data))
    certificate = leaf.certificate
    span = certificate.not_before, certificate.not_after + 1
    above = beside.find("amd-chain", snp.chain_name(leaf.product, leaf.signing_key))
    if above is None:
        return Examined(*span)
    check_chain(leaf, read_certificates(above.data, limit=2), roots=pinned.amd, now=_within(certificate, now))
    return Examined(*span, checked=True)


def _amd_crl(item: Item, beside: Collateral, _: int, pinned: Pinned) -> Examined:
    crl = read_crl(item.data)
    above = beside.find("amd-chain", item.name)
    if above is None:
        return _crl(crl, None)
    root = read_certificates(above.data, limit=2)[-1]
    if root.key_fingerprint != pinned.amd.get(item.name.removesuffix("-vlek")):
        raise Untrusted("x509.root", "The chain beside it does not end in a pinned root.")
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
        # The signer is judged at the document's own time: that the document has run out is said apart.
        signer, _root = signer_of(item.chain, now=max(begins, min(now, ends)), roots=pinned.intel)
        read_signed(answer, signer)
        return Examined(begins, ends, (number, begins), checked=True)

    return look


def _intel_pck_crl(item: Item, _: Collateral, now: int, pinned: Pinned) -> Examined:
    crl = read_intel_crl(item.data)
    if not item.chain:
        return _crl(crl, None)
    chain = read_certificates(item.chain, limit=3)
    root = chain[-1]
    if len(chain) != 2 or root.key_fingerprint not in pinned.intel:
        raise Untrusted("x509.root", "Its issuer chain does not end in a pinned root.")
    verify_chain(chain[1:], roots=pinned.intel, now=_within(root, now))
    return _crl(crl, chain[0])


def _intel_root_crl(item: Item, beside: Collateral, _: int, pinned: Pinned) -> Examined:
    crl = read_intel_crl(item.data)
    for kind, name in (("intel-qe-identity", "tdx"), ("intel-qe-identity", "sgx"), ("intel-pck-crl", "platform")):
        other = beside.find(kind, name)
        if other is not None and other.chain:
            root = read_certificates(other.chain, limit=4)[-1]
            if root.key_fingerprint in pinned.intel:
                return _crl(crl, root)
    return _crl(crl, None)


def _nvidia_rim(item: Item, _: Collateral, now: int, pinned: Pinned) -> Examined:
    try:
        open_manifest(item, roots=pinned.nvidia, now=now, staleness=Staleness())
    except Untrusted as error:
        if error.code not in TIME_CODES:
            raise
        return Examined(checked=True, refusal=error)
    return Examined(checked=True)


def _nvidia_crl(item: Item, _: Collateral, __: int, ___: Pinned) -> Examined:
    return _crl(read_crl(item.data), None)


def _within(certificate: Certificate, now: int) -> int:
    """The nearest moment at which the certificate is good: its time is told apart from its signature."""
    return max(certificate.not_before, min(now, certificate.not_after))


def _nvidia_ocsp(item: Item, _: Collateral, __: int, ___: Pinned) -> Examined:
    # Whose word it is can't be told without the certificate that it is about: that is verified where it is used. Its
    # times are compared all the same, so that an older "good" never takes the place of a newer "revoked".
    response = read_ocsp(item.data)
    return Examined(response.this_update - SKEW, response.next_update, (response.this_update, response.produced_at))


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
