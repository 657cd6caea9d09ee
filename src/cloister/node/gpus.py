"""What this guest's NVIDIA GPUs say of themselves, collected by the measured agent over its own session with them.

**Never run on a GPU**: see ``nvml``. That the agent collects it, and that the processor's report covers it, is what
ties the GPUs to the machine (``attestation.composite``). No GPU signs that its developer tools are off; the driver is
asked before each launch and each piece of evidence, and the agent's measurement vouches for that.
"""

from __future__ import annotations

import base64
from typing import Final

from ..attestation.nvidia import MAX_GPUS
from ..errors import Denied, Unavailable
from .nvml import Nvml

__all__ = ["NvidiaGpus"]

_NONCE: Final = slice(4, 36)
"""Where a report repeats the nonce: behind the four bytes that begin SPDM's GET_MEASUREMENTS."""


class NvidiaGpus:
    """See ``devices.DeviceAttester``: all GPUs that this guest's driver sees. Thread-safe.

    Raises Unavailable ``gpu.none`` for a guest without GPUs or with more than can be verified, and what ``check``
    raises.
    """

    kind = "nvidia"

    def __init__(self, nvml: Nvml) -> None:
        self._nvml = nvml
        self._architectures = [nvml.architecture(index) for index in range(self._counted())]
        self._identities = self._identified()
        self.check()

    @property
    def gpus(self) -> int:
        """How many there were when the agent started. A sandbox gets all of them or none."""
        return len(self._architectures)

    def check(self) -> None:
        """Return only if these GPUs may be handed out now.

        Raises Denied: ``gpu.not-confidential``, ``gpu.developer-tools``, ``gpu.simulated``, ``gpu.protected-pcie``;
        Unavailable ``gpu.changed`` where there are others than at the start, or another number of them.
        """
        mode = self._nvml.mode()
        if mode.links == "ppcie":
            raise Denied(
                "gpu.protected-pcie",
                "The GPUs are in Protected PCIe mode, whose switches this agent can't attest; switch it off.",
            )
        if not mode.confidential:
            raise Denied("gpu.not-confidential", "The GPUs' confidential mode is off; switch it on at the host.")
        if mode.developer_tools:
            raise Denied(
                "gpu.developer-tools", "The GPUs' developer tools are on; switch the mode to on, not devtools."
            )
        if mode.simulated:
            raise Denied("gpu.simulated", "The driver says that the GPUs' confidential mode is simulated.")
        if self._counted() != self.gpus or self._identified() != self._identities:
            raise Unavailable("gpu.changed", "There are other GPUs here than at the start; restart the agent.")

    def evidence(self, device: bytes) -> list[dict[str, str]]:
        """One entry for each GPU, in the form that ``attestation.nvidia`` reads. ``device``: the nonce, 32 bytes.

        Raises as ``check`` does, and Unavailable where a GPU answers for another nonce or not at all: never of some.
        """
        self.check()
        found: list[dict[str, str]] = []
        for index, architecture in enumerate(self._architectures):
            report = self._nvml.report(index, device)
            if report[_NONCE] != device:
                raise Unavailable("gpu.report", f"GPU {index} gave a report for another nonce; reset it or try again.")
            certificates = self._nvml.certificates(index)
            found.append({"arch": architecture, "certificate": _base64(certificates), "evidence": _base64(report)})
        return found

    def _identified(self) -> list[str]:
        return [self._nvml.identity(index) for index in range(self.gpus)]

    def _counted(self) -> int:
        count = self._nvml.count()
        if not 1 <= count <= MAX_GPUS:
            raise Unavailable("gpu.none", f"The driver sees {count} GPUs; evidence is made of 1 to {MAX_GPUS}.")
        return count


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
