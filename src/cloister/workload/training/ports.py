"""What training needs from outside. It gives bytes and gets bytes; sealing, sockets and brokers are behind these."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import BinaryIO, Protocol

__all__ = ["CheckpointSink", "Lease", "Progress", "SavedFiles"]


class SavedFiles(Protocol):
    """The files of a checkpoint, authenticated. Closed when they are no longer needed."""

    def paths(self) -> Iterable[str]: ...

    def open(self, path: str) -> BinaryIO:
        """Seekable, from the front."""
        ...

    def close(self) -> None: ...


class CheckpointSink(Protocol):
    """Where checkpoints go and come from. Not protected here: whoever implements it seals, binds and orders them."""

    def save(self, step: int, files: Iterable[tuple[str, BinaryIO]]) -> None:
        """Keep the checkpoint of ``step`` (from 1): names and contents, to be read once, one after the other.

        Called off the training thread, one call at a time, with growing steps. Returns only when the checkpoint would
        survive the process and may be resumed; raises if not, and then the one before is still the newest. An error
        from reading a file means that the checkpoint is given up: nothing of it may ever be resumed.
        """

    def latest(self) -> tuple[int, SavedFiles] | None:
        """The newest checkpoint that this run may resume, or None for a fresh start."""


class Progress(Protocol):
    def report(self, stage: str, step: int, total: int, values: Mapping[str, str]) -> None:
        """One measurement. ``values`` are decimal texts quantized to six places; names are of a fixed set."""


class Lease(Protocol):
    def check(self) -> None:
        """Raises Denied or Unavailable once the lease is gone. Called before every step, so training stops there."""

    def on_loss(self, clear: Callable[[], None]) -> None:
        """``clear`` overwrites a copy of plaintext. To be called, from any thread, if the lease is lost."""
