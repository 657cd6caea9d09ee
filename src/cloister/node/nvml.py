"""NVIDIA's management library (NVML), as far as confidential computing needs it: through ctypes, without a package.

**Never run on a GPU.** Functions, structures and numbers are those of NVIDIA's public header nvml.h (of CUDA 12.4; 12.2
has only the older ``nvmlSystemGetConfComputeState``) and of its Python bindings. The library comes with the driver. It
is part of the measured guest and is believed as far as that is; what a GPU signs is judged by the owners.

A driver may hang for good, as with a GPU that fell off its bus. So each call runs in a thread that can be left behind:
the agent then says so, and asks this library nothing more.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import Future
from ctypes import byref, c_uint, c_uint8, c_void_p
from dataclasses import dataclass
from typing import Any, Final

from ..errors import Unavailable

__all__ = ["LIBRARY", "Mode", "Nvml", "open_nvml"]

LIBRARY: Final = "libnvidia-ml.so.1"

_SUCCESS: Final = 0
_NOT_SUPPORTED, _FUNCTION_NOT_FOUND = 3, 13
_ON: Final = 1
_PRODUCTION: Final = 2  # of the environments: unavailable, simulation, production
_LINKS: Final = {0: "none", 1: "ppcie", 2: "nvle"}
_ARCHITECTURES: Final = {9: "HOPPER", 10: "BLACKWELL"}
_UUID: Final = 96  # characters that have room for any, with the zero at its end
_SECONDS: Final = 120.0  # the first call may set up all GPUs, which takes a while; then it's a second at most
_SETTINGS_V1: Final = 0x1000014  # the structure's size, and its version in the highest byte


class _State(ctypes.Structure):
    """nvmlConfComputeSystemState_t."""

    _fields_ = (("environment", c_uint), ("ccFeature", c_uint), ("devToolsMode", c_uint))


class _Settings(ctypes.Structure):
    """nvmlSystemConfComputeSettings_v1_t."""

    _fields_ = (
        ("version", c_uint),
        ("environment", c_uint),
        ("ccFeature", c_uint),
        ("devToolsMode", c_uint),
        ("multiGpuMode", c_uint),
    )


class _Certificate(ctypes.Structure):
    """nvmlConfComputeGpuCertificate_t. ``certChain`` is of the key exchange's key, not of the attestation key."""

    _fields_ = (
        ("certChainSize", c_uint),
        ("attestationCertChainSize", c_uint),
        ("certChain", c_uint8 * 0x1000),
        ("attestationCertChain", c_uint8 * 0x1400),
    )


class _Report(ctypes.Structure):
    """nvmlConfComputeGpuAttestationReport_t. ``nonce`` goes in. Another chip's report (CEC) isn't used."""

    _fields_ = (
        ("isCecAttestationReportPresent", c_uint),
        ("attestationReportSize", c_uint),
        ("cecAttestationReportSize", c_uint),
        ("nonce", c_uint8 * 32),
        ("attestationReport", c_uint8 * 0x2000),
        ("cecAttestationReport", c_uint8 * 0x1000),
    )


@dataclass(frozen=True)
class Mode:
    """What the driver says of this machine's GPUs. ``links``: ``none``, ``ppcie`` (Protected PCIe) or ``nvle``."""

    confidential: bool
    developer_tools: bool
    simulated: bool
    links: str


class Nvml:
    """An open NVML. Thread-safe. Every failure of the library is Unavailable ``gpu.driver``, and ``gpu.hangs`` where it
    does not answer within ``seconds``.

    ``library``: its functions by name, as ``ctypes.CDLL`` gives them.
    """

    def __init__(self, library: Any, *, seconds: float = _SECONDS) -> None:
        self._library, self._seconds = library, seconds
        self._hangs = False
        self._lock = threading.Lock()
        self._open = False
        self._call("nvmlInit_v2", "start")
        self._open = True

    def mode(self) -> Mode:
        """Asked anew each time."""
        settings = _Settings(version=_SETTINGS_V1)
        links = 0
        try:
            self._call("nvmlSystemGetConfComputeSettings", "tell its confidential mode", byref(settings))
            found: _Settings | _State = settings
            links = int(settings.multiGpuMode)
        except _Missing:
            found = _State()  # a driver older than 550, which knows no mode over several GPUs
            self._call("nvmlSystemGetConfComputeState", "tell its confidential mode", byref(found))
        if links not in _LINKS:
            raise Unavailable("gpu.mode", "The GPUs are in a mode that this version doesn't know; update Cloister.")
        # Developer tools count as on, and the mode as simulated, unless the driver says otherwise in so many words.
        return Mode(
            confidential=int(found.ccFeature) == _ON,
            developer_tools=int(found.devToolsMode) != 0,
            simulated=int(found.environment) != _PRODUCTION,
            links=_LINKS[links],
        )

    def count(self) -> int:
        """How many GPUs the driver sees."""
        number = c_uint()
        self._call("nvmlDeviceGetCount_v2", "count its GPUs", byref(number))
        return int(number.value)

    def architecture(self, index: int) -> str:
        """HOPPER or BLACKWELL; Unavailable ``gpu.architecture`` for any other."""
        number = c_uint()
        self._call("nvmlDeviceGetArchitecture", "name a GPU's generation", self._handle(index), byref(number))
        if number.value not in _ARCHITECTURES:
            raise Unavailable("gpu.architecture", f"GPU {index} is neither of the Hopper nor the Blackwell generation.")
        return _ARCHITECTURES[number.value]

    def identity(self, index: int) -> str:
        """The GPU's UUID as the driver says it: which of this machine's GPUs it is. No signature says it."""
        text = ctypes.create_string_buffer(_UUID)
        self._call("nvmlDeviceGetUUID", "tell a GPU's identity", self._handle(index), text, c_uint(_UUID))
        return text.value.decode("ascii", "replace")

    def report(self, index: int, nonce: bytes) -> bytes:
        """The GPU's attestation report (SPDM request and response, at most 8,192 bytes) over ``nonce``, 32 bytes."""
        report = _Report(nonce=(c_uint8 * 32)(*nonce))
        handle = self._handle(index)
        self._call("nvmlDeviceGetConfComputeGpuAttestationReport", "get a GPU's report", handle, byref(report))
        return _part(report.attestationReport, report.attestationReportSize)

    def certificates(self, index: int) -> bytes:
        """The certificates above the GPU's attestation key, PEM, at most 5,120 bytes."""
        found = _Certificate()
        handle = self._handle(index)
        self._call("nvmlDeviceGetConfComputeGpuCertificate", "get a GPU's certificates", handle, byref(found))
        return _part(found.attestationCertChain, found.attestationCertChainSize)

    def close(self) -> None:
        """Let go of the library. Calling it again does nothing."""
        was, self._open = self._open, False
        if was and not self._hangs:
            self._call("nvmlShutdown", "end")

    def _handle(self, index: int) -> c_void_p:
        handle = c_void_p()
        self._call("nvmlDeviceGetHandleByIndex_v2", f"find GPU {index}", c_uint(index), byref(handle))
        return handle

    def _call(self, name: str, what: str, *arguments: Any) -> None:
        try:
            function = getattr(self._library, name)
        except AttributeError:
            raise _Missing(what, _FUNCTION_NOT_FOUND) from None
        with self._lock:
            code = self._within_time(what, lambda: int(function(*arguments)))
        if code in (_NOT_SUPPORTED, _FUNCTION_NOT_FOUND):
            raise _Missing(what, code)
        if code != _SUCCESS:
            raise Unavailable("gpu.driver", f"NVIDIA's driver could not {what}; look at its state.", nvml=code)

    def _within_time(self, what: str, call: Callable[[], int]) -> int:
        answer: Future[int] = Future()

        def run() -> None:
            try:
                answer.set_result(call())
            except BaseException as error:  # noqa: BLE001  raised below, where somebody can act on it
                answer.set_exception(error)

        if not self._hangs:
            # It keeps what it was given, so that a driver which wakes up later writes into nobody else's memory.
            threading.Thread(target=run, name="nvml", daemon=True).start()
            with contextlib.suppress(TimeoutError):
                return answer.result(self._seconds)
            self._hangs = True
        raise Unavailable(
            "gpu.hangs", f"NVIDIA's driver could not {what} in time; look at its state and restart the agent."
        )


class _Missing(Unavailable):
    """The driver or the GPU doesn't have this function."""

    def __init__(self, what: str, code: int) -> None:
        super().__init__(
            "gpu.driver",
            f"NVIDIA's driver can't {what}: it needs a confidential GPU and driver 535 or newer.",
            nvml=code,
        )


def _part(buffer: Any, size: int) -> bytes:
    """The first ``size`` bytes; a size that the buffer doesn't have was never written by a good driver."""
    if not 0 < size <= len(buffer):
        raise Unavailable("gpu.size", "NVIDIA's driver gave a report or certificates of a size that can't be.")
    return bytes(buffer[:size])


def open_nvml() -> Nvml:
    """Raises Unavailable ``gpu.library`` where there is no NVIDIA driver."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        raise Unavailable(
            "gpu.library", f"There is no {LIBRARY} here; install NVIDIA's driver, or start the agent without --gpus."
        ) from None
    return Nvml(library)
