"""Evidence of NVIDIA GPUs and NVSwitches: signed SPDM measurement reports, and NVIDIA's signed reference manifests.

The tour: ``spdm`` parses a report, ``chain`` verifies a device's certificates, ``revocation`` whether one of them was
revoked, ``rim`` opens a manifest, ``compare`` compares the two, ``forms`` reads how evidence travels, ``verifier`` puts
all together for several devices. ``roots`` is what is pinned.
"""

from .chain import revocation_requests
from .forms import MAX_GPUS, MAX_SWITCHES, Entry, read_entries
from .rim import driver_rim_id, vbios_rim_id
from .roots import DEVICE_ROOTS, MANIFEST_ROOTS
from .verifier import NvidiaVerifier, verify_report

__all__ = [
    "DEVICE_ROOTS",
    "MANIFEST_ROOTS",
    "MAX_GPUS",
    "MAX_SWITCHES",
    "Entry",
    "NvidiaVerifier",
    "driver_rim_id",
    "read_entries",
    "revocation_requests",
    "vbios_rim_id",
    "verify_report",
]
