"""Verify the evidence of Azure's confidential VMs: hardware report, paravisor's text, vTPM's quote. Pure.

Who measures whom here: the hardware measures Microsoft's paravisor, whose launch measurement is in its report; the
paravisor holds the vTPM; the vTPM's PCRs measure the guest. So a contract must name all of it: the agent digest of the
claims is over the paravisor's launch measurement *and* the node agent's, and PCR 0 to 7 are named beside it. Without
the launch measurement anybody's own confidential VM could write such a text around a key of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from ...crypto import constant_time_equal
from ...errors import Malformed, Untrusted
from .. import snp, tdx
from ..collateral import Collateral, Staleness
from ..events import OpenedLog, open_log
from ..events import replay as replay_events
from ..models import Claims, Device, Evidence, Level, guest_digest
from ..snp.endorsements import find_endorsements
from .hcl import AzureEvidence, check_binding, parse_azure, verify_quote
from .verifier import EVENT_PCR

__all__ = ["AzureSnpVerifier", "AzureTdxVerifier", "verify_azure_snp", "verify_azure_tdx"]

_NOTE: Final = "The vTPM is software of the cloud provider's paravisor, which the hardware measured."
_NOTE_NONE: Final = "Level none: debugging, or another privileged party, can reach the guest's memory."
_TDX_MEASURED: Final = ("mrtd", "rtmr0", "rtmr1", "rtmr2")


@dataclass(frozen=True)
class _Found:
    cpu: Device
    evidence: AzureEvidence
    level: Level
    attester: str


def verify_azure_snp(
    body: object,
    nonce: bytes,
    collateral: Collateral,
    staleness: Staleness,
    *,
    now: int,
    require_crl: bool = True,
    roots: Mapping[str, str] = snp.AMD_ROOTS,
) -> Device:
    """What evidence of an SEV-SNP VM proves about processor, paravisor and vTPM; ``body`` as ``parse_azure`` reads it.

    ``nonce``: exactly what the vTPM was asked to sign. The entry for tools; whether TCB, debug bit, launch measurement
    and PCRs are good enough is the caller's question. Raises Malformed, Untrusted.
    """
    return _snp(body, nonce, collateral, staleness, now=now, require_crl=require_crl, roots=roots).cpu


def verify_azure_tdx(
    body: object,
    nonce: bytes,
    collateral: Collateral | None,
    staleness: Staleness,
    *,
    now: int,
    roots: Collection[str] = tdx.ROOTS,
) -> Device:
    """The same of a TDX VM. Without ``collateral`` the state of the platform isn't judged, and the device has no
    ``tcb_status``. Raises Unavailable ``tdx.collateral`` beside the others, for collateral that is missing."""
    return _tdx(body, nonce, collateral, staleness, now=now, roots=roots).cpu


def _opened(body: object, nonce: bytes, kind: str) -> AzureEvidence:
    found = parse_azure(body)
    if found.report.kind != kind:
        raise Untrusted("hcl.kind", "The evidence is of another kind of confidential VM.")
    # 1. The paravisor's text names the key that signed the quote, over this nonce and these PCRs.
    verify_quote(found.report, found.quote, nonce)
    if found.version == 2 and found.report.user_data != nonce + bytes(max(0, 64 - len(nonce))):
        raise Untrusted("hcl.user-data", "The hardware's report was made for another challenge.")
    return found


def _snp(
    body: object,
    nonce: bytes,
    collateral: Collateral,
    staleness: Staleness,
    *,
    now: int,
    require_crl: bool,
    roots: Mapping[str, str],
) -> _Found:
    evidence = _opened(body, nonce, "snp")
    parsed = snp.parse_report(evidence.report.hardware)
    # 2. The hardware's report is AMD's.
    vcek = snp.read_amd(evidence.endorsement)
    found = find_endorsements(parsed, [vcek], collateral, staleness, now=now)
    cpu = snp.verify_report(
        evidence.report.hardware,
        found.leaf.certificate,
        found.chain,
        now=now,
        crls=found.crls,
        crl_grace=staleness.grace,
        require_crl=require_crl,
        roots=roots,
    )
    # 3. It is about this text.
    check_binding(evidence.report, parsed.report_data)
    # 4. The paravisor asked for it: the guest under it runs at a lower privilege, and can have reports of that one
    # only.
    if parsed.vmpl != 0:
        raise Untrusted("hcl.vmpl", "The hardware's report was not asked for by the VM's paravisor.")
    attester = snp.attester_id(found.leaf.signing_key, cpu.identity or found.leaf.csp_id)
    return _Found(_with_vtpm(cpu, evidence), evidence, snp.level_of(cpu), attester)


def _tdx(
    body: object,
    nonce: bytes,
    collateral: Collateral | None,
    staleness: Staleness,
    *,
    now: int,
    roots: Collection[str],
) -> _Found:
    evidence = _opened(body, nonce, "tdx")
    # 2. The quote is by a platform of Intel's, and a trust domain's.
    cpu = tdx.verify_quote(evidence.endorsement, collateral, now=now, staleness=staleness, roots=roots)
    quoted = tdx.parse_quote(evidence.endorsement).body
    if not isinstance(quoted, tdx.TdReport):
        raise Untrusted("hcl.kind", "The evidence is of another kind of confidential VM.")
    # 3. It is about this text. The TD report beside it in the paravisor's report is signed for its own machine only.
    check_binding(evidence.report, quoted.report_data)
    return _Found(_with_vtpm(cpu, evidence), evidence, tdx.level_of(cpu), tdx.attester_id(cpu.identity))


def _with_vtpm(cpu: Device, evidence: AzureEvidence) -> Device:
    """The processor's device, with what the vTPM under it adds: it is software, not a device of its own."""
    pcrs = {f"pcr{index}": value.hex() for index, value in enumerate(evidence.quote.pcrs)}
    return replace(
        cpu,
        measurements={**cpu.measurements, **pcrs},
        facts={**cpu.facts, **evidence.report.facts},
        notes=(*cpu.notes, _NOTE),
    )


def _report(evidence: Evidence, tee: str, report: bytes) -> dict[str, Any]:
    if evidence.tee != tee:
        raise Untrusted("hcl.tee", "The evidence is of another platform than this verifier's.")
    if len(report) != 32:
        raise Malformed("hcl.report-size", "The data that a vTPM must quote has exactly 32 bytes.")
    return evidence.primary


def _claims(tee: str, found: _Found, launched: Mapping[str, str], additional: str) -> Claims:
    pcrs = {str(index): value.hex() for index, value in enumerate(found.evidence.quote.pcrs)}
    log = _replayed(additional, found.evidence.quote.pcrs[EVENT_PCR])
    cpu = found.cpu
    return Claims(
        tee=tee,
        level=found.level,
        attester=found.attester,
        measurement=log.launch["measurement"],
        agent=guest_digest(tee, {**launched, "agent": log.agent["measurement"]}),
        instance=log.launch["instance"],
        contract=log.launch["contract"],
        job=log.launch["job"],
        pcrs=pcrs,
        hardware=cpu.hardware,
        notes=cpu.notes if found.level != "none" else (_NOTE_NONE, *cpu.notes),
        devices=(cpu,),
        gpus=log.gpus,
        tenancy=log.tenancy,
    )


def _replayed(additional: str, pcr: bytes) -> OpenedLog:
    log = open_log(additional)
    if not constant_time_equal(replay_events(log.digests), pcr):
        raise Untrusted("hcl.replay", "The event log does not lead to the quoted value of PCR 15.")
    return log


class AzureSnpVerifier:
    """See ``ports.Verifier``: SEV-SNP VMs of Azure. Options as ``snp.SnpVerifier``."""

    tee = "az-snp-vtpm"

    def __init__(
        self,
        collateral: Collateral,
        staleness: Staleness,
        *,
        require_crl: bool = True,
        roots: Mapping[str, str] = snp.AMD_ROOTS,
    ) -> None:
        self._collateral, self._staleness = collateral, staleness
        self._require_crl, self._roots = require_crl, dict(roots)

    def verify(self, evidence: Evidence, report: bytes, *, now: int) -> Claims:
        """See ``ports.Verifier``. The vTPM's quote must be over exactly ``report`` (32 bytes)."""
        found = _snp(
            _report(evidence, self.tee, report),
            report,
            self._collateral,
            self._staleness,
            now=now,
            require_crl=self._require_crl,
            roots=self._roots,
        )
        return _claims(self.tee, found, {"launch": found.cpu.measurements["launch"]}, evidence.additional)


class AzureTdxVerifier:
    """See ``ports.Verifier``: TDX VMs of Azure. Options as ``tdx.TdxVerifier``."""

    tee = "az-tdx-vtpm"

    def __init__(self, collateral: Collateral, staleness: Staleness, *, roots: Collection[str] = tdx.ROOTS) -> None:
        self._collateral, self._staleness, self._roots = collateral, staleness, frozenset(roots)

    def verify(self, evidence: Evidence, report: bytes, *, now: int) -> Claims:
        """See ``ports.Verifier``. Beside the port's errors it raises Unavailable ``tdx.collateral``."""
        body = _report(evidence, self.tee, report)
        found = _tdx(body, report, self._collateral, self._staleness, now=now, roots=self._roots)
        if found.cpu.facts.get("tcb_status") == tdx.NOT_SUPPORTED:
            raise Untrusted("tdx.tcb-unknown", "Intel's TCB info has no level for this platform; update its firmware.")
        launched = {name: found.cpu.measurements[name] for name in _TDX_MEASURED}
        return _claims(self.tee, found, launched, evidence.additional)
