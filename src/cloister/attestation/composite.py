"""One verdict over a processor's evidence and that of the devices beside it.

What binds a GPU to a processor: the measured guest collected the GPU's evidence over its own session with it, and the
processor signed a report over all additional evidence, the GPU's included. Both are made for one nonce and one workload
key (PROTOCOL §1: ``report`` and ``device``). How many GPUs the guest has handed to the workload stands in its launch
event, which the processor's evidence covers too; so none of them can be left out of what is looked at.

No GPU signs that its developer tools are off. The measured agent asks the driver before it hands a GPU out, so a count
in a launch event is also its word on that, as good as the agent's measurement is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from ..errors import Untrusted
from .events import open_log
from .models import MAX_DEVICES, Claims, Device, Evidence
from .ports import DeviceVerifier, Verifier

__all__ = ["verify_evidence"]

_GPU: Final = "gpu"
_CONFIDENTIAL: Final = "confidential"
_TEE: Final = "cpu-tee"
_GPU_TEE: Final = "gpu-tee"

_BELOW: Final = (
    "The GPUs' evidence is authentic, but below a processor's TEE it protects nothing: no level follows from it."
)
_UNATTESTED: Final = "GPUs were handed to the workload without evidence: what is on them may be open to the host."
_UNPROTECTED: Final = "A GPU or switch is not shown to be confidential: what is on it may be open to the host."


def verify_evidence(
    verifiers: Mapping[str, Verifier],
    devices: Mapping[str, DeviceVerifier],
    evidence: Evidence,
    report: bytes,
    device: bytes,
    *,
    now: int,
) -> Claims:
    """The claims of the processor's verifier, with the devices that the additional evidence proves.

    ``report`` and ``device``: ``binding.report_data`` and ``binding.device_data`` of the verifier's own nonce, 32 bytes
    each. Each member of the additional evidence but ``cloister`` goes to the verifier of its kind. The level becomes
    ``gpu-tee`` only if the processor's is ``cpu-tee``, its agent handed out GPUs, exactly as many are proven, and every
    device is confidential; or if a pinned verifier says so, and no device that is proven here says otherwise. A TEE
    whose GPUs are not proven so is level ``none``: the workload's data leave it. Raises as the verifiers do, and
    Untrusted: ``composite.kind`` for evidence that nobody here verifies, ``composite.gpu-count`` for more or fewer GPUs
    than were handed out.
    """
    # 1. The processor: only after this is the additional evidence what the measured guest wrote.
    claims = verifiers[evidence.tee].verify(evidence, report, now=now)
    if not evidence.additional:
        return claims  # no log, and no word of a device: a verifier that accepts that needs neither
    log = open_log(evidence.additional)
    # 2. Every other member, by its own verifier; none is passed over, for it could be the one that says "debug".
    found: list[Device] = []
    for kind in sorted(log.devices):
        if kind not in devices:
            raise Untrusted("composite.kind", "The evidence speaks of a kind of device that is not verified here.")
        found += devices[kind].verify(log.devices[kind], device, now=now)
    _check_names([*claims.devices, *found])
    # 3. As many GPUs as the agent handed out.
    gpus = sum(1 for proven in found if proven.name.startswith(_GPU))
    if log.devices and gpus != log.gpus:
        raise Untrusted(
            "composite.gpu-count",
            "The evidence is of another number of GPUs than the workload was given.",
            found=gpus,
            given=log.gpus,
        )
    # 4. What follows for the level.
    return _levelled(replace(claims, devices=claims.devices + tuple(found), gpus=log.gpus), found)


def _check_names(devices: list[Device]) -> None:
    """A name that stands twice would hide one device behind another in a result."""
    names = [device.name for device in devices]
    if len(names) > MAX_DEVICES or len(set(names)) != len(names):
        raise Untrusted("composite.devices", "The evidence is of too many devices, or of two with one name.")


def _levelled(claims: Claims, found: list[Device]) -> Claims:
    if not claims.gpus and not found:
        return claims
    if claims.level not in (_TEE, _GPU_TEE):
        return replace(claims, notes=(*claims.notes, _BELOW)) if found else claims
    if not found:
        # At gpu-tee another verifier, which the owner pinned, has looked at the GPUs and counted them.
        return claims if claims.level == _GPU_TEE else replace(claims, level="none", notes=(*claims.notes, _UNATTESTED))
    # Fail closed, whoever gave the level: what a verifier didn't call confidential, in so many words, isn't.
    if not all(device.facts.get(_CONFIDENTIAL) is True for device in found):
        return replace(claims, level="none", notes=(*claims.notes, _UNPROTECTED))
    if not claims.gpus:
        return claims
    words = sorted({device.hardware for device in found})
    return replace(claims, level=_GPU_TEE, hardware="; ".join([claims.hardware, *words]).strip("; "))
