"""Reference values: compute them for a built workload and a platform, sign them, read somebody else's.

What is computed depends on the inputs alone: the same image, firmware, kernel and settings give the same values, and
the same key the same file. What a hypervisor decides and no file shows (a TDX guest's RTMR0, a machine's PCRs) is taken
from a machine that was looked at, and given as a register.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..attestation.corim import PLATFORMS, Manifest, ReferenceValue, read_corim, write_corim
from ..attestation.firmware import MAX_FIRMWARE
from ..attestation.models import guest_digest
from ..attestation.snp.launch import DirectKernel, SnpGuest, launch_digest
from ..attestation.tdx.launch import mrtd
from ..crypto.cose import CoseKey
from ..errors import Malformed, Misuse
from .changes import image_measurement
from .publishing import read_secret_key

__all__ = ["Guest", "compute_reference_values", "read_reference_values", "sign_reference_values"]

_REGISTERS = {"tdx": ("rtmr0", "rtmr1", "rtmr2", "rtmr3"), "tpm": tuple(f"pcr{n}" for n in range(24))}
_PCR = re.compile(r"pcr(?:[0-9]|1[0-9]|2[0-3])")
_TDX_GUEST = ("mrtd", "rtmr0", "rtmr1", "rtmr2")
_NOT_COMPUTED = {
    "snp": "",
    "tdx": "RTMRs are not computed: RTMR0 depends on the hypervisor. Give them as they were read on a machine.",
    "tpm": "PCRs are not computed: they depend on the machine. Give them as they were read on one.",
}


@dataclass(frozen=True)
class Guest:
    """What a confidential guest, or a machine, is started with. ``registers``: name to hex; ``least``: name to number.

    ``two_passes``: as ``attestation.tdx.launch.mrtd`` has it.
    """

    platform: str
    firmware: Path | None = None
    kernel: Path | None = None
    initrd: Path | None = None
    cmdline: str = ""
    vcpus: int = 1
    cpu: str = "EPYC-v4"
    hypervisor: str = "qemu"
    two_passes: bool = False
    registers: dict[str, str] = field(default_factory=dict)
    least: dict[str, int] = field(default_factory=dict)


def compute_reference_values(
    *, image: Path | None, measurements: Sequence[str], agents: Sequence[str], guest: Guest | None
) -> tuple[list[ReferenceValue], list[str]]:
    """(values, what they leave out, in words). Raises Misuse for inputs that are missing or don't belong together."""
    workloads = sorted({*measurements, *([image_measurement(image)] if image is not None else [])})
    found, notes, named = [], [], set(agents)
    if guest is not None:
        values, agent = _guest(guest)
        found += values
        notes += [_NOT_COMPUTED[guest.platform]] if _NOT_COMPUTED[guest.platform] else []
        named |= {agent} if agent is not None else set()
    if workloads:
        found.append(ReferenceValue("workload", "measurement", tuple(workloads)))
    if named:
        found.append(ReferenceValue("agent", "agent", tuple(sorted(named))))
    if not found:
        raise Misuse("reference.nothing", "Name an image, a measurement, an agent or a platform to compute values for.")
    return found, notes


def _guest(guest: Guest) -> tuple[list[ReferenceValue], str | None]:
    """Its values, and the digest by which a contract names the guest as an agent, where it is known."""
    if guest.platform not in ("snp", "tdx", "tpm"):
        raise Misuse("reference.platform", "Reference values are computed for snp, tdx or tpm.")
    for name in guest.registers:
        if name not in _REGISTERS.get(guest.platform, ()):
            raise Misuse("reference.register", f"The platform {guest.platform} has no register of that name.")
    measured: dict[str, str] = {}
    if guest.platform == "snp":
        measured["launch"] = _snp(guest)
    elif guest.platform == "tdx":
        measured["mrtd"] = mrtd(_firmware(guest), two_passes=guest.two_passes).hex()
    size = 64 if guest.platform == "tpm" else 96
    if any(len(value) != size for value in guest.registers.values()):
        raise Misuse("reference.register", f"A register of the platform {guest.platform} has {size} hex digits.")
    values = [ReferenceValue(guest.platform, name, (value,)) for name, value in measured.items()]
    values += [ReferenceValue(guest.platform, n, (v,), register=True) for n, v in sorted(guest.registers.items())]
    values += [ReferenceValue(guest.platform, n, least=number) for n, number in sorted(guest.least.items())]
    everything = measured | guest.registers
    if guest.platform == "snp":
        return values, guest_digest("snp", measured)
    if guest.platform == "tdx" and set(_TDX_GUEST) <= set(everything):
        return values, guest_digest("tdx", {name: everything[name] for name in _TDX_GUEST})
    return values, None


def _snp(guest: Guest) -> str:
    kernel = None
    if guest.kernel is not None:
        initrd = hashlib.sha256(b"").digest() if guest.initrd is None else _hash(guest.initrd)
        kernel = DirectKernel(_hash(guest.kernel), initrd, guest.cmdline)
    elif guest.initrd is not None or guest.cmdline:
        raise Misuse("reference.kernel", "An initrd or a command line is measured together with a kernel; give it too.")
    made = SnpGuest(_firmware(guest), guest.vcpus, guest.cpu, kernel, guest.hypervisor)
    return launch_digest(made).hex()


def _firmware(guest: Guest) -> bytes:
    if guest.firmware is None:
        raise Misuse(
            "reference.firmware", f"Values for {guest.platform} are computed from its firmware; give the file."
        )
    try:
        with guest.firmware.open("rb") as file:
            return file.read(MAX_FIRMWARE + 1)
    except OSError:
        raise Misuse("reference.file", f"The file {guest.firmware} can't be read.") from None


def _hash(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        raise Misuse("reference.file", f"The file {path} can't be read.") from None


def sign_reference_values(
    values: Sequence[ReferenceValue], *, name: str, signer: str, key: Path, not_after: int | None
) -> bytes:
    """The values as a CoRIM, signed with the key in a file. Raises Misuse, Malformed."""
    return write_corim(values, name=name, signer_name=signer, key=read_secret_key(key), not_after=not_after)


def read_reference_values(
    data: bytes, keys: Sequence[bytes], *, vendor: bool, profiles: Sequence[str], now: int | None = None
) -> dict[str, Any]:
    """What a CoRIM says, if one of ``keys`` (files' contents) signed it, and how to use it.

    ``platform``: for a contract's platform; ``policy``: rules for an owner's policy. Raises Malformed, Untrusted.
    """
    pinned = [CoseKey.read(key) for key in keys]
    at = int(time.time()) if now is None else now
    manifest = read_corim(data, pinned, now=at, vendor=vendor, profiles=profiles)
    # What a TPM measures are its PCRs; another name would end as a rule about nothing, or as a PCR that nobody meant.
    if not all(_PCR.fullmatch(v.name) for v in manifest.values if v.platform == "tpm" and v.digests):
        raise Malformed("reference.pcr", "The CoRIM's values about a TPM are not about pcr0 to pcr23.")
    return {
        "key": manifest.key.fingerprint,
        "name": manifest.name,
        "not_after": manifest.not_after,
        "not_before": manifest.not_before,
        "platform": _platform(manifest),
        "policy": {
            "default": True,
            "least_level": "none",
            "name": manifest.name[:200],
            "platforms": _rules(manifest),
            "type": "appraisal-policy/v1",
        },
        "signer": manifest.signer,
        "values": [
            {
                "digests": list(v.digests),
                "least": v.least,
                "name": v.name,
                "platform": v.platform,
                "register": v.register,
            }
            for v in manifest.values
        ],
    }


def _platform(manifest: Manifest) -> dict[str, Any]:
    """Measurements, agents, and PCRs where one value each is right: what a contract names."""
    pcrs = {
        v.name[3:]: v.digests[0] for v in manifest.values if v.platform == "tpm" and len(v.digests) == 1 and v.register
    }
    return {
        "agents": sorted(manifest.named("agent", "agent")),
        "measurements": sorted(manifest.named("workload", "measurement")),
        "pcrs": dict(sorted(pcrs.items())),
    }


def _rules(manifest: Manifest) -> dict[str, list[dict[str, Any]]]:
    """One rule for each value about hardware; the workload and its agent are the contract's to name."""
    rules: dict[str, list[dict[str, Any]]] = {}
    for value in manifest.values:
        if value.platform not in PLATFORMS or value.platform in ("workload", "agent"):
            continue
        if value.least is not None:
            rule: dict[str, Any] = {"about": f"fact {value.name}", "at_least": value.least}
        else:
            rule = {"about": f"measurement {value.name}", "one_of": sorted(value.digests)}
        rules.setdefault(value.platform, []).append(rule)
    return rules
