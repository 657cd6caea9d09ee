"""Is the better answer preferred? Figures on pairs of answers, and how much of plain language was lost for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .paired import bootstrap_interval, mcnemar_exact
from .results import Evaluation, Score, decimal_figure

__all__ = ["PairFigures", "evaluate_preference"]


@dataclass(frozen=True)
class PairFigures:
    """``base``, ``tuned``: (pairs, 2), log-probabilities of chosen and rejected answers in nats. ``base_nats``,
    ``tuned_nats``: the losses of the chosen answers without their end, and ``text_bytes`` their sizes."""

    base: NDArray[Any]
    tuned: NDArray[Any]
    base_nats: NDArray[Any]
    tuned_nats: NDArray[Any]
    text_bytes: NDArray[np.int64]


def evaluate_preference(figures: PairFigures, *, beta: float, seed: int) -> Evaluation:
    """``accuracy``: how often the chosen answer is the more probable one, of both models, with exact McNemar and a
    paired interval. ``reward_accuracy``, ``reward_margin``: DPO's rewards, β times the change of log-probability; the
    base's are zero by definition, so they are facts and no comparison. ``bits_per_byte`` of the chosen answers."""
    base, tuned = figures.base.astype(np.float64), figures.tuned.astype(np.float64)
    base_right, tuned_right = base[:, 0] > base[:, 1], tuned[:, 0] > tuned[:, 1]
    better, worse = int((tuned_right & ~base_right).sum()), int((base_right & ~tuned_right).sum())
    low, high = bootstrap_interval(tuned_right.astype(np.float64) - base_right, np.ones(len(base)), seed)
    rewards = beta * (tuned - base)
    margins = rewards[:, 0] - rewards[:, 1]
    to_bits = 1.0 / (math.log(2.0) * float(figures.text_bytes.sum()))
    bits = [float(nats.astype(np.float64).sum()) * to_bits for nats in (figures.base_nats, figures.tuned_nats)]
    scores = {
        "accuracy": Score(decimal_figure(float(base_right.mean())), decimal_figure(float(tuned_right.mean())), True),
        "bits_per_byte": Score(decimal_figure(bits[0]), decimal_figure(bits[1]), False),
    }
    facts: dict[str, str | int] = {
        "rows": len(base),
        "base_kind": "untuned",
        "better_rows": better,
        "worse_rows": worse,
        "mcnemar_p": f"{decimal_figure(mcnemar_exact(better, worse)):f}",
        "difference_low": f"{decimal_figure(low):f}",
        "difference_high": f"{decimal_figure(high):f}",
        "reward_accuracy": f"{decimal_figure(float((margins > 0).mean())):f}",
        "reward_margin": f"{decimal_figure(float(margins.mean())):f}",
    }
    return Evaluation(scores, facts)
