"""The base model's own best at the task: what a tuned model has to beat.

A base has no classifier, and one drawn at random would make any tuning look good. So the comparison is the better of
always answering the commonest label, and logistic regression on the frozen base's embeddings.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

__all__ = ["Baseline", "Probe", "baseline", "fit_probe"]

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]

_GRID = (1.0, 10.0, 100.0)  # inverse regularization strengths; embeddings are scaled to mean length 1 first
_FOLDS = 3
_CROSS_VALIDATED_ROWS = 3000  # choosing among three values needs no more
_MAX_ITERATIONS = 500


@dataclass(frozen=True)
class Probe:
    """A linear classifier on embeddings: logits = embedding @ weight.T + bias. (labels, width) and (labels,)."""

    weight: Floats
    bias: Floats
    inverse_strength: float

    def predict(self, embeddings: Floats) -> Labels:
        return np.asarray((embeddings @ self.weight.T + self.bias).argmax(axis=1), dtype=np.int64)


@dataclass(frozen=True)
class Baseline:
    """``kind`` is probe or majority; ``predictions`` are its answers on the validation rows."""

    kind: str
    predictions: Labels


def fit_probe(embeddings: Floats, labels: Labels, count: int, seed: int) -> Probe:
    """Fit on training rows only. ``labels`` are numbers below ``count``, each occurring at least once."""
    scale = np.float32(1.0 / max(float(np.linalg.norm(embeddings, axis=1).mean()), 1e-12))
    scaled = embeddings * scale
    strength = _choose(scaled, labels, count, seed)
    weight, bias = _fit(scaled, labels, count, strength)
    return Probe(weight * scale, bias, strength)


def baseline(probe: Probe, embeddings: Floats, truth: Labels, training: Labels) -> Baseline:
    """The better one on the validation rows: choosing it there is to the base's favour, never to the tuned model's."""
    probed = probe.predict(embeddings)
    commonest = np.full_like(truth, int(np.bincount(training).argmax()))
    if (probed == truth).mean() >= (commonest == truth).mean():
        return Baseline("probe", probed)
    return Baseline("majority", commonest)


def _fit(rows: Floats, labels: Labels, count: int, strength: float) -> tuple[Floats, Floats]:
    model = LogisticRegression(C=strength, max_iter=_MAX_ITERATIONS, tol=1e-3)
    # One BLAS thread: the products are small, and spinning threads beside a busy neighbour made a fit four times
    # slower.
    with warnings.catch_warnings(), threadpool_limits(1):
        # Stopping at the bound leaves a slightly weaker fit, which cross-validation then judges like any other.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(rows, labels)
    weight = np.zeros((count, rows.shape[1]), dtype=np.float32)
    bias = np.full(count, -1e4, dtype=np.float32)  # a label that these rows lack is never the answer
    found, shift = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # one row of weights for the second class; the first one's logit is zero
        found, shift = np.vstack([np.zeros_like(found), found]), np.concatenate([[0.0], shift])
    weight[model.classes_], bias[model.classes_] = found, shift
    return weight, bias


def _choose(rows: Floats, labels: Labels, count: int, seed: int) -> float:
    order = np.random.default_rng(seed).permutation(len(rows))[:_CROSS_VALIDATED_ROWS]
    rows, labels = rows[order], labels[order]
    # Rows of one label are dealt to the folds in turn, so that each fold sees it if there are enough.
    by_label = np.argsort(labels, kind="stable")
    fold = np.empty(len(labels), dtype=np.int64)
    fold[by_label] = np.arange(len(labels)) % _FOLDS
    right = dict.fromkeys(_GRID, 0)
    for strength in _GRID:
        for part in range(_FOLDS):
            inside, outside = fold != part, fold == part
            if len(np.unique(labels[inside])) < 2:
                continue
            weight, bias = _fit(rows[inside], labels[inside], count, strength)
            right[strength] += int(((rows[outside] @ weight.T + bias).argmax(axis=1) == labels[outside]).sum())
    return max(_GRID, key=lambda strength: (right[strength], -strength))
