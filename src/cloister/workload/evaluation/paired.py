"""Is the tuned model really better? Tests on pairs: both models answered the same rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

__all__ = ["RESAMPLES", "bootstrap_interval", "difference_interval", "mcnemar_exact"]

RESAMPLES = 10_000
_CHUNK = 256  # resamples drawn at once: bounds memory to chunk × rows


def mcnemar_exact(better: int, worse: int) -> float:
    """Two-sided exact McNemar p-value (the binomial form, Dietterich 1998 §3.1 uses its approximation).

    ``better``: rows that only the tuned model got right; ``worse``: rows that only the base did. Rows on which both
    agree say nothing about the difference. 1.0 if no others are left.
    """
    if better + worse == 0:
        return 1.0
    return float(binomtest(better, better + worse, 0.5).pvalue)


def bootstrap_interval(
    numerators: NDArray[np.float64], denominators: NDArray[np.float64], seed: int
) -> tuple[float, float]:
    """95 % interval of sum(numerators)/sum(denominators) over resampled rows (Efron & Tibshirani 1993, §13.3).

    With per-row differences as numerators it is a paired interval. Seeded: the same rows give the same interval.
    """
    generator = np.random.default_rng(seed)
    rows = len(numerators)
    found = []
    for start in range(0, RESAMPLES, _CHUNK):
        picks = generator.integers(0, rows, size=(min(_CHUNK, RESAMPLES - start), rows))
        found.append(numerators[picks].sum(axis=1) / np.maximum(denominators[picks].sum(axis=1), 1e-300))
    low, high = np.quantile(np.concatenate(found), [0.025, 0.975])
    return float(low), float(high)


def difference_interval(
    base: tuple[NDArray[np.float64], NDArray[np.float64]],
    tuned: tuple[NDArray[np.float64], NDArray[np.float64]],
    seed: int,
) -> tuple[float, float]:
    """95 % interval of the tuned ratio of sums minus the base's, both over the same resampled rows.

    Each is (numerators, denominators), one entry a row: an F1 over all rows is such a ratio. An empty ratio is 0.
    """
    columns = np.stack([*tuned, *base], axis=1)
    generator = np.random.default_rng(seed)
    rows = len(columns)
    found = []
    for start in range(0, RESAMPLES, _CHUNK):
        picks = generator.integers(0, rows, size=(min(_CHUNK, RESAMPLES - start), rows))
        top, under, base_top, base_under = columns[picks].sum(axis=1).T
        found.append(top / np.maximum(under, 1e-300) - base_top / np.maximum(base_under, 1e-300))
    low, high = np.quantile(np.concatenate(found), [0.025, 0.975])
    return float(low), float(high)
