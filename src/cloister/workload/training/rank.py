"""A query and a document read together: the frozen base's order → the encoder with one sigmoid → its order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...contracts.recipe import Recipe
from ...errors import Misuse
from ..data import Split, Table, split_rows
from ..evaluation import evaluate_queries, fit_probes, ranking_figures
from .base_model import BaseModel
from .batching import Row, collate_pairs
from .encoders import body, encode_pairs, equip, takes_types
from .heads import PooledClassifier, choose_pooling
from .looks import Look
from .predict import embeddings, pair_passes
from .run import Ports, Timings, TrainingResult, device, train
from .tokenize import encode_labelled

__all__ = ["run_ranking"]


def run_ranking(recipe: Recipe, base: BaseModel, table: Table, ports: Ports, split: Split | None) -> TrainingResult:
    """See ``engine.run_training``."""
    timings = Timings()
    queries, documents, cells = (table.column(recipe.columns[r]) for r in ("query", "document", "relevance"))
    relevance = np.array([float(cell) for cell in cells])
    _check(queries, documents, relevance)
    split = split or split_rows(queries, None, recipe.validation, recipe.seed, recipe.test)
    groups = _groups(queries, split.report)
    pooling = choose_pooling(recipe.pooling, base)
    encoder, width, max_length = body(recipe, base, ports)
    model = PooledClassifier(encoder, width, 1, pooling, independent=True).to(device())
    typed, targets = takes_types(recipe, base), np.rint(relevance / relevance.max() * 1e6).astype(int).tolist()
    pairs = zip(encode_pairs(base, queries, documents, max_length), targets, strict=True)
    rows = [Row(ids, target, types if typed else ()) for (ids, types), target in pairs]
    training, report = [rows[r] for r in split.training], [rows[r] for r in split.report]
    held = relevance[list(split.report)]
    ports.progress.report("prepare", 0, 1, {})
    with timings.measure("embed"):
        alone = []
        for column in (queries, documents):
            wanted = [column[r] for r in split.report]
            encoded = encode_labelled(base.tokenizer, wanted, [0] * len(wanted), max_length)
            vectors = embeddings(model, encoded, base.tokens.pad, ports.lease)
            alone.append(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))
        seen, together = (
            pair_passes(model, part, base.tokens.pad, ports.lease, embed=True) for part in (training, report)
        )
    with timings.measure("probe"):
        flags = (relevance[list(split.training)] > 0).astype(np.int64)[:, None]
        probe = fit_probes(seen, flags, recipe.seed)
    orders = {"cosine": (alone[0] * alone[1]).sum(axis=1), "probe": probe.logits(together)[:, 0]}
    figures = {kind: ranking_figures(scores, held, groups) for kind, scores in orders.items()}
    kind = max(figures, key=lambda name: float(figures[name]["mrr"].mean()))
    ports.progress.report("prepare", 1, 1, {})
    equip(model, recipe, probe)

    def look() -> Look:
        found = pair_passes(model, [rows[r] for r in split.validation], base.tokens.pad, ports.lease, embed=False)[:, 0]
        graded = ranking_figures(found, relevance[list(split.validation)], _groups(queries, split.validation))
        return Look("mrr", float(graded["mrr"].mean()))

    train(model, recipe, base, training, collate_pairs, ports, timings, look)
    ports.progress.report("evaluate", 0, 1, {})
    with timings.measure("predict"):
        scores = pair_passes(model, report, base.tokens.pad, ports.lease, embed=False)[:, 0]
    after = ranking_figures(scores, held, groups)
    evaluation = evaluate_queries(figures[kind], after, base_kind=kind, rows=len(report), seed=recipe.seed)
    ports.progress.report("evaluate", 1, 1, {"mrr": f"{evaluation.scores['mrr'].tuned:f}"})
    found = {"rows": np.array(split.report), "truth": held, "base": orders[kind], "tuned": scores}
    return TrainingResult(recipe, base, model, evaluation, found, max_length, None, pooling, timings)


def _groups(queries: Sequence[str], rows: Sequence[int]) -> list[list[int]]:
    """Places in ``rows`` by query."""
    found: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        found.setdefault(queries[row], []).append(place)
    return list(found.values())


def _check(queries: Sequence[str], documents: Sequence[str], relevance: np.ndarray) -> None:
    if not all(queries) or not all(documents):
        raise Misuse("data.blank", "Some rows have an empty query or document; drop these rows.")
    if (relevance > 0).all() or not (relevance > 0).any():
        raise Misuse("data.relevance", "All rows are relevant, or none is; ranking needs both kinds.")
    answered = {query for query, grade in zip(queries, relevance, strict=True) if grade > 0}
    if len(answered) < len(set(queries)):
        raise Misuse("data.relevance", "Some queries have no relevant document; add one or drop these queries.")
