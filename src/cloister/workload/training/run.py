"""What one run carries with it, and the training loop that both tasks share."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from ...contracts.recipe import Recipe
from ...crypto import canonical_json, sha256
from ..evaluation import Evaluation
from .base_model import BaseModel
from .batching import Row
from .distributed import train_together
from .fast import fast_steps, fuses, packs
from .forgetting import GeneralText
from .heads import Pooling
from .looks import Look, wants_looks
from .packing import collate_line
from .ports import CheckpointSink, Lease, Progress
from .precision import training_precision, use_bf16
from .privacy import PrivateTrainer, privacy_facts
from .recompute import recomputed
from .search import choose_settings, chosen_identity
from .state import trainable_weights
from .steps import epoch_steps, step_order, total_steps
from .trainer import SealedTrainer

__all__ = ["Ports", "Timings", "TrainingResult", "device", "train"]


@dataclass
class Timings:
    """Seconds by part: embed, probe, train (the loop with its looks), predict. ``steps``, ``tokens``: of the whole
    training, those before a resume included. ``lengths``: of its rows, in tokens. ``training``: what the evaluation
    tells of it, see ``SealedTrainer.facts``."""

    seconds: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    tokens: int = 0
    resumed_from: int = 0
    lengths: Sequence[int] = ()
    training: Mapping[str, str | int] = field(default_factory=dict)

    @contextmanager
    def measure(self, part: str) -> Any:
        start = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start

    @property
    def train_seconds(self) -> float:
        return self.seconds.get("train", 0.0)


@dataclass(frozen=True)
class Ports:
    sink: CheckpointSink
    progress: Progress
    lease: Lease
    general: GeneralText


@dataclass(frozen=True)
class TrainingResult:
    """The tuned ``model`` with what export and card need. ``labels`` and ``pooling`` are None for generation.

    ``answers``, one entry a row of the report (``data.Split``): ``rows`` (its number), and ``truth``, ``base``,
    ``tuned`` (label numbers), or ``base_nats``, ``tuned_nats``, ``tokens`` for generation. They stay inside;
    ``evaluation`` is what may leave.
    ``further``: files of the release beside the model, by name, instead of the base's own.
    """

    recipe: Recipe
    base: BaseModel
    model: Any
    evaluation: Evaluation
    answers: Mapping[str, NDArray[Any]]
    max_length: int
    labels: tuple[str, ...] | None
    pooling: Pooling | None
    timings: Timings
    further: Mapping[str, bytes] = field(default_factory=dict)


def train(
    model: nn.Module,
    recipe: Recipe,
    base: BaseModel,
    rows: Sequence[Row],
    collate: Callable[..., Mapping[str, torch.Tensor]],
    ports: Ports,
    timings: Timings,
    look: Callable[[], Look],
    units: Sequence[int] | None = None,
) -> None:
    """The loop itself, over ``rows``; ``model`` is trained in place and left in evaluation mode.

    ``look``: one look at the validation rows. None is taken where the recipe neither chooses by them nor asks for it.
    ``units``: for a private run, the number of each row's unit.
    """
    # Private gradients are float32: rounded to bfloat16, a row's part in a sum could be longer than its bound.
    bf16 = recipe.privacy is None and use_bf16(recipe.precision)
    replayed = ports.general.replayed()
    packed, fused = packs(model, recipe, [*rows, *replayed]), fuses(model, recipe, rows)
    collate = partial(collate_line if packed else collate, pad=base.tokens.pad)
    settings: dict[str, Any] = {
        "recipe": recipe,
        "rows": rows,
        "collate": collate,
        "grouped": not packed,
        "replayed": replayed,
        "penalty": ports.general.penalty,
        "identity": {"recipe": recipe.digest.hex(), "base": sha256(canonical_json(_shape(base))).hex()},
        "bf16": bf16,
    }
    outside: Any = {
        "sink": ports.sink,
        "progress": ports.progress,
        "lease": ports.lease,
        "look": look if wants_looks(recipe) else None,
    }

    def attempt(tried: Recipe, apart: Any) -> None:
        SealedTrainer(model, **{**settings, "recipe": tried}, **apart).train_sealed()

    with timings.measure("search"), training_precision(model, bf16), recomputed(model, recipe.gradient_checkpointing):
        recipe, searched = choose_settings(recipe, trainable_weights(model), attempt, **outside)
    settings["recipe"] = recipe
    settings["identity"] = {**settings["identity"], **chosen_identity(recipe)}
    tokens = sum(len(row.ids) + sum(map(len, row.others)) for row in rows)
    all_tokens = tokens * total_steps(recipe, len(rows)) // epoch_steps(recipe, len(rows))
    batch = collate(rows[: recipe.batch_size])
    with timings.measure("train"), training_precision(model, bf16), recomputed(model, recipe.gradient_checkpointing):
        if recipe.processes > 1:
            facts: Mapping[str, str | int] = {"processes": recipe.processes, "sharding": recipe.sharding}
            timings.resumed_from, trainer = train_together(model, settings, **outside)
        elif units is not None:
            trainer = PrivateTrainer(model, **settings, **outside, units=units)
            facts = privacy_facts(recipe, units)
            timings.resumed_from = trainer.train_sealed()
        else:
            trainer = SealedTrainer(model, **settings, **outside)
            with fast_steps(model, recipe, batch, all_tokens, fused=fused, bf16=bf16) as facts:
                timings.resumed_from = trainer.train_sealed()
    timings.steps = trainer.steps
    timings.training = {**trainer.facts(), **facts, **searched, "packing": "on" if packed else "off"}
    if replayed:
        lengths = [0 if packed else len(row.ids) for row in (*rows, *replayed)]
        ports.general.count(step_order(recipe, len(rows), lengths, timings.steps), len(rows), replayed)
    if units is None:  # the exact number tells of the rows; a private run doesn't
        timings.tokens = tokens * timings.steps // epoch_steps(recipe, len(rows))
        timings.lengths = [len(row.ids) for row in rows]
    model.eval()


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _shape(base: BaseModel) -> dict[str, Any]:
    # The base itself is bound to the job by its digest, and the job to the checkpoint's key. This catches a mix-up.
    return {"config": sha256(repr(sorted(base.config.items())).encode()).hex()}
