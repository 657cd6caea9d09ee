"""Tasks that learn to write text: the base's loss on the rows of the report → training → the tuned model's on the same.

``run_causal`` is the whole run. ``Examples`` are what a task gives it: how texts become rows, and which tokens of them
are learned. Here are those of generation and plain text; ``chat`` has its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from ...contracts.recipe import Recipe
from ..data import Split, Table, split_rows
from ..evaluation import Evaluation, evaluate_generation
from .adapters import add_adapter, virtual_tokens
from .base_model import BaseModel
from .batching import Row, text_collate
from .looks import Look
from .predict import completion_losses
from .privacy import numbered, split_units, users
from .run import Ports, Timings, TrainingResult, device, train
from .tokenize import encode_answers, encode_completions, encode_documents, text_bytes

__all__ = ["Examples", "causal_model", "equipped", "run_causal", "run_generation"]


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
    return run_causal(recipe, base, _texts(recipe, base, table), ports, split, users(recipe, table))


def run_causal(
    recipe: Recipe,
    base: BaseModel,
    examples: Examples,
    ports: Ports,
    split: Split | None,
    named: Sequence[str] | None = None,
) -> TrainingResult:
    """``named``: whose each row is, where a private run hides users."""
    timings = Timings()
    private = recipe.privacy is not None
    if split is None and private:
        split = split_units(examples.wholes, named, recipe.validation, recipe.seed)
    split = split or split_rows(examples.wholes, None, recipe.validation, recipe.seed, recipe.test)
    model, max_length = causal_model(recipe, base, ports)
    training, units = _training_rows(recipe, examples, split, max_length, named)
    # Evaluated without the end token: learning only where to stop must not look like learning the text.
    report, places = examples.encode(split.report, max_length, ended=False)
    seen = examples.encode(split.validation, max_length, ended=False)[0] if split.test else report
    ports.progress.report("prepare", 0, 1, {})
    with timings.measure("predict"):
        before = completion_losses(model, report, base.tokens.pad, ports.lease)
    ports.progress.report("prepare", 1, 1, {})
    model = equipped(model, recipe, ports)

    def look() -> Look:
        losses = completion_losses(model, seen, base.tokens.pad, ports.lease)
        return Look("loss", float(losses.nats.sum(dtype=np.float64) / losses.tokens.sum()), lower=True)

    train(model, recipe, base, training, text_collate(model), ports, timings, look, units)
    ports.progress.report("evaluate", 0, 1, {})
    with timings.measure("predict"):
        after = completion_losses(model, report, base.tokens.pad, ports.lease)
    evaluation = evaluate_generation(
        before.nats.astype(np.float64),
        after.nats.astype(np.float64),
        after.tokens,
        text_bytes(base, report),
        recipe.seed,
        base_kind="random" if recipe.method == "scratch" else "untuned",
    )
    ports.progress.report("evaluate", 1, 1, {"bits_per_byte": f"{evaluation.scores['bits_per_byte'].tuned:f}"})
    # How many rows were left out tells exactly of those that were trained on, too.
    told = {name: fact for name, fact in examples.facts.items() if not private or name != "rows_left_out"}
    evaluation = Evaluation(evaluation.scores, {**evaluation.facts, **told})
    found = {
        "rows": np.array(places),
        "base_nats": before.nats,
        "tuned_nats": after.nats,
        "tokens": after.tokens,
    }
    return TrainingResult(
        recipe, base, model, evaluation, found, max_length, None, None, timings, further=examples.files
    )


def _training_rows(
    recipe: Recipe, examples: Examples, split: Split, max_length: int, named: Sequence[str] | None
) -> tuple[list[Row], Sequence[int] | None]:
    """The rows and, for a private run, each one's unit: all pieces of a document are of one."""
    if recipe.privacy is None:
        return examples.encode(split.training, max_length, ended=True)[0], None
    if recipe.task != "text":
        rows, places = examples.encode(split.training, max_length, ended=True)
        return rows, numbered(places, named)
    pieces = [(row, p) for p in split.training for row in examples.encode([p], max_length, ended=True)[0]]
    return [row for row, _ in pieces], numbered([place for _, place in pieces], named)


def causal_model(recipe: Recipe, base: BaseModel, ports: Ports) -> tuple[Any, int]:
    """The untuned language model on its device, and how many tokens a row may have. Its loss on general text is
    remembered."""
    if base.is_encoder_decoder:
        model: Any = base.encoder_decoder(recipe.seed if recipe.method == "scratch" else None)
    elif recipe.method == "scratch":
        model = base.fresh_causal_lm(recipe.seed)
    else:
        model = base.causal_lm(four_bits=recipe.method == "qlora")
    model = model.to(device())
    max_length = base.max_length(recipe.max_length, model, taken=virtual_tokens(recipe))
    ports.general.before_language(model, max_length)
    return model, max_length


def equipped(model: Any, recipe: Recipe, ports: Ports) -> Any:
    """With its adapter, and what holds it near the base, as training begins."""
    torch.manual_seed(recipe.seed)
    model = add_adapter(model, recipe, causal=True)
    ports.general.hold(model)
    return model


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
        if self.base.is_encoder_decoder and given is not None:
            return encode_answers(self.base, given, wanted, max_length, ended=ended), list(places)
        return encode_completions(tokenizer, tokens, given, wanted, max_length, ended=ended), list(places)


def _texts(recipe: Recipe, base: BaseModel, table: Table) -> _Texts:
    if recipe.task == "text":
        return _Texts(base, table.column(recipe.columns["text"]), None, True, {}, {})
    prompt = recipe.columns.get("prompt")
    prompts = None if prompt is None else table.column(prompt)
    return _Texts(base, table.column(recipe.columns["completion"]), prompts, False, {}, {})
