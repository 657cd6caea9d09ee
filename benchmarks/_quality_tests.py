"""Is a difference more than chance? Every row (or query) was answered by both models, so the tests are on pairs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Sides", "randomization_p", "sides_of"]

_ROUNDS = 10_000
_CHUNK = 500


@dataclass(frozen=True)
class Sides:
    """Each (rows, 2): what a row adds above and below the fraction bar of a figure, under base and tuned model."""

    base: Any
    tuned: Any

    @classmethod
    def of_values(cls, base: Any, tuned: Any) -> Sides:
        """Where the figure is a mean over rows."""
        return cls(*(np.stack([np.asarray(v, dtype=np.float64), np.ones(len(v))], axis=1) for v in (base, tuned)))

    @classmethod
    def joined(cls, parts: Sequence[Sides]) -> Sides:
        return cls(*(np.concatenate([getattr(part, side) for part in parts]) for side in ("base", "tuned")))

    def figures(self) -> tuple[float, float]:
        base, tuned = (float(side[:, 0].sum() / max(side[:, 1].sum(), 1e-300)) for side in (self.base, self.tuned))
        return base, tuned


def randomization_p(sides: Sides, seed: int = 0) -> float:
    """Two-sided p of the figures' difference by approximate randomization (Noreen 1989; for F1: Yeh 2000, "More
    accurate tests for the statistical significance of result differences"): for each row a coin says which model gave
    which answer, 10,000 times."""
    generator = np.random.default_rng(seed)
    both, apart = sides.base + sides.tuned, sides.tuned - sides.base
    base, tuned = sides.figures()
    observed, extreme = abs(tuned - base), 0
    for _ in range(_ROUNDS // _CHUNK):
        coins = generator.integers(0, 2, size=(_CHUNK, len(apart))) * 2.0 - 1.0
        swapped = coins @ apart
        first, second = (both.sum(axis=0) + swapped) / 2, (both.sum(axis=0) - swapped) / 2
        found = first[:, 0] / np.maximum(first[:, 1], 1e-300) - second[:, 0] / np.maximum(second[:, 1], 1e-300)
        extreme += int((np.abs(found) >= observed - 1e-12).sum())
    return (extreme + 1) / (_ROUNDS + 1)


def sides_of(result: Any, rows: Sequence[Mapping[str, Any]]) -> Sides:
    """Of a training's result; ``rows``: all rows of the data, among which it names those that were answered."""
    task = result.recipe.task
    return _ranks(result, rows) if task == "ranking" else _READERS[task](result)


def _right(result: Any) -> Sides:
    answers = result.answers
    return Sides.of_values(answers["base"] == answers["truth"], answers["tuned"] == answers["truth"])


def _micro(result: Any) -> Sides:
    answers = result.answers
    truth = answers["truth"]
    found = [
        np.stack([2.0 * (truth & given).sum(axis=1), 1.0 * truth.sum(axis=1) + given.sum(axis=1)], axis=1)
        for given in (answers["base"], answers["tuned"])
    ]
    return Sides(*found)


def _entities(result: Any) -> Sides:
    """From (rows, 3): entities that both have, that were given, that are true."""
    answers = result.answers
    found = [
        np.stack([2.0 * counts[:, 0], 1.0 * counts[:, 1] + counts[:, 2]], axis=1)
        for counts in (answers["base"], answers["tuned"])
    ]
    return Sides(*found)


def _ranks(result: Any, rows: Any) -> Sides:
    answers = result.answers
    from cloister.workload.evaluation import ranking_figures

    groups = defaultdict(list)
    for place, row in enumerate(answers["rows"].tolist()):
        groups[rows[row]["query"]].append(place)
    base, tuned = (
        ranking_figures(answers[side], answers["truth"], list(groups.values()))["mrr"] for side in ("base", "tuned")
    )
    return Sides.of_values(base, tuned)


def _queries(result: Any) -> Sides:
    answers = result.answers
    return Sides.of_values(answers["base"], answers["tuned"])


def _bits(result: Any) -> Sides:
    """Both models wrote the same bytes, so it doesn't matter to the test which row has how many of them."""
    bits = [result.answers[side].astype(np.float64) / np.log(2.0) for side in ("base_nats", "tuned_nats")]
    total = bits[0].sum() / float(result.evaluation.scores["bits_per_byte"].base)
    each = np.full(len(bits[0]), total / len(bits[0]))
    return Sides(*(np.stack([side, each], axis=1) for side in bits))


_READERS: Mapping[str, Callable[[Any], Sides]] = {
    "classification": _right,
    "multilabel": _micro,
    "extraction": _entities,
    "embedding": _queries,
    "generation": _bits,
    "chat": _bits,
    "text": _bits,
}
