"""Embeddings that lie close where texts belong together: the frozen base's vectors → in-batch negatives → the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...contracts.recipe import Recipe
from ...errors import Misuse
from ..data import Split, Table, joined_groups, split_rows
from ..evaluation import evaluate_queries, pool_figures
from .base_model import BaseModel
from .batching import Row, collate_matches
from .encoders import body, equip
from .heads import PooledEncoder, Pooling, choose_pooling
from .looks import Look
from .predict import embeddings
from .run import Ports, Timings, TrainingResult, device, train
from .tokenize import encode_labelled

__all__ = ["run_embedding"]


def run_embedding(recipe: Recipe, base: BaseModel, table: Table, ports: Ports, split: Split | None) -> TrainingResult:
    """See ``engine.run_training``."""
    timings = Timings()
    roles = [role for role in ("query", "positive", "negative") if recipe.columns.get(role)]
    texts = [table.column(recipe.columns[role]) for role in roles]
    if not all(map(all, texts)):
        raise Misuse("data.blank", "Some rows have an empty text; drop these rows.")
    if len(texts) == 3 and any(good == bad for good, bad in zip(texts[1], texts[2], strict=True)):
        raise Misuse("data.pairs", "Some rows have the same text as positive and negative; drop these rows.")
    # Rows that share a query or a positive would tell across the border what belongs together.
    split = split or split_rows(joined_groups(texts[0], texts[1]), None, recipe.validation, recipe.seed, recipe.test)
    pooling = Pooling(choose_pooling(recipe.pooling, base).mode, True)
    encoder, _, max_length = body(recipe, base, ports)
    model = PooledEncoder(encoder, pooling).to(device())
    columns = [encode_labelled(base.tokenizer, column, [0] * len(column), max_length) for column in texts]
    training = [Row(columns[0][r].ids, 0, (), tuple(c[r].ids for c in columns[1:])) for r in split.training]
    queries, pool, right = _pool(texts, split.report)

    def vectors(wanted: list[tuple[int, int]]) -> np.ndarray:
        return embeddings(model, [columns[c][r] for c, r in wanted], base.tokens.pad, ports.lease)

    ports.progress.report("prepare", 0, 1, {})
    with timings.measure("embed"):
        before = pool_figures(vectors(queries), vectors(pool), right)
    ports.progress.report("prepare", 1, 1, {})
    equip(model, recipe)

    def look() -> Look:
        asked, among, wanted = _pool(texts, split.validation)
        return Look("mrr", float(pool_figures(vectors(asked), vectors(among), wanted)["mrr"].mean()))

    train(model, recipe, base, training, collate_matches, ports, timings, look)
    ports.progress.report("evaluate", 0, 1, {})
    with timings.measure("predict"):
        after = pool_figures(vectors(queries), vectors(pool), right)
    evaluation = evaluate_queries(before, after, base_kind="frozen", rows=len(split.report), seed=recipe.seed)
    ports.progress.report("evaluate", 1, 1, {"mrr": f"{evaluation.scores['mrr'].tuned:f}"})
    found = {"rows": np.array([r for _, r in queries]), "base": before["mrr"], "tuned": after["mrr"]}
    return TrainingResult(recipe, base, model, evaluation, found, max_length, None, pooling, timings)


def _pool(
    texts: Sequence[Sequence[str]], rows: Sequence[int]
) -> tuple[list[tuple[int, int]], list[tuple[int, int]], list[list[int]]]:
    """Distinct queries, distinct other texts (each as column and row), and which of these are right for each query."""
    queries: dict[str, tuple[int, int]] = {}
    pool: dict[str, tuple[int, int]] = {}
    for row in rows:
        queries.setdefault(texts[0][row], (0, row))
        for column in range(1, len(texts)):
            pool.setdefault(texts[column][row], (column, row))
    place = {text: at for at, text in enumerate(pool)}
    right: dict[str, set[int]] = {text: set() for text in queries}
    for row in rows:
        right[texts[0][row]].add(place[texts[1][row]])
    if len(pool) < 2:
        raise Misuse("data.few", "The validation rows hold a single text to find; give more rows.")
    return list(queries.values()), list(pool.values()), [sorted(right[text]) for text in queries]
