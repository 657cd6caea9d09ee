"""From the recipe to steps: how many there are, which rows are in each, and what transformers' Trainer is told."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence

import torch
from transformers import TrainingArguments

from ...contracts.recipe import Recipe
from .batching import EpochSampler
from .forgetting import MixedSampler

__all__ = ["epoch_steps", "sampler", "step_order", "step_rows", "total_steps", "training_arguments"]

_LOG_STEPS = 10
_OPTIMIZERS = {"adamw": "adamw_torch_fused", "adamw_8bit": "adamw_8bit", "adafactor": "adafactor"}
_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


def total_steps(recipe: Recipe, rows: int) -> int:
    """Optimizer steps of the whole run. ``max_steps`` shortens it and never lengthens it past the epochs."""
    steps = recipe.epochs * epoch_steps(recipe, rows)
    return steps if recipe.max_steps is None else min(steps, recipe.max_steps)


def epoch_steps(recipe: Recipe, rows: int) -> int:
    return math.ceil(rows / (step_rows(recipe) - _replayed_rows(recipe)))


def step_rows(recipe: Recipe) -> int:
    """Rows of one step. The order is drawn in steps, so it is the same however a step is cut into batches."""
    return recipe.batch_size * recipe.gradient_accumulation


def _replayed_rows(recipe: Recipe) -> int:
    """Those of them that are general text."""
    return 0 if recipe.replay is None else recipe.replay.rows(step_rows(recipe))


def sampler(recipe: Recipe, own: int, lengths: Sequence[int]) -> EpochSampler | MixedSampler:
    """``own``: how many rows are the data's; those behind them are general text."""
    step, replayed = step_rows(recipe), _replayed_rows(recipe)
    if not replayed:
        return EpochSampler(lengths, step, recipe.seed)
    return MixedSampler(lengths[:own], lengths[own:], step, replayed, recipe.seed)


def step_order(recipe: Recipe, own: int, lengths: Sequence[int], steps: int) -> Iterator[list[int]]:
    """The rows of each of the first ``steps`` steps, as ``sampler`` gives them."""
    rows, size = sampler(recipe, own, lengths), step_rows(recipe)
    for epoch in range(recipe.epochs):
        rows.set_epoch(epoch)
        order = list(rows)
        for start in range(0, len(order), size):
            if steps == 0:
                return
            steps -= 1
            yield order[start : start + size]


def training_arguments(recipe: Recipe, total: int) -> TrainingArguments:
    return TrainingArguments(
        # The Trainer wants a folder that exists; nothing is written to it.
        output_dir=tempfile.gettempdir(),
        max_steps=total,
        per_device_train_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation,
        learning_rate=float(recipe.learning_rate),
        weight_decay=float(recipe.weight_decay),
        optim=_OPTIMIZERS[recipe.optimizer],
        warmup_steps=math.ceil(total * float(recipe.warmup_ratio)),
        lr_scheduler_type=_SCHEDULES[recipe.schedule],
        max_grad_norm=float(recipe.max_gradient_norm),
        seed=recipe.seed,
        save_strategy="no",  # when, ``Saves`` says
        logging_nan_inf_filter=False,  # it would hide what ``_get_grad_norm`` looks for
        logging_strategy="steps",
        logging_steps=_LOG_STEPS,
        logging_first_step=True,
        report_to=[],
        disable_tqdm=True,
        push_to_hub=False,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
    )
