"""Entities in tags, and how many of them a model found: border and kind must both be right (Tjong Kim Sang & De Meulder
2003, "Introduction to the CoNLL-2003 shared task", §2.4)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from .paired import difference_interval
from .results import Evaluation, Score, decimal_figure

__all__ = ["OUTSIDE", "Entity", "entities", "entity_counts", "evaluate_extraction"]

OUTSIDE = "O"
Entity = tuple[int, int, str]
Counts = NDArray[np.int64]


def entities(tags: Sequence[str], *, iob2: bool) -> set[Entity]:
    """(first word, word after the last, kind) of each. IOB2 strictly: what doesn't begin with ``B-`` is no entity.

    Plain tags: a run of one tag is one entity.
    """
    found: set[Entity] = set()
    start, kind = 0, OUTSIDE
    for place, tag in enumerate([*tags, OUTSIDE]):
        prefix, inner = (tag[:2], tag[2:]) if iob2 and tag != OUTSIDE else ("", tag)
        goes_on = inner == kind and prefix != "B-"
        if goes_on:
            continue
        if kind != OUTSIDE:
            found.add((start, place, kind))
        # An I- that continues nothing opens nothing.
        start, kind = place, OUTSIDE if prefix == "I-" else inner
    return found


def entity_counts(truth: Iterable[Sequence[str]], given: Iterable[Sequence[str]], *, iob2: bool) -> Counts:
    """(rows, 3): how many entities each row's two taggings share, how many are given, how many are true."""
    pairs = [(entities(t, iob2=iob2), entities(g, iob2=iob2)) for t, g in zip(truth, given, strict=True)]
    return np.array([[len(t & g), len(g), len(t)] for t, g in pairs], dtype=np.int64).reshape(-1, 3)


def evaluate_extraction(
    truth: Sequence[Sequence[str]],
    base: Sequence[Sequence[str]],
    tuned: Sequence[Sequence[str]],
    *,
    iob2: bool,
    base_kind: str,
    words_cut: int,
    seed: int,
) -> Evaluation:
    """Entity F1, precision and recall over all rows, and the words' accuracy; a paired interval of F1's gain."""
    counts = [entity_counts(truth, given, iob2=iob2) for given in (base, tuned)]
    low, high = difference_interval(_f1_parts(counts[0]), _f1_parts(counts[1]), seed)
    figures = [
        {**_figures(c), "token_accuracy": _accuracy(truth, g)} for c, g in zip(counts, (base, tuned), strict=True)
    ]
    scores = {
        name: Score(decimal_figure(figures[0][name]), decimal_figure(figures[1][name]), True) for name in figures[0]
    }
    facts: dict[str, str | int] = {
        "rows": len(truth),
        "entities": int(counts[0][:, 2].sum()),
        "words_cut": words_cut,
        "base_kind": base_kind,
        "difference_low": f"{decimal_figure(low):f}",
        "difference_high": f"{decimal_figure(high):f}",
    }
    return Evaluation(scores, facts)


def _f1_parts(counts: Counts) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return (2 * counts[:, 0]).astype(np.float64), (counts[:, 1] + counts[:, 2]).astype(np.float64)


def _figures(counts: Counts) -> dict[str, float]:
    shared, given, true = (int(n) for n in counts.sum(axis=0))
    return {
        "entity_f1": 2 * shared / max(given + true, 1),
        "entity_precision": shared / max(given, 1),
        "entity_recall": shared / max(true, 1),
    }


def _accuracy(truth: Sequence[Sequence[str]], given: Sequence[Sequence[str]]) -> float:
    right = sum(a == b for t, g in zip(truth, given, strict=True) for a, b in zip(t, g, strict=True))
    return right / max(1, sum(map(len, truth)))
