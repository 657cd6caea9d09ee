"""Figures of base and tuned model on the validation rows, as decimals of six places."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from ...errors import Internal
from .paired import bootstrap_interval, mcnemar_exact

__all__ = ["Evaluation", "Score", "decimal_figure", "evaluate_classification", "evaluate_generation"]

_PLACES = Decimal("0.000001")


@dataclass(frozen=True)
class Score:
    """One metric of both models. What is published, and what the gates decide on, are these rounded figures."""

    base: Decimal
    tuned: Decimal
    higher_is_better: bool

    @property
    def gain(self) -> Decimal:
        """By how much the tuned model is better; negative if it is worse."""
        return self.tuned - self.base if self.higher_is_better else self.base - self.tuned


@dataclass(frozen=True)
class Evaluation:
    """``scores`` by metric; ``facts`` are further figures for the card. ``document`` is canonical: no floats."""

    scores: Mapping[str, Score]
    facts: Mapping[str, str | int]

    def joined(self, other: Evaluation) -> Evaluation:
        return Evaluation({**self.scores, **other.scores}, {**self.facts, **other.facts})

    def document(self) -> dict[str, str | int]:
        out: dict[str, str | int] = dict(self.facts)
        for name, score in self.scores.items():
            out[name], out[f"base_{name}"] = f"{score.tuned:f}", f"{score.base:f}"
        return out


def decimal_figure(value: float) -> Decimal:
    """Six places. Internal if the value isn't finite: no such figure may pass a gate."""
    if not math.isfinite(value):
        raise Internal(
            "evaluation.figure", "The evaluation gave a figure that is not a number; lower the learning rate."
        )
    return Decimal(repr(float(value))).quantize(_PLACES) + Decimal(0)


def evaluate_classification(
    truth: NDArray[np.int64], base: NDArray[np.int64], tuned: NDArray[np.int64], *, base_kind: str, seed: int
) -> Evaluation:
    """Accuracy and macro-F1 of both; exact McNemar and a paired bootstrap interval of the accuracies' difference."""
    base_right, tuned_right = base == truth, tuned == truth
    better, worse = int((tuned_right & ~base_right).sum()), int((base_right & ~tuned_right).sum())
    difference = tuned_right.astype(np.float64) - base_right.astype(np.float64)
    low, high = bootstrap_interval(difference, np.ones(len(truth)), seed)
    scores = {
        "accuracy": _score(float(base_right.mean()), float(tuned_right.mean()), True),
        "macro_f1": _score(_macro_f1(truth, base), _macro_f1(truth, tuned), True),
    }
    facts: dict[str, str | int] = {
        "rows": len(truth),
        "base_kind": base_kind,
        "better_rows": better,
        "worse_rows": worse,
        "mcnemar_p": f"{decimal_figure(mcnemar_exact(better, worse)):f}",
        "difference_low": f"{decimal_figure(low):f}",
        "difference_high": f"{decimal_figure(high):f}",
    }
    return Evaluation(scores, facts)


def evaluate_generation(
    base_nats: NDArray[np.float64],
    tuned_nats: NDArray[np.float64],
    tokens: NDArray[np.int64],
    text_bytes: NDArray[np.int64],
    seed: int,
    *,
    base_kind: str = "untuned",
) -> Evaluation:
    """Bits per byte of the completions' text, and loss per token in nats; the interval is of the bits saved per byte.

    Bits per byte doesn't depend on how a tokenizer cuts the text, so it compares across models.
    """
    total_bytes, total_tokens = float(text_bytes.sum()), float(tokens.sum())
    to_bits = 1.0 / (math.log(2.0) * total_bytes)
    low, high = bootstrap_interval((base_nats - tuned_nats) / math.log(2.0), text_bytes.astype(np.float64), seed)
    scores = {
        "bits_per_byte": _score(float(base_nats.sum()) * to_bits, float(tuned_nats.sum()) * to_bits, False),
        "loss": _score(float(base_nats.sum()) / total_tokens, float(tuned_nats.sum()) / total_tokens, False),
    }
    facts: dict[str, str | int] = {
        "rows": len(tokens),
        "base_kind": base_kind,
        "difference_low": f"{decimal_figure(low):f}",
        "difference_high": f"{decimal_figure(high):f}",
    }
    return Evaluation(scores, facts)


def _score(base: float, tuned: float, higher_is_better: bool) -> Score:
    return Score(decimal_figure(base), decimal_figure(tuned), higher_is_better)


def _macro_f1(truth: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    return float(f1_score(truth, predicted, average="macro", zero_division=0))
