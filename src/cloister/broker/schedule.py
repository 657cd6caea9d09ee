"""When the KEK is rotated by itself. The decision is pure; the schedule is a fact that the log has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import Misuse
from .ledger import Ledger
from .rotation import fact, fact_change
from .state import Change

__all__ = ["Due", "Schedule", "due"]

_DAY = 86_400
_LONGEST = 3660 * _DAY


@dataclass(frozen=True)
class Due:
    """Whether to rotate now; ``note``: what a person should know about the clock."""

    rotate: bool
    note: str | None = None


def due(every: int, last: int, *, now: int) -> Due:
    """Pure. ``every``: seconds between rotations, ``last``: when the last one was, both by the broker's clock.

    A clock that went ahead brings one rotation, however many intervals it skipped. One that went back brings none.
    """
    if now < last:
        return Due(False, "The clock stands before the last rotation of the KEK, so none is made by itself until it is "
                   "past that again; set the clock right, then rotate once by hand.")  # fmt: skip
    missed = (now - last) // every
    if missed < 2:
        return Due(missed == 1)
    return Due(True, f"{missed} intervals of the rotation's schedule had passed at once: the broker did not run, or "
               "its clock went ahead. One rotation was made.")  # fmt: skip


class Schedule:
    """The fact ``schedule``: seconds between rotations; ``rotated_at`` says since when to count."""

    def __init__(self, ledger: Ledger, clock: Callable[[], int], owner: str) -> None:
        self._ledger = ledger
        self._clock = clock
        self._owner = owner

    def set(self, every: int | None) -> dict[str, Any]:
        """Rotate every so many seconds, from a day to ten years; None: only by hand."""
        if every is not None and not _DAY <= every <= _LONGEST:
            raise Misuse("schedule.every", "The time between rotations is from 1d to 3660d.")
        with self._ledger.turn():
            changes: list[Change] = [fact_change("schedule", every)]
            if fact(self._ledger, "rotated_at") is None:
                changes.append(fact_change("rotated_at", self._clock()))
            details: dict[str, str | int] = {"every": every or 0}
            self._ledger.commit("kek.scheduled", target=self._owner, details=details, changes=changes)
        return self.document()

    def due(self) -> Due:
        every, last = fact(self._ledger, "schedule"), fact(self._ledger, "rotated_at")
        return Due(False) if every is None or last is None else due(every, last, now=self._clock())

    def document(self) -> dict[str, Any]:
        """``every`` in seconds, ``last`` and ``next`` in unix seconds; null where there is none."""
        every, last = fact(self._ledger, "schedule"), fact(self._ledger, "rotated_at")
        following = None if every is None or last is None else last + every
        return {"every": every, "last": last, "next": following}
