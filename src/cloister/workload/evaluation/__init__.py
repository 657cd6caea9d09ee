"""Better than the base, or not: ``probe`` (the base's own best), ``results`` (figures; ``multilabel``,
``entities``, ``retrieval``, ``preference`` for those tasks; ``general`` for what was forgotten), ``paired`` (tests),
``gates``.

All of it is arithmetic on arrays of answers; nothing here holds a model or a row's text.
"""

from .entities import entity_counts, evaluate_extraction
from .gates import GateResult, apply_gates
from .general import built_in_text, evaluate_drift, evaluate_forgetting
from .multilabel import evaluate_multilabel, multilabel_baseline
from .preference import PairFigures, evaluate_preference
from .probe import Baseline, Probe, baseline, fit_probe, fit_probes
from .results import Evaluation, Score, decimal_figure, evaluate_classification, evaluate_generation
from .retrieval import evaluate_queries, pool_figures, ranking_figures

__all__ = [
    "Baseline",
    "Evaluation",
    "GateResult",
    "PairFigures",
    "Probe",
    "Score",
    "apply_gates",
    "baseline",
    "built_in_text",
    "decimal_figure",
    "entity_counts",
    "evaluate_classification",
    "evaluate_drift",
    "evaluate_extraction",
    "evaluate_forgetting",
    "evaluate_generation",
    "evaluate_multilabel",
    "evaluate_preference",
    "evaluate_queries",
    "fit_probe",
    "fit_probes",
    "multilabel_baseline",
    "pool_figures",
    "ranking_figures",
]
