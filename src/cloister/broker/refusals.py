"""How many refusals are logged: bounds per minute, in separate buckets, so that strangers' noise hides nothing.

Whoever is refused before this broker knows a contract of its own behind the request is a stranger, and all strangers
share one small bucket. Refusals about a contract that our party signed have buckets of their own, one a stage: what a
stranger sends can neither fill the disk nor keep a refusal about a real contract out of the log.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TypeAlias

from .config import Limits

__all__ = ["About", "Refusals"]

# A contract of ours (its digest), and the stage: knock, attest, key, lease or permit.
About: TypeAlias = tuple[bytes, str]


@dataclass
class _Bucket:
    """How many refusals were logged in the present minute, and how many only counted since the last logged one."""

    minute: int = -1
    logged: int = 0
    suppressed: int = 0

    def admit(self, minute: int, limit: int) -> int | None:
        if minute != self.minute:
            self.minute, self.logged = minute, 0
        if self.logged >= limit:
            self.suppressed += 1
            return None
        self.logged += 1
        before, self.suppressed = self.suppressed, 0
        return before


class Refusals:
    """Decides for each refusal whether it is logged or only counted."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._strangers = _Bucket()
        self._crowd = _Bucket()  # contracts beyond the bounded number of buckets
        self._contracts: dict[About, _Bucket] = {}
        self._lock = threading.Lock()

    def admit(self, about: About | None, *, now: int) -> int | None:
        """None: only count this one. Otherwise log it, with the number that was counted before in the same bucket.

        ``about`` is None for a stranger.
        """
        minute = now // 60
        with self._lock:
            if about is None:
                return self._strangers.admit(minute, self._limits.stranger_refusals)
            return self._bucket(about, minute).admit(minute, self._limits.refusals_per_minute)

    def _bucket(self, about: About, minute: int) -> _Bucket:
        if about not in self._contracts:
            if len(self._contracts) >= self._limits.refusal_buckets and not self._drop_idle(minute):
                return self._crowd
            self._contracts[about] = _Bucket()
        return self._contracts[about]

    def _drop_idle(self, minute: int) -> bool:
        """Make room by the bucket that has been quiet longest, unless that one is in use. Its count is kept."""
        stalest = min(self._contracts, key=lambda about: self._contracts[about].minute)
        if self._contracts[stalest].minute == minute:
            return False
        self._crowd.suppressed += self._contracts.pop(stalest).suppressed
        return True
