"""Where the ciphertext of an object comes from: a folder, a store over the network, or a cache in front of one."""

from __future__ import annotations

from typing import Protocol

from ..crypto.streaming import ReadableFile

__all__ = ["ObjectSource"]


class ObjectSource(Protocol):
    """One sealed object's ciphertext. Nothing that comes from it is believed: the reader checks every byte.

    Methods may be called by several threads at once; each file that ``open`` gives is used by one thread.
    """

    def envelope(self) -> bytes:
        """The signed manifest as stored, bounded in length. Raises Malformed if there is none."""
        ...

    def open(self, name: str, size: int) -> ReadableFile:
        """The member file ``name`` (``0000.sealed`` …), seekable, of exactly ``size`` bytes.

        Raises Untrusted if it is missing or of another size, Unavailable if it can't be reached.
        """
        ...
