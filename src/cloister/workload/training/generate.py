"""Generation: the base's loss on the validation completions → training → the tuned model's loss on the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...contracts.recipe import Recipe
from ..data import Split, Table, split_rows
from ..evaluation import evaluate_generation
from .adapters import add_lora
from .base_model import BaseModel
from .batching import Row, collate_causal
from .predict import completion_losses
from .run import Ports, Timings, TrainingResult, device, train
from .tokenize import encode_completions

__all__ = ["run_generation"]


def run_generation(recipe: Recipe, base: BaseModel, table: Table, ports: Ports, split: Split | None) -> TrainingResult:
    """See ``engine.run_training``."""
    timings = Timings()
    completions = table.column(recipe.columns.target)
    prompts = None if recipe.columns.input is None else table.column(recipe.columns.input)
    # Rows are told apart by all they say: one instruction may stand before every completion.
    wholes = completions if prompts is None else [f"{p}\0{c}" for p, c in zip(prompts, completions, strict=True)]
    split = split or split_rows(wholes, None, recipe.validation, recipe.seed)
    model: Any = base.causal_lm().to(device())
    max_length = base.max_length(recipe.max_length, model)

    def encoded(places: tuple[int, ...], ended: bool) -> list[Row]:
        given = None if prompts is None else [prompts[p] for p in places]
        wanted = [completions[p] for p in places]
        return encode_completions(base.tokenizer, base.tokens, given, wanted, max_length, ended=ended)

    # Evaluated without the end token: learning only where to stop must not look like learning the text.
    training, validation = encoded(split.training, True), encoded(split.validation, False)
    ports.progress.report("prepare", 0, 1, {})
    with timings.measure("predict"):
        before = completion_losses(model, validation, base.tokens.pad, ports.lease)
    ports.progress.report("prepare", 1, 1, {})
    torch.manual_seed(recipe.seed)
    if recipe.lora is not None:
        model = add_lora(model, recipe.lora, causal=True)
    train(model, recipe, base, training, collate_causal, ports, timings)
    ports.progress.report("evaluate", 0, 1, {})
    with timings.measure("predict"):
        after = completion_losses(model, validation, base.tokens.pad, ports.lease)
    evaluation = evaluate_generation(
        before.nats.astype(np.float64),
        after.nats.astype(np.float64),
        after.tokens,
        _text_bytes(base, validation),
        recipe.seed,
    )
    ports.progress.report("evaluate", 1, 1, {"bits_per_byte": f"{evaluation.scores['bits_per_byte'].tuned:f}"})
    found = {
        "rows": np.array(split.validation),
        "base_nats": before.nats,
        "tuned_nats": after.nats,
        "tokens": after.tokens,
    }
    return TrainingResult(recipe, base, model, evaluation, found, max_length, None, None, timings)


def _text_bytes(base: BaseModel, rows: list[Row]) -> NDArray[np.int64]:
    """UTF-8 bytes of what each row's completion tokens stand for: where a completion was cut, of its kept part."""
    kept = [list(row.ids[max(row.target, 1) :]) for row in rows]
    texts = base.tokenizer.decode_batch(kept, skip_special_tokens=True)
    return np.array([max(1, len(text.encode())) for text in texts], dtype=np.int64)
