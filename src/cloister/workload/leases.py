"""Leases: a run keeps its keys only while every owner's broker says so.

A thread renews each lease when a third of its term is over, by a whole new attestation. A refusal ends the run
at once; silence ends it at the lease's deadline. Ending means: overwrite the keys, exit, write nothing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from ..errors import CloisterError, Denied, Unavailable
from .identity import KeyRing
from .key_session import AttestedSession, Lease, RunContext, boottime, gather_statements

__all__ = ["EXIT_LEASE_LOST", "LeaseKeeper"]

EXIT_LEASE_LOST = 20  # what the node agent reads as "stopped because a lease ended"
_RETRY_SECONDS = 1.0


class LeaseKeeper:
    """Watches one lease per owner. ``check`` is what the training loop calls between steps."""

    def __init__(
        self, run: RunContext, keys: KeyRing, leases: dict[str, Lease], *, on_lost: Callable[[CloisterError], None]
    ) -> None:
        self._run, self._keys, self._on_lost = run, keys, on_lost
        self._leases = dict(leases)
        self._stop = threading.Event()
        self._lost: CloisterError | None = None
        self._thread = threading.Thread(target=self._watch, name="leases", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """The run is over; the leases may lapse."""
        self._stop.set()
        self._thread.join()

    def check(self) -> None:
        """Raises Denied as soon as a lease is gone."""
        if self._lost is not None:
            raise self._lost
        if min(lease.deadline for lease in self._leases.values()) <= boottime():
            raise Denied("lease.expired", "A key lease ended before it was renewed.")

    def _watch(self) -> None:
        term = self._run.contract.lease_seconds
        while not self._stop.wait(timeout=max(0.0, self._next_renewal(term) - boottime())):
            try:
                self._renew_all(term)
            except Unavailable as fault:
                if not self._may_wait():
                    return self._end(fault)
                self._stop.wait(_RETRY_SECONDS)
            except CloisterError as refusal:
                return self._end(refusal)
        return None

    def _next_renewal(self, term: int) -> float:
        return min(lease.deadline for lease in self._leases.values()) - term * 2 / 3

    def _may_wait(self) -> bool:
        return min(lease.deadline for lease in self._leases.values()) - _RETRY_SECONDS > boottime()

    def _renew_all(self, term: int) -> None:
        statements = gather_statements(self._run)
        for party, lease in sorted(self._leases.items(), key=lambda item: item[1].deadline):
            if lease.deadline - term * 2 / 3 > boottime():
                continue  # this one was renewed a moment ago
            with AttestedSession(
                self._run, party, purpose="renew", sequence=lease.sequence + 1, statements=statements
            ) as session:
                self._leases[party] = session.renew()

    def _end(self, reason: CloisterError) -> None:
        self._lost = reason
        self._keys.zeroize()
        self._on_lost(reason)
        # Not sys.exit: the training thread must not run another step with what it holds in memory.
        os._exit(EXIT_LEASE_LOST)
