"""Tasks that learn to write text: the base's loss on the validation rows → training → the tuned model's on the same.

``run_causal`` is the whole run. ``Examples`` are what a task gives it: how texts become rows, and which tokens of them
are learned. Here are those of generation and plain text; ``chat`` has its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ...contracts.recipe import Recipe
from ..data import Split, Table, split_rows
from ..evaluation import Evaluation, evaluate_generation
from .adapters import add_adapter, virtual_tokens
from .base_model import BaseModel
from .batching import IGNORED, Row, collate_causal
from .predict import completion_losses
from .run import Ports, Timings, TrainingResult, device, train
from .tokenize import encode_completions, encode_documents

__all__ = ["Examples", "causal_model", "run_causal", "run_generation", "text_bytes"]


class Examples(Protocol):
    @property
    def wholes(self) -> Sequence[str]:
        """All that a row says, by row: rows that are alike are never in both parts of a split."""
        ...

    def encode(self, places: Sequence[int], max_length: int, *, ended: bool) -> tuple[list[Row], list[int]]:
        """Token rows of the examples at ``places``, and the place that each comes from; ``ended``: with end tokens."""
        ...

    @property
    def facts(self) -> Mapping[str, str | int]:
        """What the evaluation tells beside its figures."""
        ...

    @property
    def files(self) -> Mapping[str, bytes]:
        """What the release holds beside the model."""
        ...


def run_generation(recipe: Recipe, base: BaseModel, table: Table, ports: Ports, split: Split | None) -> TrainingResult:
    """See ``engine.run_training``."""
    return run_causal(recipe, base, _texts(recipe, base, table), ports, split)


def run_causal(
    recipe: Recipe, base: BaseModel, examples: Examples, ports: Ports, split: Split | None
) -> TrainingResult:
    timings = Timings()
    split = split or split_rows(examples.wholes, None, recipe.validation, recipe.seed)
    model, max_length = causal_model(recipe, base)
    training, _ = examples.encode(split.training, max_length, ended=True)
    # Evaluated without the end token: learning only where to stop must not look like learning the text.
    validation, places = examples.encode(split.validation, max_length, ended=False)
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
        text_bytes(base, validation),
        recipe.seed,
        base_kind="random" if recipe.method == "scratch" else "untuned",
    )
    ports.progress.report("evaluate", 1, 1, {"bits_per_byte": f"{evaluation.scores['bits_per_byte'].tuned:f}"})
    evaluation = Evaluation(evaluation.scores, {**evaluation.facts, **examples.facts})
    found = {
        "rows": np.array(places),
        "base_nats": before.nats,
        "tuned_nats": after.nats,
        "tokens": after.tokens,
    }
    return TrainingResult(
        recipe, base, model, evaluation, found, max_length, None, None, timings, further=examples.files
    )


def causal_model(recipe: Recipe, base: BaseModel) -> tuple[Any, int]:
    """The untuned language model on its device, and how many tokens a row may have."""
    model: Any = base.fresh_causal_lm(recipe.seed) if recipe.method == "scratch" else base.causal_lm()
    model = model.to(device())
    return model, base.max_length(recipe.max_length, model, taken=virtual_tokens(recipe))


def text_bytes(base: BaseModel, rows: Sequence[Row]) -> NDArray[np.int64]:
    """UTF-8 bytes of what each row's learned tokens stand for: where a text was cut, of its kept part."""
    texts = base.tokenizer.decode_batch([_learned(row) for row in rows], skip_special_tokens=True)
    return np.array([max(1, len(text.encode())) for text in texts], dtype=np.int64)


def _learned(row: Row) -> list[int]:
    if row.marks:
        return [number for number in row.marks[1:] if number != IGNORED]
    return list(row.ids[max(row.target, 1) :])


@dataclass(frozen=True)
class _Texts:
    """``written``: the completions, or whole ``documents``."""

    base: BaseModel
    written: list[str]
    prompts: list[str] | None
    documents: bool
    facts: Mapping[str, str | int]
    files: Mapping[str, bytes]

    @property
    def wholes(self) -> list[str]:
        """What tells rows apart is all they say: one instruction may stand before every completion."""
        if self.prompts is None:
            return self.written
        return [f"{p}\0{c}" for p, c in zip(self.prompts, self.written, strict=True)]

    def encode(self, places: Sequence[int], max_length: int, *, ended: bool) -> tuple[list[Row], list[int]]:
        tokenizer, tokens = self.base.tokenizer, self.base.tokens
        wanted = [self.written[p] for p in places]
        if self.documents:
            # One document gives as many rows as it has pieces; they are numbered as pieces.
            rows = encode_documents(tokenizer, tokens, wanted, max_length, ended=ended)
            return rows, list(range(len(rows)))
        given = None if self.prompts is None else [self.prompts[p] for p in places]
        return encode_completions(tokenizer, tokens, given, wanted, max_length, ended=ended), list(places)


def _texts(recipe: Recipe, base: BaseModel, table: Table) -> _Texts:
    if recipe.task == "text":
        return _Texts(base, table.column(recipe.columns["text"]), None, True, {}, {})
    prompt = recipe.columns.get("prompt")
    prompts = None if prompt is None else table.column(prompt)
    return _Texts(base, table.column(recipe.columns["completion"]), prompts, False, {}, {})
