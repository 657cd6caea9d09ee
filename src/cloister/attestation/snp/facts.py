"""A verified report as facts: flat, named, and only what AMD's signature covers."""

from __future__ import annotations

from ..models import Device, Fact
from .certs import Leaf
from .products import PRODUCTS, split_tcb
from .report import PLATFORM_BITS, POLICY_BITS, Report, flags

__all__ = ["device"]

_NO_AGENT = (bytes(32), b"\xff" * 32)
_NOTE_MIGRATION = "The guest policy allows a migration agent: another guest that may take this one's memory elsewhere."
_NOTE_AGENT = "A migration agent, which this report doesn't measure, can take the guest's memory."
_NOTE_DEBUG = "The guest policy allows debugging: the host can read the guest's memory."
_NOTE_VLEK = "Signed by a cloud provider's key (VLEK): AMD's certificate names the provider, not the chip."
_NOTE_REVOCATION = "AMD's revocation list was not looked at."
_NOTE_PROVISIONAL = "The firmware is provisional: the host can still go back to the committed, older one."


def device(report: Report, leaf: Leaf, *, name: str, revocation_checked: bool) -> Device:
    """The processor of a report that ``leaf`` signed, both verified. Raises Malformed for reserved TCB bytes."""
    policy, platform = flags(report.policy, POLICY_BITS), flags(report.platform, PLATFORM_BITS)
    agent = report.report_id_ma not in _NO_AGENT
    provisional = (report.committed_tcb, report.committed_version) != (report.current_tcb, report.current_version)
    facts: dict[str, Fact] = {
        "author_key": report.author_key,
        "chip_id": report.chip_id.hex(),
        "chip_id_masked": not any(report.chip_id),
        "debug": policy["debug"],
        "guest_svn": report.guest_svn,
        "mask_chip_key": report.mask_chip_key,
        "migration_agent": agent,
        "policy.abi_major": report.policy >> 8 & 0xFF,
        "policy.abi_minor": report.policy & 0xFF,
        "product": leaf.product,
        "product_name": leaf.product_name,
        "provisional": provisional,
        "report_id": report.report_id.hex(),
        "report_version": report.version,
        "revocation_checked": revocation_checked,
        "signing_key": leaf.signing_key,
        "vmpl": report.vmpl,
    }
    facts |= {f"policy.{bit}": value for bit, value in policy.items()}
    facts |= {f"platform.{bit}": value for bit, value in platform.items()}
    facts |= _versions(report, leaf.product)
    if leaf.csp_id:
        facts["csp_id"] = leaf.csp_id
    notes = (
        (policy["debug"], _NOTE_DEBUG),
        (agent, _NOTE_AGENT),
        (policy["migrate_ma"] and not agent, _NOTE_MIGRATION),
        (leaf.signing_key == "vlek", _NOTE_VLEK),
        (provisional, _NOTE_PROVISIONAL),
        (not revocation_checked, _NOTE_REVOCATION),
    )
    return Device(
        name=name,
        tee="snp",
        # Under a VLEK no certificate names the chip, and machines of one provider share the key: no identity.
        identity=leaf.hwid.hex(),
        measurements=_measurements(report),
        facts=facts,
        hardware=f"AMD EPYC ({PRODUCTS[leaf.product]}) with SEV-SNP",
        notes=tuple(text for applies, text in notes if applies),
    )


def _measurements(report: Report) -> dict[str, str]:
    found = {
        "launch": report.measurement,
        "host_data": report.host_data,
        "report_data": report.report_data,
        "family_id": report.family_id,
        "image_id": report.image_id,
        "id_key": report.id_key_digest,
        "author_key": report.author_key_digest,
    }
    return {name: value.hex() for name, value in found.items()}


def _versions(report: Report, product: str) -> dict[str, Fact]:
    """TCB parts and firmware versions. ``tcb.*`` is the reported TCB: what the key was derived from, and certified."""
    facts: dict[str, Fact] = {}
    for prefix, tcb in (
        ("tcb", report.reported_tcb),
        ("tcb.current", report.current_tcb),
        ("tcb.committed", report.committed_tcb),
        ("tcb.launch", report.launch_tcb),
    ):
        facts |= {f"{prefix}.{part}": value for part, value in split_tcb(tcb, product).items()}
    for prefix, version in (("firmware", report.current_version), ("firmware.committed", report.committed_version)):
        facts |= {f"{prefix}.{part}": v for part, v in zip(("major", "minor", "build"), version, strict=True)}
    if report.cpuid is not None:
        facts |= {f"cpuid.{part}": v for part, v in zip(("family", "model", "stepping"), report.cpuid, strict=True)}
    for moment, mask in (("launch", report.launch_mitigations), ("current", report.current_mitigations)):
        # One fact a bit, and only for bits that are set: a rule that asks for a mitigation finds nothing otherwise.
        facts |= {f"mitigations.{moment}.{bit}": True for bit in range(64) if (mask or 0) >> bit & 1}
    return facts
