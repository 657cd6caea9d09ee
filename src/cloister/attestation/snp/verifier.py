"""Verify AMD SEV-SNP evidence (PROTOCOL §1, §2). Pure: no device, no clock, no network."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from ...crypto import constant_time_equal, verify_hardware_signature
from ...crypto.signatures import raw_ecdsa
from ...crypto.x509 import Certificate, Crl
from ...errors import Malformed, Untrusted
from ..collateral import Collateral, Staleness
from ..events import OpenedLog, open_log
from ..models import Claims, Device, Evidence, Level, guest_digest
from ..reader import canonical_base64
from .certs import Leaf, attester_id, check_chain, check_revocation, read_amd, read_leaf
from .endorsements import MAX_CERTIFICATES, find_endorsements
from .facts import device
from .products import covers, product_of_cpuid, split_tcb
from .report import HOST_REQUESTED, SIZE, Report, parse_report
from .roots import AMD_ROOTS

__all__ = ["SnpVerifier", "level_of", "prove_guest", "verify_report"]

_MAX_BASE64: Final = 4 * (16 * 1024)
_NOTE_NONE: Final = "Level none: debugging, another privilege level or a migration agent can reach the guest's memory."


def verify_report(
    report: bytes,
    vcek: Certificate,
    chain: Sequence[Certificate],
    *,
    now: int,
    crls: Sequence[Crl] = (),
    crl_grace: int = 0,
    require_crl: bool = False,
    roots: Mapping[str, str] = AMD_ROOTS,
    name: str = "cpu0",
) -> Device:
    """What one attestation report (1,184 bytes) proves about the processor and the guest that asked for it.

    ``vcek``: the VCEK or VLEK certificate. ``chain``: its ASK or ASVK, then the ARK. ``crls``: AMD's revocation lists;
    ``crl_grace`` seconds after its end a list still counts. ``roots``: SHA-256 of each product's ARK key.

    Guaranteed on return: AMD's hardware of that product, running the reported TCB, signed these facts. *Not* decided:
    whether the TCB, the debug bit, the privilege level (VMPL) or the launch measurement are acceptable; the facts say
    them. Raises Malformed for what breaks a form, Untrusted for what does not hold.
    """
    # 1. The report has the form of its version, and everything that it reserves is zero.
    parsed = parse_report(report)
    # 2. The guest asked for it, and it says which key signed it.
    _check_asked(parsed)
    # 3. The certificate is a VCEK's or VLEK's, and says for which product, TCB and chip or provider.
    leaf = read_leaf(vcek)
    # 4. AMD's root of that very product vouches for it, at this time, and AMD has not revoked the authority between.
    check_chain(leaf, chain, roots=roots, now=now)
    checked = check_revocation(chain, crls, now=now, grace=crl_grace, required=require_crl)
    # 5. That key signed the report.
    verify_hardware_signature(leaf.certificate.spki, parsed.signed, raw_ecdsa(parsed.signature), hash_name="sha384")
    # 6. Report and certificate speak of one kind of key, product, TCB and chip.
    _check_agreement(parsed, leaf)
    # 7. The TCB versions and firmware versions fit together.
    _check_versions(parsed, leaf.product)
    return device(parsed, leaf, name=name, revocation_checked=checked)


def prove_guest(
    raw: bytes,
    given: Sequence[Certificate],
    report: bytes,
    collateral: Collateral,
    staleness: Staleness,
    *,
    now: int,
    require_crl: bool,
    roots: Mapping[str, str],
) -> tuple[Device, Leaf]:
    """``verify_report`` with what ``given`` and the collateral have, for the challenge that ``report`` (32 bytes) is
    of: the report data must be it and 32 zero bytes, exactly. Says nothing about a launch log.

    Raises as ``verify_report``, and Unavailable ``snp.collateral`` for certificates that are missing.
    """
    if len(report) != 32:
        raise Malformed("snp.report-size", "The data that a SEV-SNP report must carry has exactly 32 bytes.")
    parsed = parse_report(raw)
    found = find_endorsements(parsed, given, collateral, staleness, now=now)
    cpu = verify_report(
        raw,
        found.leaf.certificate,
        found.chain,
        now=now,
        crls=found.crls,
        crl_grace=staleness.grace,
        require_crl=require_crl,
        roots=roots,
    )
    # 8. The report was made for this challenge, workload key and additional evidence.
    if not constant_time_equal(parsed.report_data, report + bytes(32)):
        raise Untrusted("snp.report", "The report was made for another challenge, workload key or event log.")
    return cpu, found.leaf


def level_of(found: Device, vmpls: Collection[int] = (0,)) -> Level:
    """``cpu-tee``, or ``none`` where somebody outside of the measured guest can reach its memory or speak for it.

    None: the policy allows debugging; a migration agent is associated; the report was asked for at a VMPL that isn't in
    ``vmpls``. Software can ask for reports of its own VMPL and of less privileged ones, so a report of VMPL 0 was asked
    for by what runs at VMPL 0, which the launch measurement covers. At another VMPL there may be software that nobody
    measured: name it here only where a measured service module at VMPL 0 lets nothing else run there.
    """
    facts = found.facts
    open_guest = facts["debug"] or facts["migration_agent"] or facts["vmpl"] not in vmpls
    return "none" if open_guest else "cpu-tee"


class SnpVerifier:
    """See ``ports.Verifier``: SEV-SNP reports with VCEK or VLEK signatures.

    ``require_crl``: without AMD's revocation list in the collateral nothing is accepted. ``vmpls``: privilege levels at
    which the node agent may run. ``roots``: as ``verify_report``; only tests have others than AMD's.
    """

    tee = "snp"

    def __init__(
        self,
        collateral: Collateral,
        staleness: Staleness,
        *,
        require_crl: bool = True,
        vmpls: Collection[int] = (0,),
        roots: Mapping[str, str] = AMD_ROOTS,
    ) -> None:
        self._collateral = collateral
        self._staleness = staleness
        self._require_crl = require_crl
        self._vmpls = frozenset(vmpls)
        self._roots = dict(roots)

    def verify(self, evidence: Evidence, report: bytes, *, now: int) -> Claims:
        """See ``ports.Verifier``. The report data must be ``report`` (32 bytes) and 32 zero bytes, exactly.

        Beside the port's errors it raises Unavailable ``snp.collateral`` for certificates that are missing.
        """
        if evidence.tee != self.tee:
            raise Untrusted("snp.tee", "The evidence is of another platform than SEV-SNP.")
        raw, given = _parse_primary(evidence.primary)
        # 1-8. AMD's hardware signed it, for this challenge, workload key and additional evidence.
        cpu, leaf = prove_guest(
            raw,
            given,
            report,
            self._collateral,
            self._staleness,
            now=now,
            require_crl=self._require_crl,
            roots=self._roots,
        )
        # 9. The measured agent wrote the event log, which the report data covers; the asking sandbox's launch is in it.
        return self._claims(cpu, leaf, open_log(evidence.additional))

    def _claims(self, cpu: Device, leaf: Leaf, log: OpenedLog) -> Claims:
        level = level_of(cpu, self._vmpls)
        return Claims(
            tee=self.tee,
            level=level,
            attester=attester_id(leaf.signing_key, cpu.identity or leaf.csp_id),
            measurement=log.launch["measurement"],
            agent=guest_digest(self.tee, {"launch": cpu.measurements["launch"]}),
            instance=log.launch["instance"],
            contract=log.launch["contract"],
            job=log.launch["job"],
            hardware=cpu.hardware,
            notes=cpu.notes if level != "none" else (_NOTE_NONE, *cpu.notes),
            devices=(cpu,),
            gpus=log.gpus,
            tenancy=log.tenancy,
        )


def _parse_primary(primary: dict[str, Any]) -> tuple[bytes, list[Certificate]]:
    if set(primary) != {"report", "certificates"}:
        raise Malformed("snp.form", "The SEV-SNP evidence does not have exactly a report and certificates.")
    certificates = primary["certificates"]
    if not isinstance(certificates, list) or len(certificates) > MAX_CERTIFICATES:
        raise Malformed("snp.form", f"SEV-SNP evidence has a list of at most {MAX_CERTIFICATES} certificates.")
    raw = _base64(primary["report"])
    if len(raw) != SIZE:
        raise Malformed("snp.structure", f"A SEV-SNP report has exactly {SIZE} bytes.")
    return raw, [read_amd(_base64(text)) for text in certificates]


def _base64(text: object) -> bytes:
    return canonical_base64(text, "SEV-SNP", limit=_MAX_BASE64, code="snp.base64")


def _check_asked(report: Report) -> None:
    if report.vmpl == HOST_REQUESTED:
        # Its report data is always zero: it can answer no challenge, so the guest said nothing at all.
        raise Untrusted("snp.host-requested", "The host asked for this report, not the guest; ask inside the guest.")
    if report.signing_key == "none":
        raise Untrusted("snp.unsigned", "The report says that no key signed it; enable the VCEK or load a VLEK.")


def _check_agreement(report: Report, leaf: Leaf) -> None:
    if report.signing_key != leaf.signing_key:
        raise Untrusted("snp.signing-key", "The report names another kind of key than its certificate.")
    if report.cpuid is not None and product_of_cpuid(*report.cpuid[:2]) != leaf.product:
        raise Untrusted("snp.product", "The report is of another product than the certificate.")
    if report.reported_tcb != leaf.tcb:
        raise Untrusted("snp.tcb-mismatch", "The report's TCB is not the one that its certificate is for.")
    # The host may hide the chip id in reports; the certificate names the chip all the same.
    masked = not any(report.chip_id)
    if leaf.hwid and not masked and report.chip_id != leaf.hwid.ljust(len(report.chip_id), b"\0"):
        raise Untrusted("snp.chip-id", "The report comes from another chip than the one that its certificate is for.")


def _check_versions(report: Report, product: str) -> None:
    """The firmware keeps these orders (AMD 56860, SNP_COMMIT and SNP_CONFIG); the launch TCB may be above or below."""
    current = split_tcb(report.current_tcb, product)
    for tcb in (report.committed_tcb, report.reported_tcb):
        if not covers(current, split_tcb(tcb, product)):
            raise Untrusted("snp.tcb-order", "The report's committed or reported TCB is above the current one.")
    if report.committed_version > report.current_version:
        raise Untrusted("snp.tcb-order", "The report's committed firmware is newer than the current one.")
