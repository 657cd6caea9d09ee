"""A library that behaves like NVIDIA's NVML over GPUs that ``nvidia_forge`` makes: functions by name, codes as answers.

It writes into the very structures that the caller hands it, by the names of their fields, as the C library does by
their places. It knows no GPU: what hardware does differently, it can't show.
"""

from __future__ import annotations

import ctypes
import threading
from dataclasses import dataclass, field
from typing import Any

from tests.nvidia_forge import Gpu

SUCCESS, NOT_SUPPORTED, UNKNOWN = 0, 3, 999
ARCHITECTURES = {"HOPPER": 9, "BLACKWELL": 10, "ADA": 8}


@dataclass
class Driver:
    """``seen``: how many of the GPUs the driver sees, all unless told. ``nonce``: what reports are made for instead of
    what was asked. ``without``: functions that this driver doesn't have. ``fails``: codes by function. ``hangs``: a
    function that answers only once ``awake`` is set."""

    gpus: list[Gpu]
    feature: int = 1
    tools: int = 0
    environment: int = 2
    links: int = 0
    seen: int | None = None
    nonce: bytes | None = None
    without: frozenset[str] = frozenset()
    fails: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    how: dict[str, Any] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    hangs: str = ""
    awake: threading.Event = field(default_factory=threading.Event)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvml") or name in self.without:
            raise AttributeError(name)
        act = getattr(Driver, f"_{name}")

        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name == self.hangs:
                self.awake.wait()
            if name in self.fails:
                return self.fails[name]
            # What byref() was given; ctypes keeps it in this attribute.
            act(self, *(getattr(argument, "_obj", argument) for argument in arguments))
            return SUCCESS

        return call

    def _nvmlInit_v2(self) -> None:
        """Nothing to do."""

    def _nvmlShutdown(self) -> None:
        """Nothing to do."""

    def _nvmlSystemGetConfComputeSettings(self, found: Any) -> None:
        assert found.version == 0x1000014
        assert ctypes.sizeof(found) == found.version & 0xFFFFFF
        found.environment, found.ccFeature, found.devToolsMode = self.environment, self.feature, self.tools
        found.multiGpuMode = self.links

    def _nvmlSystemGetConfComputeState(self, found: Any) -> None:
        assert ctypes.sizeof(found) == 12
        found.environment, found.ccFeature, found.devToolsMode = self.environment, self.feature, self.tools

    def _nvmlDeviceGetCount_v2(self, found: Any) -> None:
        found.value = len(self.gpus) if self.seen is None else self.seen

    def _nvmlDeviceGetHandleByIndex_v2(self, index: Any, found: Any) -> None:
        found.value = 0x1000 + index.value

    def _gpu(self, handle: Any) -> Gpu:
        return self.gpus[handle.value - 0x1000]

    def _nvmlDeviceGetArchitecture(self, handle: Any, found: Any) -> None:
        found.value = ARCHITECTURES[self._gpu(handle).arch]

    def _nvmlDeviceGetUUID(self, handle: Any, found: Any, size: Any) -> None:
        assert ctypes.sizeof(found) == size.value
        found.value = f"GPU-{id(self._gpu(handle)):x}".encode()

    def _nvmlDeviceGetConfComputeGpuAttestationReport(self, handle: Any, found: Any) -> None:
        assert ctypes.sizeof(found) == 12 + 32 + 0x2000 + 0x1000
        report = self._gpu(handle).report(self.nonce or bytes(found.nonce), **self.how)
        found.attestationReport[: len(report)] = report
        found.attestationReportSize = self.sizes.get("report", len(report))

    def _nvmlDeviceGetConfComputeGpuCertificate(self, handle: Any, found: Any) -> None:
        assert ctypes.sizeof(found) == 8 + 0x1000 + 0x1400
        pem = self._gpu(handle).pem
        found.attestationCertChain[: len(pem)] = pem
        found.attestationCertChainSize = self.sizes.get("certificates", len(pem))
