"""The contract's gates, as a pure function of figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from ...contracts.contract import Gate
from ...errors import Denied
from .results import Score

__all__ = ["GateResult", "apply_gates"]


@dataclass(frozen=True)
class GateResult:
    """``reason`` is one sentence for whoever may see the figures."""

    metric: str
    margin: Decimal
    base: Decimal
    tuned: Decimal
    passed: bool
    reason: str

    def document(self) -> dict[str, str | bool]:
        return {
            "metric": self.metric,
            "margin": f"{self.margin:f}",
            "base": f"{self.base:f}",
            "tuned": f"{self.tuned:f}",
            "passed": self.passed,
            "reason": self.reason,
        }


def apply_gates(gates: Sequence[Gate], scores: Mapping[str, Score]) -> tuple[GateResult, ...]:
    """Every gate's verdict. Denied (``gate.metric``) for a metric that this run doesn't measure."""
    return tuple(_apply(gate, scores) for gate in gates)


def _apply(gate: Gate, scores: Mapping[str, Score]) -> GateResult:
    score = scores.get(gate.metric)
    if score is None:
        measured = ", ".join(sorted(scores))
        raise Denied("gate.metric", f"The contract gates on {gate.metric}; this task measures {measured} only.")
    passed = score.gain >= gate.margin
    relation = "reaches" if passed else "misses"
    reason = (
        f"The tuned model's {gate.metric} {score.tuned:f} against the base's {score.base:f} is a gain of "
        f"{score.gain:f}, which {relation} the agreed margin of {gate.margin:f}."
    )
    return GateResult(gate.metric, gate.margin, score.base, score.tuned, passed, reason)
