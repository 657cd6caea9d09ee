"""The broker's clock: the one that decides leases."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

__all__ = ["Clock", "steady_clock"]

Clock = Callable[[], int]


def steady_clock() -> Clock:
    """POSIX seconds that never go back within this process.

    A clock that somebody turns back would bring ended leases, nonces and contracts to life again.
    """
    lock = threading.Lock()
    newest = 0

    def now() -> int:
        nonlocal newest
        with lock:
            newest = max(newest, int(time.time()))
            return newest

    return now
