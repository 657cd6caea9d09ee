"""Is the right one on top? Reciprocal ranks, discounted gains and recall, query by query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .paired import difference_interval
from .results import Evaluation, Score, decimal_figure

__all__ = ["evaluate_queries", "pool_figures", "ranking_figures"]

_CUT = 10
Figures = Mapping[str, NDArray[np.float64]]  # one value a query


def ranking_figures(
    scores: NDArray[np.floating], relevance: NDArray[np.float64], groups: Sequence[Sequence[int]]
) -> Figures:
    """``mrr`` and ``ndcg_at_10`` (gain: the relevance itself; Järvelin & Kekäläinen 2002) of each group of rows.

    Equal scores are put in the worst order, so a model that can't tell rows apart gains nothing.
    """
    ranks, gains = [], []
    for rows in groups:
        grades, given = relevance[list(rows)], scores[list(rows)]
        ordered = grades[np.lexsort((grades, -given))]
        ranks.append(_reciprocal(ordered > 0))
        gains.append(_gain(ordered) / max(_gain(np.sort(grades)[::-1]), 1e-12))
    return {"mrr": np.array(ranks), "ndcg_at_10": np.array(gains)}


def pool_figures(queries: NDArray[np.float32], pool: NDArray[np.float32], right: Sequence[Sequence[int]]) -> Figures:
    """``mrr``, ``recall_at_1`` and ``recall_at_10`` of queries (unit vectors) among ``pool``. ``right``: places.

    Recall is the share of a query's right texts, of at most as many as fit.
    """
    found: dict[str, list[float]] = {"mrr": [], "recall_at_1": [], "recall_at_10": []}
    for vector, places in zip(queries, right, strict=True):
        scores, truth = pool @ vector, np.zeros(len(pool))
        truth[list(places)] = 1.0
        ordered = truth[np.lexsort((truth, -scores))]
        found["mrr"].append(_reciprocal(ordered > 0))
        for cut in (1, _CUT):
            found[f"recall_at_{cut}"].append(float(ordered[:cut].sum() / min(cut, len(places))))
    return {name: np.array(values) for name, values in found.items()}


def evaluate_queries(base: Figures, tuned: Figures, *, base_kind: str, rows: int, seed: int) -> Evaluation:
    """Means over the queries of both models; a paired interval, over queries, of the difference in ``mrr``."""
    ones = np.ones(len(base["mrr"]))
    low, high = difference_interval((base["mrr"], ones), (tuned["mrr"], ones), seed)
    facts: dict[str, str | int] = {
        "rows": rows,
        "queries": len(ones),
        "base_kind": base_kind,
        "difference_low": f"{decimal_figure(low):f}",
        "difference_high": f"{decimal_figure(high):f}",
    }
    means = {name: (float(base[name].mean()), float(tuned[name].mean())) for name in base}
    return Evaluation({k: Score(decimal_figure(b), decimal_figure(t), True) for k, (b, t) in means.items()}, facts)


def _reciprocal(relevant: NDArray[np.bool_]) -> float:
    return 1.0 / (1 + int(relevant.argmax())) if relevant.any() else 0.0


def _gain(grades: NDArray[np.float64]) -> float:
    return float((grades[:_CUT] / np.log2(np.arange(2, 2 + len(grades[:_CUT])))).sum())
