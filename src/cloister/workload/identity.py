"""Who this run is: keys made in memory, bound into evidence, gone with the process."""

from __future__ import annotations

import ctypes
import resource
from dataclasses import dataclass, field
from typing import NoReturn

from ..crypto import HpkePrivateKey, SigningKey
from ..errors import Internal

__all__ = ["KeyRing", "WorkloadIdentity", "harden_process"]

_PR_SET_DUMPABLE = 4


@dataclass(frozen=True)
class WorkloadIdentity:
    """``hpke`` receives keys; ``signing`` signs checkpoints and outputs. Both are named in every broker's nonce."""

    hpke: HpkePrivateKey = field(default_factory=HpkePrivateKey.generate)
    signing: SigningKey = field(default_factory=SigningKey.generate)


class KeyRing:
    """Data keys by name, in buffers that can be overwritten. Hides in ``repr``, refuses pickling."""

    def __init__(self) -> None:
        self._keys: dict[str, bytearray] = {}

    def put(self, name: str, key: bytes) -> None:
        self._keys[name] = bytearray(key)

    def use(self, name: str) -> bytes:
        """The key; raises Internal if it was never put here or was zeroized."""
        if name not in self._keys:
            raise Internal("keys.absent", "A key is asked for that this run does not hold.")
        return bytes(self._keys[name])

    def zeroize(self) -> None:
        """Overwrite and forget. Copies inside crypto libraries die with the process, which exits next."""
        for key in self._keys.values():
            key[:] = bytes(len(key))
        self._keys.clear()

    def __repr__(self) -> str:
        return f"KeyRing({len(self._keys)} keys)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("keys are not pickled")


def harden_process() -> None:
    """No core dump, and no attaching by another process of the same user."""
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    # One byte where that is still possible: a limit of none doesn't stop a host that pipes core dumps (core(5)).
    least = 0 if most == 0 else 1
    resource.setrlimit(resource.RLIMIT_CORE, (least, least))
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise Internal("workload.dumpable", "The process could not be made undumpable.")
