"""Verify an SGX or TDX quote: from Intel's root to what the hardware said. Pure; the raw entry for tools."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from ...crypto import constant_time_equal, sha256, verify_hardware_signature
from ...crypto.signatures import ecdsa_public_der, raw_ecdsa
from ...crypto.x509 import Certificate, check_usage, verify_chain
from ...errors import Malformed, Unavailable, Untrusted
from ...fields import Fields
from ..collateral import Collateral, Item, Staleness
from ..models import Device
from .device import describe
from .documents import check_time, read_signed, signer_of, split_answer, time_field
from .enclave import check_enclave, read_identity
from .pck import PlatformCertificate, platform_certificate, read_chain
from .quote import Quote, TdReport, parse_quote
from .revocation import RevocationList
from .roots import ROOTS
from .tcb import REVOKED, Evaluation, TcbInfo, check_module, evaluate, read_tcb_info

__all__ = ["Authentic", "authenticate_quote", "judge_quote", "verify_quote"]

Chain: TypeAlias = tuple[Certificate, Certificate, Certificate]
_BAD_QUOTE: Final = "The quote was changed, or was not signed by its attestation key."


@dataclass(frozen=True)
class Authentic:
    """A quote that a platform with a PCK certificate of Intel's signed. Says nothing yet about the platform's state."""

    quote: Quote
    platform: PlatformCertificate
    chain: Chain


def authenticate_quote(data: bytes, *, now: int, roots: Collection[str] = ROOTS) -> Authentic:
    """Return if the signatures lead from the quote to a root. Raises Malformed, Untrusted.

    Steps 1 to 5 of the README. Not here: revocation and the state of the platform, which take collateral.
    """
    # 1. The form.
    quote = parse_quote(data)
    chain = read_chain(quote.pck_chain)
    # 2. PCK certificate, its authority, the pinned root.
    verify_chain(chain, roots=roots, now=now)
    check_usage(chain[0], "digital_signature", "x509.usage", "A PCK certificate doesn't allow its key to sign.")
    platform = platform_certificate(chain[0], chain[1])
    # 3. The platform signed the quoting enclave's report.
    report = quote.qe_report
    try:
        verify_hardware_signature(chain[0].spki, report.raw, raw_ecdsa(quote.qe_report_signature))
    except Untrusted:
        raise Untrusted("tdx.qe-signature", "The quoting enclave's report was not signed by the platform.") from None
    # 4. That enclave vouches for the attestation key. The hash fills half of the report data, and zeros the rest.
    expected = sha256(quote.attestation_key + quote.qe_auth_data) + bytes(32)
    if not constant_time_equal(report.report_data, expected):
        raise Untrusted("tdx.attestation-key", "The quoting enclave did not make the attestation key of the quote.")
    # 5. That key signed header and body.
    try:
        key = ecdsa_public_der("P-256", quote.attestation_key[:32], quote.attestation_key[32:])
        verify_hardware_signature(key, quote.signed, raw_ecdsa(quote.signature))
    except (Untrusted, Malformed):
        raise Untrusted("tdx.signature", _BAD_QUOTE) from None
    return Authentic(quote, platform, chain)


def judge_quote(
    authentic: Authentic,
    collateral: Collateral,
    *,
    now: int,
    staleness: Staleness,
    roots: Collection[str] = ROOTS,
) -> Evaluation:
    """Steps 6 to 10 of the README. Raises Malformed, Untrusted; Unavailable ``tdx.collateral`` for what is missing."""
    quote, platform, (leaf, authority, root) = authentic.quote, authentic.platform, authentic.chain
    # 6. None of the certificates was revoked, the root by itself included.
    root_item = _find(collateral, "intel-root-crl", "root", "revocation list of Intel's root")
    root_crl = RevocationList(root_item.data, now=now, staleness=staleness)
    root_crl.check(root, root)
    root_crl.check(authority, root)
    kind = platform.authority
    pck_item = _find(collateral, "intel-pck-crl", kind, f"revocation list of Intel's PCK {kind} authority")
    RevocationList(pck_item.data, now=now, staleness=staleness).check(leaf, authority)
    # 7-8. Intel's documents: signed, in their time, about this TEE and this platform.
    documents = _Documents(collateral, quote.tee, platform, root_crl)
    bodies = documents.verified(now=now, staleness=staleness, roots=roots)
    identity = read_identity(bodies["enclaveIdentity"])
    enclave = check_enclave(identity, quote.tee, quote.qe_report)
    info = read_tcb_info(bodies["tcbInfo"])
    _check_same_platform(info, quote, platform)
    # 9. The TDX module is Intel's.
    report = quote.body if isinstance(quote.body, TdReport) else None
    if report is not None:
        check_module(info, report)
    # 10. The state of all of it together.
    evaluation = evaluate(
        info,
        components=platform.components,
        pcesvn=platform.pcesvn,
        report=report,
        enclave=enclave,
        enclave_number=identity.evaluation,
    )
    if evaluation.status == REVOKED:
        # Not a matter of policy: the keys of such a platform may be known, and then its signatures prove nothing.
        raise Untrusted("tdx.tcb-revoked", "Intel revoked the state that this platform is in; update its firmware.")
    return evaluation


def verify_quote(
    data: bytes,
    collateral: Collateral | None,
    *,
    now: int,
    staleness: Staleness | None = None,
    roots: Collection[str] = ROOTS,
    name: str = "cpu0",
) -> Device:
    """Verify a quote, SGX or TDX, and say what it proves.

    Without ``collateral`` only the signatures up to Intel's root are checked: the device then has no ``tcb_status``,
    and its notes say so. A debuggable guest, a state that isn't up to date and trailing bytes are told, not refused:
    whether they are good enough is the caller's question. Raises Malformed, Untrusted (a revoked state or certificate
    included), Unavailable for collateral that is missing.
    """
    authentic = authenticate_quote(data, now=now, roots=roots)
    evaluation = None
    if collateral is not None:
        evaluation = judge_quote(authentic, collateral, now=now, staleness=staleness or Staleness(), roots=roots)
    return describe(authentic.quote, authentic.platform, evaluation, name)


def _check_same_platform(info: TcbInfo, quote: Quote, platform: PlatformCertificate) -> None:
    if info.tee != quote.tee:
        raise Untrusted("tdx.tcb-info", "The TCB info is for another TEE than the quote's.")
    if info.fmspc != platform.fmspc or info.pceid != platform.pceid:
        raise Untrusted("tdx.tcb-info", "The TCB info is for another kind of platform than the quote's.")


def _find(collateral: Collateral, kind: str, name: str, what: str) -> Item:
    item = collateral.find(kind, name)
    if item is None:
        raise Unavailable("tdx.collateral", f"There is no {what}; fetch or import it.", kind=kind, name=name)
    return item


class _Documents:
    """TCB info and quoting enclave's identity of one platform, and who signed them."""

    def __init__(
        self, collateral: Collateral, tee: str, platform: PlatformCertificate, root_crl: RevocationList
    ) -> None:
        name = f"{platform.fmspc.hex()}-{tee}"
        self._items = {
            "tcbInfo": _find(collateral, "intel-tcb", name, f"TCB info for {name}"),
            "enclaveIdentity": _find(collateral, "intel-qe-identity", tee, f"identity of the {tee} quoting enclave"),
        }
        self._root_crl = root_crl

    def verified(self, *, now: int, staleness: Staleness, roots: Collection[str]) -> dict[str, dict[str, Any]]:
        """The signed objects by the names that the service gives them."""
        found: dict[str, dict[str, Any]] = {}
        signers: dict[bytes, Certificate] = {}
        for name, item in self._items.items():
            # One certificate signs both: where the header of one answer was lost, the other's chain does.
            chain = item.chain or next((other.chain for other in self._items.values() if other.chain), b"")
            if not chain:
                raise Unavailable("tdx.collateral", "TCB info came without its issuer chain; import it with its chain.")
            if chain not in signers:
                signer, root = signer_of(chain, now=now, roots=roots)
                self._root_crl.check(signer, root)
                signers[chain] = signer
            found[name] = read_signed(split_answer(item.data, name), signers[chain])
            times = Fields(found[name], name)
            begins, ends = time_field(times, "issueDate"), time_field(times, "nextUpdate")
            check_time(name, begins=begins, ends=ends, now=now, staleness=staleness)
        return found
