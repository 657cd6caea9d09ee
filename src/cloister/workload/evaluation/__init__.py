"""Better than the base, or not: ``probe`` (the base's own best), ``results`` (figures), ``paired`` (tests), ``gates``.

All of it is arithmetic on arrays of answers; nothing here holds a model or a row's text.
"""

from .gates import GateResult, apply_gates
from .probe import Baseline, Probe, baseline, fit_probe
from .results import Evaluation, Score, evaluate_classification, evaluate_generation

__all__ = [
    "Baseline",
    "Evaluation",
    "GateResult",
    "Probe",
    "Score",
    "apply_gates",
    "baseline",
    "evaluate_classification",
    "evaluate_generation",
    "fit_probe",
]
