"""Which attester an agent has, by what it was started with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..attestation import Attester
from ..errors import Misuse
from .attester import TpmAttester
from .boot_logs import CCEL
from .configfs import Files
from .devices import DeviceAttester, Devices
from .gpus import NvidiaGpus
from .nvml import Nvml, open_nvml
from .tsm import TsmAttester

__all__ = ["ATTESTERS", "DEVICE", "GPUS", "Choice", "Opened", "choose", "open_attester"]

ATTESTERS: Final = ("swtpm", "tpm", "tsm")
GPUS: Final = ("nvidia",)
DEVICE: Final = "device:/dev/tpmrm0"
"""A machine's own TPM, through the kernel's resource manager."""

_SOFTWARE: Final = "swtpm"
_HARDWARE: Final = {
    "snp": "AMD SEV-SNP guest: its level is what each owner's broker verifies",
    "tdx": "Intel TDX guest: its level is what each owner's broker verifies",
}
# Their count stands in each launch's event; an owner who reads "gpu-tee" must not take it for where training happens.
_UNUSED_GPUS: Final = "; {} NVIDIA GPUs attested, while sandboxes compute on the processor"


@dataclass(frozen=True)
class Choice:
    """``attester``: one of ``ATTESTERS``. ``tcti``: where the TPM is, swtpm for a software one. ``gpus``: whether the
    guest's GPUs are attested and handed out."""

    attester: str
    tcti: str
    gpus: bool = False


def choose(attester: str | None, tcti: str | None, gpus: str | None = None) -> Choice:
    """From ``--attester``, ``--tpm`` and ``--gpus``, each None where it was left out: a software TPM unless something
    else is named. Raises Misuse where they contradict each other."""
    if attester is None:
        attester = "tpm" if tcti not in (None, _SOFTWARE) else _SOFTWARE
    if attester == "tsm" and tcti is not None:
        raise Misuse("node.arguments", "--tpm names a TPM, and --attester tsm has none; give one of them.")
    if (attester == "swtpm" and tcti not in (None, _SOFTWARE)) or (attester == "tpm" and tcti == _SOFTWARE):
        raise Misuse("node.arguments", "--tpm names another TPM than --attester does; give one of them.")
    return Choice(attester, tcti or (DEVICE if attester == "tpm" else _SOFTWARE), gpus is not None)


@dataclass(frozen=True)
class Opened:
    """An attester, and what it claims of itself: ``agent`` as contracts name it (64 hex digits), ``hardware`` in words.
    Nobody believes either before evidence has shown it."""

    attester: Attester
    agent: str
    hardware: str


@contextlib.contextmanager
def open_attester(
    choice: Choice, state: Path, agent_measurement: bytes, *, files: Files | None = None, nvml: Nvml | None = None
) -> Iterator[Opened]:
    """The chosen attester; it and its devices are closed at the end. ``state`` keeps a TPM's keys. ``files`` and
    ``nvml`` stand for the kernel's configfs and NVIDIA's library; None opens the machine's own.

    Raises Unavailable for what this machine doesn't have, Denied for GPUs that aren't confidential.
    """
    with contextlib.ExitStack() as closing:
        attesters: list[DeviceAttester] = []
        if choice.gpus:
            library = nvml or open_nvml()
            closing.callback(library.close)
            attesters.append(NvidiaGpus(library))
        devices = Devices(attesters)
        found = _open(choice, state, agent_measurement, files, devices)
        closing.callback(found.attester.close)
        count = sum(attester.gpus for attester in attesters)
        yield Opened(found.attester, found.agent, found.hardware + (_UNUSED_GPUS.format(count) if count else ""))


def _open(choice: Choice, state: Path, agent_measurement: bytes, files: Files | None, devices: Devices) -> Opened:
    if choice.attester == "tsm":
        guest = TsmAttester(agent_measurement, files=files, boot_log=CCEL, devices=devices)
        return Opened(guest, guest.agent, _HARDWARE[guest.tee])
    if choice.tcti == _SOFTWARE:
        software = TpmAttester.software(state, agent_measurement, devices=devices)
        return Opened(software, agent_measurement.hex(), "software TPM: assurance level none")
    chip = TpmAttester.hardware(choice.tcti, state, agent_measurement, devices=devices)
    return Opened(chip, agent_measurement.hex(), "TPM: its level is what each owner enrolled it for")
