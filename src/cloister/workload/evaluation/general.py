"""What tuning cost elsewhere: the loss on general text before and after, or how far its embeddings moved."""

from __future__ import annotations

import math
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from .paired import bootstrap_interval
from .results import Evaluation, Score, decimal_figure

__all__ = ["built_in_text", "evaluate_drift", "evaluate_forgetting"]

_NEIGHBOURS = 5


def built_in_text() -> list[str]:
    """The project's own general text, for recipes that name none: prose on many subjects, by paragraph."""
    whole = resources.files(__package__).joinpath("general.txt").read_text(encoding="utf-8")
    return [part.strip() for part in whole.split("\n\n") if not part.startswith("#")]


def evaluate_forgetting(
    base_nats: NDArray[np.float64],
    tuned_nats: NDArray[np.float64],
    tokens: NDArray[np.int64],
    text_bytes: NDArray[np.int64],
    seed: int,
) -> Evaluation:
    """The cross-entropy of both models by row of general text, a token in nats and a byte in bits, and its rise (tuned
    minus base) with a paired bootstrap interval. Lower is better, so a gate's margin below zero bounds the rise."""
    bits = 1.0 / math.log(2.0)
    scores: dict[str, Score] = {}
    facts: dict[str, str | int] = {}
    for name, unit, under in (("general_loss", 1.0, tokens), ("general_bits_per_byte", bits, text_bytes)):
        base, tuned = (float(nats.sum()) * unit / float(under.sum()) for nats in (base_nats, tuned_nats))
        scores[name] = Score(decimal_figure(base), decimal_figure(tuned), False)
        facts[f"{name}_rise"] = f"{decimal_figure(tuned - base):f}"
        low, high = bootstrap_interval((tuned_nats - base_nats) * unit, under.astype(np.float64), seed)
        facts[f"{name}_rise_low"], facts[f"{name}_rise_high"] = (f"{decimal_figure(end):f}" for end in (low, high))
    return Evaluation(scores, {**facts, "general_rows": len(tokens)})


def evaluate_drift(base: NDArray[np.float32], tuned: NDArray[np.float32], seed: int) -> Evaluation:
    """For encoders, which have no language head and so no loss: how alike the embeddings of general text are, base
    against tuned, each (rows, width). It is not forgetting itself, only how much there is to have been forgotten in.

    ``general_similarity``: the mean cosine of a text's two embeddings. ``general_neighbours``: which share of a text's
    nearest others (5, or as many as there are) is the same. Both are 1 for the base, by definition.
    """
    before, after = _unit(base), _unit(tuned)
    cosines = (before * after).sum(axis=1)
    low, high = bootstrap_interval(cosines, np.ones(len(cosines)), seed)
    scores = {
        "general_similarity": Score(decimal_figure(1.0), decimal_figure(float(cosines.mean())), True),
        "general_neighbours": Score(decimal_figure(1.0), decimal_figure(_kept(before, after)), True),
    }
    facts: dict[str, str | int] = {
        "general_loss": "not applicable: the base has no language head",
        "general_rows": len(cosines),
        "general_similarity_low": f"{decimal_figure(low):f}",
        "general_similarity_high": f"{decimal_figure(high):f}",
    }
    return Evaluation(scores, facts)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = vectors.astype(np.float64)
    unit: NDArray[np.float64] = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-300)
    return unit


def _kept(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    count = min(_NEIGHBOURS, len(before) - 1)
    shares = [len(old & new) / count for old, new in zip(_nearest(before, count), _nearest(after, count), strict=True)]
    return float(np.mean(shares))


def _nearest(unit: NDArray[np.float64], count: int) -> list[set[int]]:
    alike = unit @ unit.T
    np.fill_diagonal(alike, -np.inf)
    # Ties by number, so that the same vectors have the same neighbours.
    return [set(row[:count].tolist()) for row in np.argsort(-alike, axis=1, kind="stable")]
