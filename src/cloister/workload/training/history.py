"""What a training told of itself, kept for the recipients: a ``Progress`` port that remembers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .ports import Progress

__all__ = ["History", "Point"]

_MOST = 2048  # points; then every second one goes, so that a long run takes no more room than a short one


@dataclass(frozen=True)
class Point:
    """``values``: decimal texts, by name, at ``step`` of ``stage``; ``when``: milliseconds since 1970."""

    stage: str
    step: int
    when: int
    values: Mapping[str, str]


class History:
    """Hands every report on to ``progress``, and keeps those that have values."""

    def __init__(self, progress: Progress, *, clock: Callable[[], float] = time.time) -> None:
        self._progress, self._clock = progress, clock
        self._points: list[Point] = []

    def report(self, stage: str, step: int, total: int, values: Mapping[str, str]) -> None:
        self._progress.report(stage, step, total, values)
        if not values:
            return
        self._points.append(Point(stage, step, int(self._clock() * 1000), dict(values)))
        if len(self._points) > _MOST:
            # The last one stays, whatever its place: it is where the run stands.
            self._points = [*self._points[:-1:2], self._points[-1]]

    @property
    def points(self) -> Sequence[Point]:
        return tuple(self._points)

    def curve(self, stage: str, name: str) -> list[tuple[int, float]]:
        """(step, value) where the value is a finite number."""
        found = [(p.step, float(p.values[name])) for p in self._points if p.stage == stage and name in p.values]
        return [(step, value) for step, value in found if math.isfinite(value)]
