"""Verify what NVIDIA's GPUs and switches say of themselves. Pure: no GPU, no clock, no network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha384
from typing import Any, Final

from ...crypto import constant_time_equal, frame, verify_hardware_signature
from ...crypto.signatures import raw_ecdsa
from ...errors import Malformed, Untrusted
from ..collateral import Collateral, Staleness
from ..models import Device, Fact
from . import spdm
from .chain import ARCHITECTURES, Architecture, DeviceChain, verify_device_chain
from .compare import compare
from .forms import MAX_GPUS, MAX_SWITCHES, Entry, architecture, read_entries
from .rim import Manifest, driver_rim_id, open_manifest, vbios_rim_id
from .roots import DEVICE_ROOTS, MANIFEST_ROOTS
from .spdm import Report, parse_report

__all__ = ["NvidiaVerifier", "verify_report"]

_NOT_COMPARED: Final = "No reference manifest was compared: nothing is known about firmware, mode or debugging."
_DEVELOPER_TOOLS: Final = (
    "No signed field says that developer tools are off or that confidential mode is on: NVIDIA's own tools ask the "
    "driver. What is proven is that every listed measurement is one of NVIDIA's; the rest is the measured guest's word."
)
_IN_THE_CLEAR: Final = "Links between GPUs and switches are not encrypted in this mode."


@dataclass(frozen=True)
class _Trust:
    """What one verification leans on. ``opened``: manifests that it has verified already, by id; a fresh one each time,
    for they are good at one clock only."""

    collateral: Collateral | None
    staleness: Staleness
    device_roots: Collection[str]
    manifest_roots: Collection[str]
    require_revocation: bool
    opened: dict[str, Manifest] = field(default_factory=dict)


def verify_report(
    report: bytes,
    certificates: bytes,
    arch: str | None = None,
    *,
    now: int,
    nonce: bytes | None = None,
    collateral: Collateral | None = None,
    staleness: Staleness | None = None,
    require_revocation: bool = False,
    device_roots: Collection[str] = tuple(DEVICE_ROOTS),
    manifest_roots: Collection[str] = tuple(MANIFEST_ROOTS),
    name: str = "gpu0",
) -> Device:
    """One device, from its attestation report (SPDM, binary) and its certificate chain (PEM). The raw entry for tools.

    ``arch``: HOPPER, BLACKWELL or LS10; without it, what the certificates say. ``nonce``: 32 bytes that the report must
    have been made for; without it nothing is said about freshness. ``collateral``: must hold the driver's and the
    VBIOS's manifest; without any, nothing is compared, and the facts say so. ``require_revocation``: it must also hold
    NVIDIA's fresh word that no certificate of the chain was revoked. Raises Malformed or Untrusted.
    """
    trust = _Trust(collateral, staleness or Staleness(), device_roots, manifest_roots, require_revocation)
    entry = Entry(report, certificates, None if arch is None else architecture(arch))
    return replace(_verify(entry, trust, nonce=nonce, now=now)[0], name=name)


class NvidiaVerifier:
    """Checks the evidence of up to 8 GPUs and 8 switches.

    Guaranteed: each is a different device under NVIDIA's root, signed this very ``device`` value, and measured only
    what NVIDIA's signed manifests list for its driver and firmware. *Not* guaranteed: that its developer tools are off
    (see the README), who owns it, where it stands, or that it is attached to the machine that the CPU's evidence is of:
    that the evidence was collected by the measured guest itself is what binds them, see ``composite``. That no device
    was revoked or put on hold is guaranteed with ``require_revocation``; without it, only what is at hand is looked at,
    as a policy can tell from the fact ``revocation_checked``.
    """

    kind = "nvidia"

    def __init__(
        self,
        collateral: Collateral,
        staleness: Staleness,
        *,
        require_revocation: bool = False,
        device_roots: Collection[str] = tuple(DEVICE_ROOTS),
        manifest_roots: Collection[str] = tuple(MANIFEST_ROOTS),
    ) -> None:
        self._trust = _Trust(collateral, staleness, device_roots, manifest_roots, require_revocation)

    def verify(self, evidence: Any, device: bytes, *, now: int) -> tuple[Device, ...]:
        """See ``ports.DeviceVerifier``."""
        if not isinstance(device, bytes) or len(device) != 32:
            raise Malformed("nvidia.nonce-size", "A GPU's nonce has exactly 32 bytes.")
        found: list[tuple[Device, DeviceChain, Report]] = []
        counts: Counter[str] = Counter()
        trust = replace(self._trust, opened={})
        for entry in read_entries(evidence):
            entry.check_nonce(device)
            proven, chain, report = _verify(entry, trust, nonce=device, now=now)
            kind = "nvswitch" if chain.architecture.switch else "gpu"
            found.append((replace(proven, name=f"{kind}{counts[kind]}"), chain, report))
            counts[kind] += 1
            if counts["gpu"] > MAX_GPUS or counts["nvswitch"] > MAX_SWITCHES:
                raise Malformed("nvidia.count", f"There are more than {MAX_GPUS} GPUs or {MAX_SWITCHES} switches.")
        _check_distinct([chain for _, chain, _ in found])
        return _with_topology(found)


def _verify(entry: Entry, trust: _Trust, *, nonce: bytes | None, now: int) -> tuple[Device, DeviceChain, Report]:
    report = parse_report(entry.report)
    # 1. The device's certificates lead to NVIDIA's root, are of this generation, and none of them was revoked.
    chain = verify_device_chain(
        entry.certificates,
        entry.architecture,
        roots=trust.device_roots,
        now=now,
        collateral=trust.collateral,
        staleness=trust.staleness,
        require_revocation=trust.require_revocation,
    )
    # 2. The device signed the report.
    _check_signature(report, chain)
    # 3. It did so for this nonce, which is a hash over the challenge and the workload's key.
    if nonce is not None and not constant_time_equal(report.nonce, nonce):
        raise Untrusted("nvidia.nonce", "A GPU's evidence was made for another challenge or workload key.")
    # 4. The key that signed belongs to the firmware that the report speaks of.
    fwid = report.opaque.get(spdm.FWID)
    if fwid is not None and not constant_time_equal(fwid.value, chain.fwids[0]):
        raise Untrusted("nvidia.fwid", "A GPU's report is of other firmware than its certificate is.")
    # 5. What the collector wrote beside the report is what the device signed.
    for said, proven in (("driver_version", report.driver), ("vbios_version", report.vbios)):
        if entry.said.get(said, proven or "").upper() != (proven or "").upper():
            raise Untrusted("nvidia.version", "A GPU's evidence names another version than the GPU signed.")
    # 6. What was measured is what NVIDIA lists for this driver and this firmware.
    manifests = _manifests(report, chain.architecture, trust, now)
    compared = compare(report, list(manifests.values())) if manifests else []
    return _device(report, chain, manifests, compared), chain, report


def _check_signature(report: Report, chain: DeviceChain) -> None:
    if chain.leaf.curve != "P-384":
        raise Untrusted("nvidia.key", "A GPU's attestation key is not on the curve P-384.")
    try:
        verify_hardware_signature(chain.leaf.spki, report.signed, raw_ecdsa(report.signature), hash_name="sha384")
    except Untrusted:
        raise Untrusted(
            "nvidia.signature", "A GPU's report was not signed by the key that its certificates name."
        ) from None


def _manifests(report: Report, architecture: Architecture, trust: _Trust, now: int) -> dict[str, Manifest]:
    if trust.collateral is None:
        return {}
    wanted = {"vbios": (vbios_rim_id(report, architecture), report.vbios)}
    if not architecture.switch:
        wanted["driver"] = (driver_rim_id(report, architecture), report.driver)
    return {role: _manifest(*wanted[role], architecture, trust, trust.collateral, now) for role in sorted(wanted)}


def _manifest(
    rim: str, version: str | None, architecture: Architecture, trust: _Trust, collateral: Collateral, now: int
) -> Manifest:
    manifest = trust.opened.get(rim)
    if manifest is None:
        item = collateral.find("nvidia-rim", rim)
        if item is None:
            raise Untrusted("collateral.missing", f"There is no reference manifest {rim}; fetch or import it.", rim=rim)
        manifest = open_manifest(item, roots=trust.manifest_roots, now=now, staleness=trust.staleness)
        trust.opened[rim] = manifest
    # Its file name is nobody's word. The version and the chip are signed, and must be the report's.
    if manifest.version.upper() != (version or "").upper():
        raise Untrusted("nvidia.manifest-version", "A reference manifest is of another version than the GPU's.")
    # Drivers of two generations bear the same version, so the chip tells their manifests apart. How a switch's manifest
    # calls its chip isn't published; no GPU's will do.
    others = [p for a in ARCHITECTURES.values() if a is not architecture for p in a.products]
    product = manifest.product.upper()
    if product.startswith(tuple(others)) or not (architecture.switch or product.startswith(architecture.products)):
        raise Untrusted("nvidia.manifest-product", "A reference manifest is of another chip than the GPU's.")
    return manifest


def _device(
    report: Report,
    chain: DeviceChain,
    manifests: Mapping[str, Manifest],
    compared: Collection[int],
) -> Device:
    facts: dict[str, Fact] = {"arch": chain.architecture.name, "hwmodel": chain.model, "ueid": chain.ueid}
    facts["revocation_checked"] = chain.unrevoked
    for key, value in (("driver", report.driver), ("vbios", report.vbios), ("mode", report.mode), ("pdi", chain.pdi)):
        if value:
            facts[key] = value
    if chain.flags is not None:
        facts |= {f"dice.{flag}": flag in chain.flags for flag in ("debug", "not_secure", "recovery")}
    marked = bool(chain.flags)
    measurements = {"all": _digest(report, report.measurements), "fwid": chain.fwids[0].hex()}
    if manifests:
        # NVIDIA's own verifiers conclude secure boot, and that debugging is off ("dbgstat"), from the comparison.
        facts |= {"measurements_match": True, "measurements_compared": len(compared), "secboot": True, "debug": marked}
        for role, manifest in manifests.items():
            facts[f"rim.{role}"] = manifest.tag
            measurements[role] = _digest(report, manifest.active)
    elif marked:
        facts["debug"] = True
    facts["confidential"] = bool(manifests) and not marked
    notes = [_DEVELOPER_TOOLS if manifests else _NOT_COMPARED]
    if report.mode == "ppcie":
        notes.append(_IN_THE_CLEAR)
    kind = "NVSwitch" if chain.architecture.switch else "GPU"
    return Device("", "nvidia", chain.identity, measurements, facts, f"NVIDIA {kind}, {chain.model}", tuple(notes))


def _digest(report: Report, indexes: Collection[int]) -> str:
    """SHA-384 over the measured values at these indexes, framed with them; an index that wasn't measured is empty."""
    parts: list[bytes | int] = []
    for index in sorted(indexes):
        parts += [index, report.measurements.get(index, b"")]
    return sha384(frame("cloister/nvidia-measurements/v1", *parts)).hexdigest()


def _check_distinct(chains: list[DeviceChain]) -> None:
    """One device that signs twice must not count as two."""
    for names in ([c.identity for c in chains], [c.ueid for c in chains], [c.pdi for c in chains if c.pdi]):
        if len(set(names)) != len(names):
            raise Untrusted("nvidia.same-device", "The same GPU or switch appears twice in one evidence.")


def _with_topology(found: list[tuple[Device, DeviceChain, Report]]) -> tuple[Device, ...]:
    """In Protected PCIe mode data crosses switches in the clear: a GPU counts only if every switch that it names, and
    every GPU that such a switch names, is in the same evidence."""
    switches = {chain.pdi: report for device, chain, report in found if device.name.startswith("nvswitch")}
    gpus = {chain.pdi for device, chain, _ in found if device.name.startswith("gpu")}
    devices: list[Device] = []
    for device, _, report in found:
        if report.mode == "ppcie":
            named = set(report.pdis(spdm.SWITCH_PDIS))
            beyond = {pdi for switch in named & set(switches) for pdi in switches[switch].pdis(spdm.GPU_PDIS)}
            complete = bool(named) and named <= set(switches) and beyond <= gpus
            facts = device.facts | {
                "switches_attested": complete,
                "confidential": device.facts["confidential"] is True and complete,
            }
            device = replace(device, facts=facts)
        devices.append(device)
    return tuple(devices)
