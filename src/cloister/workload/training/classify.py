"""Classification: frozen embeddings → the base's own best → the encoder with a head → training → answers."""

from __future__ import annotations

import numpy as np

from ...contracts.recipe import Recipe
from ..data import Split, Table, label_names, split_rows
from ..evaluation import Baseline, Probe, baseline, evaluate_classification, fit_probe
from .base_model import BaseModel
from .batching import Row, collate_labelled
from .encoders import body, equip
from .heads import PooledClassifier, choose_pooling
from .looks import Look
from .predict import embeddings, logits
from .privacy import baseline_aside, numbered, split_units, users
from .run import Ports, Timings, TrainingResult, device, train
from .tokenize import encode_labelled

__all__ = ["run_classification"]


def run_classification(
    recipe: Recipe, base: BaseModel, table: Table, ports: Ports, split: Split | None
) -> TrainingResult:
    """See ``engine.run_training``."""
    timings = Timings()
    texts, names = table.column(recipe.columns["text"]), table.column(recipe.columns["label"])
    labels = label_names(names)
    private, named = recipe.privacy is not None, users(recipe, table)
    if split is None and private:
        split = split_units(texts, named, recipe.validation, recipe.seed)
    split = split or split_rows(texts, names, recipe.validation, recipe.seed, recipe.test)
    model, max_length = _classifier(recipe, base, ports, len(labels))
    number = {name: place for place, name in enumerate(labels)}
    rows = encode_labelled(base.tokenizer, texts, [number[name] for name in names], max_length)
    training, report = [rows[r] for r in split.training], [rows[r] for r in split.report]
    probe, compared = _probe(model, base, training, report, len(labels), recipe, ports, timings)
    equip(model, recipe, probe)

    def look() -> Look:
        seen = [rows[r] for r in split.validation]
        found = logits(model, seen, base.tokens.pad, ports.lease).argmax(axis=1)
        return Look("accuracy", float(np.mean(found == [row.target for row in seen])))

    units = numbered(split.training, named) if private else None
    train(model, recipe, base, training, collate_labelled, ports, timings, look, units)
    ports.progress.report("evaluate", 0, 1, {})
    with timings.measure("predict"):
        answers = logits(model, report, base.tokens.pad, ports.lease).argmax(axis=1).astype(np.int64)
    truth = np.array([row.target for row in report], dtype=np.int64)
    evaluation = evaluate_classification(
        truth, compared.predictions, answers, base_kind=compared.kind, seed=recipe.seed
    )
    ports.progress.report("evaluate", 1, 1, {"accuracy": f"{evaluation.scores['accuracy'].tuned:f}"})
    found = {"rows": np.array(split.report), "truth": truth, "base": compared.predictions, "tuned": answers}
    return TrainingResult(recipe, base, model, evaluation, found, max_length, labels, model.pooling, timings)


def _classifier(recipe: Recipe, base: BaseModel, ports: Ports, labels: int) -> tuple[PooledClassifier, int]:
    pooling = choose_pooling(recipe.pooling, base)
    encoder, width, max_length = body(recipe, base, ports)
    model = PooledClassifier(encoder, width, labels, pooling)
    return model.to(device()), max_length


def _probe(
    model: PooledClassifier,
    base: BaseModel,
    training: list[Row],
    report: list[Row],
    labels: int,
    recipe: Recipe,
    ports: Ports,
    timings: Timings,
) -> tuple[Probe | None, Baseline]:
    """The frozen base's probe, fitted on the training rows, and the base's best answers on the rows of the report.

    A private run must not begin from a fit on rows that it hides, nor tell of one: it has no probe."""
    ports.progress.report("prepare", 0, 2, {})
    with timings.measure("embed"):
        seen = embeddings(model, training, base.tokens.pad, ports.lease) if recipe.privacy is None else None
        held = embeddings(model, report, base.tokens.pad, ports.lease)
    ports.progress.report("prepare", 1, 2, {})
    targets, truth = (np.array([row.target for row in part], dtype=np.int64) for part in (training, report))
    with timings.measure("probe"):
        probe = None if seen is None else fit_probe(seen, targets, labels, recipe.seed)
        found = (
            baseline_aside(held, truth, labels, recipe.seed) if probe is None else baseline(probe, held, truth, targets)
        )
    ports.progress.report("prepare", 2, 2, {})
    return probe, found
