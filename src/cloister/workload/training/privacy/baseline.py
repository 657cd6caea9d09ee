"""The base's own best, for a private run: fitted on the rows that are set aside, so that it tells nothing of the
others. What is released beside private weights must not be less private than they are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...evaluation import Baseline, baseline, fit_probe

__all__ = ["baseline_aside"]

_FOLDS = 5


def baseline_aside(embeddings: NDArray[np.float32], truth: NDArray[np.int64], labels: int, seed: int) -> Baseline:
    """Logistic regression on the frozen base's ``embeddings`` (rows, width), each fold answered by a fit on the others;
    or the commonest label, if that does better."""
    # Rows of one label are dealt to the folds in turn, in an order that the seed gives.
    order = np.random.default_rng(seed).permutation(len(truth))
    fold = np.empty(len(truth), dtype=np.int64)
    fold[order[np.argsort(truth[order], kind="stable")]] = np.arange(len(truth)) % min(_FOLDS, len(truth))
    found = np.full_like(truth, int(np.bincount(truth).argmax()))
    for part in np.unique(fold):
        inside, outside = fold != part, fold == part
        if len(np.unique(truth[inside])) > 1:
            probe = fit_probe(embeddings[inside], truth[inside], labels, seed)
            found[outside] = baseline(probe, embeddings[outside], truth[outside], truth[inside]).predictions
    commonest = np.full_like(truth, int(np.bincount(truth).argmax()))
    if (found == truth).mean() >= (commonest == truth).mean():
        return Baseline("probe", found)
    return Baseline("majority", commonest)
