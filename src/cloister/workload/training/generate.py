"""Generation and plain text: the base's loss on the validation rows → training → the tuned model's loss on the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...contracts.recipe import Recipe
from ..data import Split, Table, split_rows
from ..evaluation import evaluate_generation
from .adapters import add_adapter, virtual_tokens
from .base_model import BaseModel
from .batching import Row, collate_causal
from .predict import completion_losses
from .run import Ports, Timings, TrainingResult, device, train
from .tokenize import encode_completions, encode_documents

__all__ = ["run_generation"]


def run_generation(recipe: Recipe, base: BaseModel, table: Table, ports: Ports, split: Split | None) -> TrainingResult:
    """See ``engine.run_training``."""
    timings = Timings()
    texts = _texts(recipe, table)
    split = split or split_rows(texts.wholes, None, recipe.validation, recipe.seed)
    scratch = recipe.method == "scratch"
    model: Any = (base.fresh_causal_lm(recipe.seed) if scratch else base.causal_lm()).to(device())
    max_length = base.max_length(recipe.max_length, model, taken=virtual_tokens(recipe))

    def encoded(places: tuple[int, ...], ended: bool) -> list[Row]:
        return texts.encode(base, places, max_length, ended)

    # Evaluated without the end token: learning only where to stop must not look like learning the text.
    training, validation = encoded(split.training, True), encoded(split.validation, False)
    ports.progress.report("prepare", 0, 1, {})
    with timings.measure("predict"):
        before = completion_losses(model, validation, base.tokens.pad, ports.lease)
    ports.progress.report("prepare", 1, 1, {})
    torch.manual_seed(recipe.seed)
    model = add_adapter(model, recipe, causal=True)
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
        base_kind="random" if scratch else "untuned",
    )
    ports.progress.report("evaluate", 1, 1, {"bits_per_byte": f"{evaluation.scores['bits_per_byte'].tuned:f}"})
    found = {
        "rows": np.array(split.validation) if recipe.task == "generation" else np.arange(len(validation)),
        "base_nats": before.nats,
        "tuned_nats": after.nats,
        "tokens": after.tokens,
    }
    return TrainingResult(recipe, base, model, evaluation, found, max_length, None, None, timings)


@dataclass(frozen=True)
class _Texts:
    """``written``: the completions, or whole ``documents``."""

    written: list[str]
    prompts: list[str] | None
    documents: bool

    @property
    def wholes(self) -> list[str]:
        """What tells rows apart is all they say: one instruction may stand before every completion."""
        if self.prompts is None:
            return self.written
        return [f"{p}\0{c}" for p, c in zip(self.prompts, self.written, strict=True)]

    def encode(self, base: BaseModel, places: tuple[int, ...], max_length: int, ended: bool) -> list[Row]:
        wanted = [self.written[p] for p in places]
        if self.documents:
            return encode_documents(base.tokenizer, base.tokens, wanted, max_length, ended=ended)
        given = None if self.prompts is None else [self.prompts[p] for p in places]
        return encode_completions(base.tokenizer, base.tokens, given, wanted, max_length, ended=ended)


def _texts(recipe: Recipe, table: Table) -> _Texts:
    if recipe.task == "text":
        return _Texts(table.column(recipe.columns["text"]), None, documents=True)
    prompt = recipe.columns.get("prompt")
    prompts = None if prompt is None else table.column(prompt)
    return _Texts(table.column(recipe.columns["completion"]), prompts, documents=False)


def _text_bytes(base: BaseModel, rows: list[Row]) -> NDArray[np.int64]:
    """UTF-8 bytes of what each row's completion tokens stand for: where a completion was cut, of its kept part."""
    kept = [list(row.ids[max(row.target, 1) :]) for row in rows]
    texts = base.tokenizer.decode_batch(kept, skip_special_tokens=True)
    return np.array([max(1, len(text.encode())) for text in texts], dtype=np.int64)
