"""What training needs from outside. It gives bytes and gets bytes; sealing, sockets and brokers are behind these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

__all__ = ["CheckpointSink", "Lease", "Progress"]


class CheckpointSink(Protocol):
    """Where checkpoints go and come from. Not protected here: whoever implements it seals, binds and orders them."""

    def save(self, step: int, blobs: Mapping[str, bytes]) -> None:
        """Keep the blobs of ``step`` (from 1). Returns only when they would survive the process; raises if not."""

    def latest(self) -> tuple[int, Mapping[str, bytes]] | None:
        """The newest checkpoint that this run may resume, authenticated, or None for a fresh start."""


class Progress(Protocol):
    def report(self, stage: str, step: int, total: int, values: Mapping[str, str]) -> None:
        """One measurement. ``values`` are decimal texts quantized to six places; names are of a fixed set."""


class Lease(Protocol):
    def check(self) -> None:
        """Raises Denied or Unavailable once the lease is gone. Called before every step, so training stops there."""
