"""How many rows there are, and how long: what memory and time depend on, and nothing else of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Rows"]


@dataclass(frozen=True)
class Rows:
    """``count`` of all rows. ``mean``, ``deviation`` and ``longest``: tokens of a row. ``measured``: tokens that are
    looked at without learning, at least, in one batch; general text is always enough for a whole one."""

    count: int
    mean: float
    deviation: float
    longest: int
    measured: int = 1 << 30

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Rows:
        """``lengths``: tokens of each row, at least one."""
        mean = sum(lengths) / len(lengths)
        spread = math.sqrt(sum((length - mean) ** 2 for length in lengths) / len(lengths))
        return cls(len(lengths), mean, spread, max(lengths))

    def cut(self, longest: int) -> Rows:
        """Where no row is longer than that."""
        if self.longest <= longest:
            return self
        return Rows(self.count, min(self.mean, longest), min(self.deviation, longest / 2), longest, self.measured)

    def together(self, count: int, longest: int) -> int:
        """Tokens of the fullest batch of ``count`` rows in random order: three deviations over the mean."""
        usual = min(self.mean, longest) * count + 3 * self.deviation * math.sqrt(count)
        return math.ceil(min(usual, longest * count))
