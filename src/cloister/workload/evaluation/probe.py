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

__all__ = ["Baseline", "Probe", "baseline", "fit_probe", "fit_probes"]

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]

_GRID = (1.0, 10.0, 100.0)  # inverse regularization strengths; embeddings are scaled to mean length 1 first
_FOLDS = 3
_CROSS_VALIDATED_ROWS = 3000  # choosing among three values needs no more
_MAX_ITERATIONS = 500
_CROSS_VALIDATED_LABELS = 8
_SURE = 8.0  # the logit of what all training rows agree on


@dataclass(frozen=True)
class Probe:
    """A linear classifier on embeddings: logits = embedding @ weight.T + bias. (labels, width) and (labels,)."""

    weight: Floats
    bias: Floats
    inverse_strength: float

    def predict(self, embeddings: Floats) -> Labels:
        return np.asarray(self.logits(embeddings).argmax(axis=1), dtype=np.int64)

    def logits(self, embeddings: Floats) -> Floats:
        return np.asarray(embeddings @ self.weight.T + self.bias, dtype=np.float32)


@dataclass(frozen=True)
class Baseline:
    """``kind`` is probe or majority; ``predictions`` are its answers on the validation rows: (rows,) of label numbers,
    or (rows, labels) of 0 and 1."""

    kind: str
    predictions: Labels


def fit_probe(embeddings: Floats, labels: Labels, count: int, seed: int) -> Probe:
    """Fit on training rows only. ``labels`` are numbers below ``count``, each occurring at least once."""
    scale = np.float32(1.0 / max(float(np.linalg.norm(embeddings, axis=1).mean()), 1e-12))
    scaled = embeddings * scale
    strength = _choose(scaled, labels, count, seed)
    weight, bias = _fit(scaled, labels, count, strength)
    return Probe(weight * scale, bias, strength)


def fit_probes(embeddings: Floats, flags: Labels, seed: int) -> Probe:
    """One logistic regression for each column of ``flags`` (rows, labels), 0 or 1: above 0 the label holds.

    All share one strength, chosen on the commonest few labels.
    """
    scale = np.float32(1.0 / max(float(np.linalg.norm(embeddings, axis=1).mean()), 1e-12))
    scaled, often = embeddings * scale, flags.sum(axis=0)
    mixed = [
        int(c) for c in np.argsort(-np.minimum(often, len(flags) - often), kind="stable") if 0 < often[c] < len(flags)
    ]
    chosen = [_choose(scaled, flags[:, c], 2, seed) for c in mixed[:_CROSS_VALIDATED_LABELS]]
    strength = sorted(chosen)[len(chosen) // 2] if chosen else _GRID[0]
    weight = np.zeros((flags.shape[1], scaled.shape[1]), dtype=np.float32)
    bias = np.where(often > 0, np.float32(_SURE), np.float32(-_SURE))
    for column in mixed:
        found, shift = _fit(scaled, flags[:, column], 2, strength)
        weight[column], bias[column] = found[1], shift[1]
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
