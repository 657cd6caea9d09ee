"""Waiting for what another thread or process does: for the thing itself, never for an amount of time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["PATIENCE", "until"]

T = TypeVar("T")
PATIENCE = 120.0  # seconds; a bound on hanging, never a measure of speed


def until(what: str, probe: Callable[[], T | None], seconds: float = PATIENCE) -> T:
    """What ``probe`` gives as soon as it gives something true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := probe():
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited in vain for {what}")
