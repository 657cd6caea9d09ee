"""How often each key was used since the vault was opened. Kept in memory: the audit log is the record."""

from __future__ import annotations

import threading
from collections import Counter
from typing import NoReturn

from ..crypto import Signer, fingerprint

__all__ = ["CountedSigner", "Usage"]


class Usage:
    """Counts by use and key, for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str, int]] = Counter()

    def count(self, use: str, name: str, epoch: int) -> None:
        """``use``: ``wrap``, ``unwrap`` or ``sign``."""
        with self._lock:
            self._counts[use, name, epoch] += 1

    def of(self, use: str, name: str, epoch: int) -> int:
        with self._lock:
            return self._counts[use, name, epoch]


class CountedSigner:
    """A ``Signer`` whose signatures are counted. It hides in ``repr`` and refuses pickling."""

    def __init__(self, signer: Signer, usage: Usage, name: str, epoch: int) -> None:
        self._signer = signer
        self._usage = usage
        self._name, self._epoch = name, epoch
        self.public: bytes = signer.public

    def sign(self, message: bytes) -> bytes:
        signature = self._signer.sign(message)
        self._usage.count("sign", self._name, self._epoch)
        return signature

    def __repr__(self) -> str:
        return f"Signer({self._name}, public={fingerprint(self.public)})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a signing key is not pickled")
