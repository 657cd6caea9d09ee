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
from .heads import Pooling
from .ports import CheckpointSink, Lease, Progress
from .precision import training_precision, use_bf16
from .trainer import SealedTrainer, total_steps

__all__ = ["Ports", "Timings", "TrainingResult", "device", "train"]


@dataclass
class Timings:
    """Seconds by part: embed, probe, train (the loop alone), predict. ``tokens``: of all epochs together."""

    seconds: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    tokens: int = 0
    resumed_from: int = 0

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


@dataclass(frozen=True)
class TrainingResult:
    """The tuned ``model`` with what export and card need. ``labels`` and ``pooling`` are None for generation.

    ``answers``, one entry a validation row: ``rows`` (its number), and ``truth``, ``base``, ``tuned`` (label numbers),
    or ``base_nats``, ``tuned_nats``, ``tokens`` for generation. They stay inside; ``evaluation`` is what may leave.
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
) -> None:
    """The loop itself, over ``rows``; ``model`` is trained in place and left in evaluation mode."""
    timings.steps = total_steps(recipe, len(rows))
    timings.tokens = recipe.epochs * sum(len(row.ids) + sum(map(len, row.others)) for row in rows)
    bf16 = use_bf16(recipe.precision)
    trainer = SealedTrainer(
        model,
        recipe,
        rows,
        partial(collate, pad=base.tokens.pad),
        identity={"recipe": recipe.digest.hex(), "base": sha256(canonical_json(_shape(base))).hex()},
        bf16=bf16,
        sink=ports.sink,
        progress=ports.progress,
        lease=ports.lease,
    )
    with timings.measure("train"), training_precision(model, bf16):
        timings.resumed_from = trainer.train_sealed()
    model.eval()


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _shape(base: BaseModel) -> dict[str, Any]:
    # The base itself is bound to the job by its digest, and the job to the checkpoint's key. This catches a mix-up.
    return {"config": sha256(repr(sorted(base.config.items())).encode()).hex()}
