"""The thread that keeps keys: it finishes rotations, begins those that are due, and shreds what is overdue."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ..audit import AuditLog, parse_event
from ..errors import CloisterError
from .config import Limits
from .retention import Retention
from .rootkeys import RootKeys
from .rotation import Rotation
from .schedule import Schedule
from .shredding import Shredder

__all__ = ["Keeper", "jumped_before", "since_start"]

_LOOKED_AT = 10_000
_PENDING = {"checkpoints": "the destruction of checkpoints is not finished, so no share of one is given out: "}


def since_start() -> float:
    """Seconds since the machine started, suspension included: no one sets this clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def jumped_before(log: AuditLog, *, now: int, limits: Limits) -> bool:
    """Whether the clock went ahead by more than ``limits.clock_gap`` seconds without an entry, from the newest entry
    until ``now`` or between two of the last ``limits.gap_notice`` seconds: so a restart does not hide it. Looks at the
    newest 10,000 entries at most."""
    later = now
    for index in range(log.size - 1, max(log.size - _LOOKED_AT, 0) - 1, -1):
        time_logged = parse_event(log.entry(index)).time
        if later - time_logged > limits.clock_gap:
            return True
        if now - time_logged > limits.gap_notice:
            return False
        later = time_logged
    return False


class Keeper:
    """``look`` is one round. What it could not do stands in ``notes`` and is tried again in the next.

    ``gap``: the log has no entry from long before this start until it, so the clock may be wrong (``jumped_before``).
    """

    def __init__(
        self,
        rotation: Rotation,
        schedule: Schedule,
        retention: Retention,
        shredder: Shredder,
        roots: RootKeys,
        clock: Callable[[], int],
        limits: Limits,
        *,
        gap: bool,
        steady: Callable[[], float] = since_start,
    ) -> None:
        self._rotation = rotation
        self._schedule = schedule
        self._retention = retention
        self._shredder = shredder
        self._roots = roots
        self._clock = clock
        self._limits = limits
        self._steady = steady
        self._began = (clock(), steady())
        self._gap = gap
        self._seen: dict[str, float] = {}
        self._jumped = False
        self._trouble: dict[str, str] = {}
        self._said: dict[str, str] = {}
        self._stop = threading.Event()
        self._waking = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        with self._starting:
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)
                self._thread.start()

    def wake(self) -> None:
        """There is something to do now."""
        self._waking.set()
        self.start()

    def stop(self) -> None:
        self._stop.set()
        self._rotation.stop()
        self._waking.set()
        with self._starting:
            if self._thread is not None:
                self._thread.join()

    def notes(self) -> list[str]:
        """What the owner should know, for the broker's status."""
        return [*self._said.values(), *self._trouble.values()]

    def resume(self) -> None:
        """At start, before anything is served: go on with what a crash left, as far as that is quick."""
        self._try("orphans", self._roots.count_orphans)
        self._try("rekey", self._roots.check_rekeyed)
        self._try("checkpoints", self._roots.resume)
        self._try("rotation", lambda: self._rotation.finish(most=self._limits.start_rewraps))

    def look(self) -> None:
        self._try("rekey", self._roots.check_rekeyed)
        self._try("checkpoints", self._roots.resume)
        self._try("rotation", self._rotation.finish)
        self._try("schedule", self._follow_schedule)
        self._try("expiry", self._expire)

    def _try(self, what: str, work: Callable[[], object]) -> None:
        try:
            work()
        except CloisterError as error:
            self._trouble[what] = f"Keys: {_PENDING.get(what, '')}{error.message}"
        except Exception as bug:  # noqa: BLE001 - the thread must live on, and a bug's text may quote what it worked on
            self._trouble[what] = f"Keys: an error that nobody foresaw ({type(bug).__name__}) stopped the {what}."
        else:
            self._trouble.pop(what, None)

    def _follow_schedule(self) -> None:
        found = self._schedule.due()
        self._said.pop("schedule", None)
        if found.note is not None:  # what happened stays said, what only waits goes when the clock is right again
            self._said["rotated" if found.rotate else "schedule"] = found.note
        if found.rotate:
            self._rotation.begin("schedule")
            self._rotation.finish()

    def _expire(self) -> None:
        """Shred what has been overdue for a while of steady time: nobody gets a key of it meanwhile, and a clock that
        was set wrong for a moment must not destroy anything."""
        clock, steady = self._clock(), self._steady()
        if clock - self._began[0] > steady - self._began[1] + self._limits.clock_jump:
            self._jumped = True
        if self._jumped:
            self._said["clock"] = (
                "The clock went ahead of the time that has passed, so nothing expires by itself; set it right and "
                "start the broker again, or shred by hand."
            )
            return
        self._said.pop("gap", None)
        if self._gap and steady - self._began[1] < self._limits.gap_notice:
            self._said["gap"] = (
                "The clock is far ahead of what was logged before the broker was started, so nothing expires by itself "
                "until it has run for a day; set the clock right if it is wrong, or shred by hand."
            )
            return
        overdue = {row["digest"]: row for row in self._retention.overdue(now=clock)}
        self._seen = {digest: self._seen.get(digest, steady) for digest in overdue}
        ripe = [digest for digest, since in self._seen.items() if steady - since >= self._limits.expiry_notice]
        expired = [digest for digest in ripe if self._shredder.expire(overdue[digest])]
        if expired:
            self._rotation.finish()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._waking.clear()
            self.look()
            self._waking.wait(self._limits.keeper_interval)
