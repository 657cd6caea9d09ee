"""Any number of labels a text: frozen embeddings → one logistic regression a label → the encoder with a head."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ...contracts.recipe import Recipe
from ...errors import Misuse
from ..data import Split, Table, items, rarest, split_rows
from ..evaluation import evaluate_multilabel, fit_probes, multilabel_baseline
from .base_model import BaseModel
from .batching import Row, collate_flags
from .encoders import body, equip
from .heads import PooledClassifier, choose_pooling
from .looks import Look
from .predict import embeddings, logits
from .run import Ports, Timings, TrainingResult, device, train
from .tokenize import encode_labelled

__all__ = ["run_multilabel"]


def run_multilabel(recipe: Recipe, base: BaseModel, table: Table, ports: Ports, split: Split | None) -> TrainingResult:
    """See ``engine.run_training``."""
    timings = Timings()
    texts, sets = table.column(recipe.columns["text"]), items(table.column(recipe.columns["labels"]))
    labels = _names(sets)
    split = split or split_rows(texts, rarest(sets), recipe.validation, recipe.seed, recipe.test)
    pooling = choose_pooling(recipe.pooling, base)
    encoder, width, max_length = body(recipe, base, ports)
    model = PooledClassifier(encoder, width, len(labels), pooling, independent=True).to(device())
    number = {name: place for place, name in enumerate(labels)}
    plain = encode_labelled(base.tokenizer, texts, [0] * len(texts), max_length)
    rows = [Row(r.ids, 0, tuple(sorted({number[n] for n in s}))) for r, s in zip(plain, sets, strict=True)]
    training, report = [rows[r] for r in split.training], [rows[r] for r in split.report]
    collate = partial(collate_flags, labels=len(labels))
    seen, truth = _flags(training, len(labels)), _flags(report, len(labels))
    ports.progress.report("prepare", 0, 1, {})
    with timings.measure("embed"):
        vectors, held = (embeddings(model, part, base.tokens.pad, ports.lease) for part in (training, report))
    with timings.measure("probe"):
        probe = fit_probes(vectors, seen, recipe.seed)
    compared = multilabel_baseline(probe, held, truth, seen)
    ports.progress.report("prepare", 1, 1, {})
    equip(model, recipe, probe)

    def look() -> Look:
        chosen = [rows[r] for r in split.validation]
        given, true = logits(model, chosen, base.tokens.pad, ports.lease) > 0, _flags(chosen, len(labels))
        return Look("micro_f1", float(2 * (given * true).sum() / max(given.sum() + true.sum(), 1)))

    train(model, recipe, base, training, collate, ports, timings, look)
    ports.progress.report("evaluate", 0, 1, {})
    with timings.measure("predict"):
        answers = (logits(model, report, base.tokens.pad, ports.lease) > 0).astype(np.int64)
    evaluation = evaluate_multilabel(truth, compared.predictions, answers, base_kind=compared.kind, seed=recipe.seed)
    ports.progress.report("evaluate", 1, 1, {"micro_f1": f"{evaluation.scores['micro_f1'].tuned:f}"})
    found = {"rows": np.array(split.report), "truth": truth, "base": compared.predictions, "tuned": answers}
    return TrainingResult(recipe, base, model, evaluation, found, max_length, labels, pooling, timings)


def _flags(rows: Sequence[Row], labels: int) -> NDArray[np.int64]:
    """(rows, labels) of 0 and 1."""
    found: NDArray[np.int64] = collate_flags(rows, 0, labels)["labels"].numpy().astype(np.int64)
    return found


def _names(sets: list[list[str]]) -> tuple[str, ...]:
    names = tuple(sorted({name for names in sets for name in names}))
    if not names or all(set(names) == set(given) for given in sets):
        raise Misuse("data.labels", "All rows hold the same labels, so there is nothing to tell apart; check 'labels'.")
    if any(not name.strip() for name in names):
        raise Misuse("data.labels", "Some rows have an empty label; remove it from their list.")
    if len(names) > max(16, len(sets) // 2):
        raise Misuse("data.labels", "Most labels occur only once; check that 'columns.labels' names the label column.")
    return names
