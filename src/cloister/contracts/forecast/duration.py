"""How long a run takes: the products that its tokens cost, over what a machine multiplies. A range, not a figure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..recipe import Recipe
from .rows import Rows
from .shape import Shape

__all__ = ["Duration", "Machine", "forecast_duration"]

# Floating point operations a second that training really gets, (least, most): of one core in float32 and, where it
# multiplies bfloat16, in that; of one GPU. Measured for cores on small models; of GPUs a third to a half of the peak
# is usual, from a consumer's card to a data centre's.
_CORE = (8e9, 60e9)
_CORE_BF16 = (12e9, 200e9)
_GPU = (2e13, 4e14)
_PADDING = 1.15  # with rows of like length beside each other
_FIXED = 20.0  # seconds: start, reading, evaluation of what is small
_GENERAL = 256 * 128  # tokens of general text, measured before and after


@dataclass(frozen=True)
class Machine:
    """``memory`` in bytes, None if unknown. ``flops``: measured operations a second, or None for the usual range.
    ``bf16``: whether it multiplies bfloat16 fast."""

    memory: int | None = None
    cores: int = 2
    gpu: bool = False
    bf16: bool = False
    flops: float | None = None

    def range(self, *, bf16: bool) -> tuple[float, float]:
        if self.flops is not None:
            return self.flops * 0.7, self.flops * 1.3
        if self.gpu:
            return _GPU
        low, high = _CORE_BF16 if bf16 and self.bf16 else _CORE
        return low * self.cores, high * self.cores


@dataclass(frozen=True)
class Duration:
    """``tokens`` that are learned from, in ``steps``; ``flops``: operations of the whole run; ``seconds`` from least to
    most."""

    tokens: int
    steps: int
    flops: float
    seconds: tuple[float, float]


def forecast_duration(
    recipe: Recipe, shape: Shape, rows: Rows, machine: Machine, *, bf16: bool, packed: bool
) -> Duration:
    learning = max(1, round(rows.count * (1 - float(recipe.validation))))
    step_rows = recipe.batch_size * recipe.gradient_accumulation
    own = step_rows - (0 if recipe.replay is None else recipe.replay.rows(step_rows))
    steps = recipe.epochs * math.ceil(learning / max(1, own))
    if recipe.max_steps is not None:
        steps = min(steps, recipe.max_steps)
    texts = {"preference": 2, "embedding": 2}.get(recipe.task, 1)
    tokens = round(min(steps * step_rows, recipe.epochs * learning * step_rows / max(1, own)) * rows.mean * texts)
    padded = tokens * (1.0 if packed else _PADDING)
    passes = 3.0 if recipe.form == "weights" else 2.0  # forward, by what is behind, and by the weights
    passes += 1.0 if recipe.gradient_checkpointing else 0.0
    looks = rows.count * float(recipe.validation) * rows.mean * texts * 2 + 2 * _GENERAL
    if recipe.search is not None:
        padded += padded * recipe.search.trials * recipe.search.epochs / recipe.epochs
    flops = _forward(shape, rows.mean, recipe) * (padded * passes + looks)
    low, high = machine.range(bf16=bf16)
    together = recipe.processes if machine.gpu else 1  # on one machine's cores, processes share what there is
    return Duration(tokens, steps, flops, (flops / high / together + _FIXED, flops / low / together + _FIXED * 3))


def _forward(shape: Shape, length: float, recipe: Recipe) -> float:
    """Operations for one token: two for each weight it meets, and the products of attention over half the row."""
    head = shape.vocabulary * shape.width if recipe.task in ("generation", "text", "chat", "preference") else 0
    return 2.0 * (shape.linear + head) + 2.0 * shape.layers * shape.queries * length
