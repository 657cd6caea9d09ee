"""Threads of lease keepers must be over before ``os._exit`` is the real one again: it would end the test run itself."""

from __future__ import annotations

import threading

__all__ = ["join_keepers"]


def join_keepers() -> None:
    for thread in threading.enumerate():
        if thread.name in ("leases", "lease-deadline"):
            thread.join(60)
            assert not thread.is_alive()
