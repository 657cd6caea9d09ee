"""Any number of labels a row: the base's own best, and figures."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from .paired import difference_interval
from .probe import Baseline, Probe
from .results import Evaluation, Score, decimal_figure

__all__ = ["evaluate_multilabel", "multilabel_baseline"]

Flags = NDArray[np.int64]  # (rows, labels), 0 or 1


def multilabel_baseline(probe: Probe, embeddings: NDArray[np.float32], truth: Flags, training: Flags) -> Baseline:
    """The better one by micro-F1 on the validation rows: one logistic regression a label, or the commonest set."""
    probed = np.asarray(probe.logits(embeddings) > 0, dtype=np.int64)
    sets = Counter(map(tuple, training.tolist()))
    commonest = np.tile(np.array(min(sets, key=lambda s: (-sets[s], s)), dtype=np.int64), (len(truth), 1))
    if _micro(truth, probed) >= _micro(truth, commonest):
        return Baseline("probe", probed)
    return Baseline("majority", commonest)


def evaluate_multilabel(truth: Flags, base: Flags, tuned: Flags, *, base_kind: str, seed: int) -> Evaluation:
    """Micro- and macro-F1 and how often the whole set is right, of both; a paired interval of micro-F1's gain."""
    low, high = difference_interval(_parts(truth, base), _parts(truth, tuned), seed)
    figures = {
        "micro_f1": (_micro(truth, base), _micro(truth, tuned)),
        "macro_f1": (_macro(truth, base), _macro(truth, tuned)),
        "exact_match": tuple(float((truth == given).all(axis=1).mean()) for given in (base, tuned)),
    }
    facts: dict[str, str | int] = {
        "rows": len(truth),
        "base_kind": base_kind,
        "difference_low": f"{decimal_figure(low):f}",
        "difference_high": f"{decimal_figure(high):f}",
    }
    return Evaluation({k: Score(decimal_figure(b), decimal_figure(t), True) for k, (b, t) in figures.items()}, facts)


def _parts(truth: Flags, given: Flags) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return 2.0 * (truth & given).sum(axis=1), (truth.sum(axis=1) + given.sum(axis=1)).astype(np.float64)


def _micro(truth: Flags, given: Flags) -> float:
    shared, both = _parts(truth, given)
    return float(shared.sum() / max(both.sum(), 1.0))


def _macro(truth: Flags, given: Flags) -> float:
    return float(f1_score(truth, given, average="macro", zero_division=0))
