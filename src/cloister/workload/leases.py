"""Leases: a run keeps its keys only while every owner's broker says so.

One thread renews each lease when a third of its term is over, by a whole new attestation. A refusal ends the run
at once. A second thread only looks at the clock: silence ends the run at a lease's deadline, also while the first one
waits for a broker that hangs. Ending means: overwrite the keys and copied state, exit, write nothing.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from ..errors import CloisterError, Denied, Unavailable
from .identity import KeyRing
from .key_session import AttestedSession, Lease, RunContext, boottime, gather_statements

__all__ = ["EXIT_LEASE_LOST", "LEASE_CODES", "LeaseKeeper"]

T = TypeVar("T")
EXIT_LEASE_LOST = 20  # what the node agent reads as "stopped because a lease ended"
# A run learns that its lease is over from whichever request comes first: a renewal, a checkpoint record, a permit.
LEASE_CODES = frozenset({"contract.revoked", "lease.cut", "lease.expired"})
_RETRY_SECONDS = 1.0
_LOOK_SECONDS = 1.0  # at most between two looks at the boot-time clock, which alone counts suspension
# Of a term. Owners' leases begin one handshake apart: what is due this soon is renewed with the first, on the same
# statements, or every round would ask every party twice.
_TOGETHER = 1 / 10
_TELL_SECONDS = 2.0  # for the last word to the node: one that does not listen must not keep this process alive


class LeaseKeeper:
    """Watches one lease per owner. ``check`` is what the training loop calls between steps."""

    def __init__(
        self, run: RunContext, keys: KeyRing, leases: dict[str, Lease], *, on_lost: Callable[[CloisterError], None]
    ) -> None:
        self._run, self._keys, self._on_lost = run, keys, on_lost
        self._leases = dict(leases)
        self._copies: list[Callable[[], None]] = []
        self._stop = threading.Event()
        self._ending = threading.Lock()
        self._lost: CloisterError | None = None
        self._thread = threading.Thread(target=self._watch, name="leases", daemon=True)
        self._clock = threading.Thread(target=self._count_down, name="lease-deadline", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._clock.start()

    def stop(self) -> None:
        """The run is over; the leases may lapse. A renewal that is under way ends with the process."""
        with self._ending:
            self._stop.set()
            lost = self._lost
        if lost is not None:  # another thread is ending this process, and says why: let it
            time.sleep(_TELL_SECONDS)
            os._exit(EXIT_LEASE_LOST)

    def check(self) -> None:
        """Raises Denied as soon as a lease is gone."""
        if self._lost is not None:
            raise self._lost
        if self._deadline() <= boottime():
            raise _expired()

    def on_loss(self, clear: Callable[[], None]) -> None:
        """``clear`` overwrites a copy of plaintext; it is called beside the keys' overwriting if a lease is lost."""
        self._copies.append(clear)

    def patiently(self, call: Callable[[], T]) -> T:
        """``call``, again and again while a broker can't be reached and the leases run: a broker that restarts in the
        middle of a run costs nothing. For requests that may be repeated. Raises as ``call``, or as ``check``."""
        while True:
            self.check()
            try:
                return call()
            except Unavailable:
                self._stop.wait(_RETRY_SECONDS)

    def _deadline(self) -> float:
        return min(lease.deadline for lease in self._leases.values())

    def _count_down(self) -> None:
        while (left := self._deadline() - boottime()) > 0:
            if self._stop.wait(min(left, _LOOK_SECONDS)):
                return
        self._end(_expired())

    def _watch(self) -> None:
        while not self._stop.wait(timeout=max(0.0, min(map(self._due, self._leases.values())) - boottime())):
            try:
                self._renew_all()
            except Unavailable as fault:
                if not self._may_wait():
                    return self._end(fault)
                self._stop.wait(_RETRY_SECONDS)
            except CloisterError as refusal:
                return self._end(refusal)
        return None

    def _may_wait(self) -> bool:
        return self._deadline() - _RETRY_SECONDS > boottime()

    def _due(self, lease: Lease, early: float = 0.0) -> float:
        """When a lease is to be renewed: a third of its own term after it began, ``early`` of a term before that. Short
        ones at the contract's end come due ever sooner, but never all at once."""
        term = self._run.contract.lease_seconds if lease.term is None else lease.term
        return lease.deadline - term * (2 / 3 + early)

    def _renew_all(self) -> None:
        statements = gather_statements(self._run)
        for party, lease in sorted(self._leases.items(), key=lambda item: item[1].deadline):
            if self._due(lease, _TOGETHER) > boottime():
                continue  # this one was renewed a moment ago
            with AttestedSession(
                self._run, party, purpose="renew", sequence=lease.sequence + 1, statements=statements
            ) as session:
                self._leases[party] = session.renew()

    def _end(self, reason: CloisterError) -> None:
        with self._ending:
            if self._lost is not None or self._stop.is_set():
                return  # ended already, well or not
            self._lost = reason
        self._keys.zeroize()
        # Side by side, and bounded: overwriting gigabytes must not keep a run alive whose lease is gone. What is not
        # overwritten by then the kernel overwrites before it gives the memory to anyone else.
        last = [threading.Thread(target=partial(self._on_lost, reason), daemon=True)]
        last += [threading.Thread(target=clear, daemon=True) for clear in self._copies]
        until = time.monotonic() + _TELL_SECONDS
        for thread in last:
            thread.start()
        for thread in last:
            thread.join(max(0.0, until - time.monotonic()))
        # Not sys.exit: the training thread must not run another step with what it holds in memory.
        os._exit(EXIT_LEASE_LOST)


def _expired() -> Denied:
    return Denied("lease.expired", "A key lease ended before it was renewed.")
