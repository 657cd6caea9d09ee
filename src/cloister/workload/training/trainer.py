"""transformers' Trainer with its pickled checkpoints replaced by sealed state, and every outside contact cut.

The loop, the optimizer, clipping, accumulation and scheduling are the Trainer's own. What is replaced: the data order
(a pure function of seed and epoch), saving and loading of state (``state``, kept beside the training by
``background``), logging (to a ``Progress`` port), and a lease that is asked before every step. The names beginning with
an underscore are transformers' own hooks at the version pinned in pyproject; a test fails if an update renames one.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from decimal import Decimal
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from typing_extensions import override

from ...contracts.recipe import Recipe
from .background import CheckpointWriter
from .batching import EpochSampler, Row, Rows, row_digest
from .ports import CheckpointSink, Lease, Progress
from .precision import autocast
from .state import (
    SavedState,
    capture,
    read_state,
    restore_generators,
    restore_optimizer,
    restore_weights,
    trainable_weights,
)

__all__ = ["SealedTrainer", "quantized", "total_steps"]

_PLACES = Decimal("0.000001")
_LOG_STEPS = 10
_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
# The Trainer passes this on as the place of a checkpoint. It is never opened: every reader of it is overridden here.
_SEALED = "sealed checkpoint, not a path"


def quantized(value: float) -> str:
    """A measurement as decimal text with six places; not-a-number stays visible as such."""
    return f"{Decimal(repr(value)).quantize(_PLACES):f}" if math.isfinite(value) else "nan"


def total_steps(recipe: Recipe, rows: int) -> int:
    """Optimizer steps of the whole run. ``max_steps`` shortens it and never lengthens it past the epochs."""
    steps = recipe.epochs * math.ceil(rows / _step_rows(recipe))
    return steps if recipe.max_steps is None else min(steps, recipe.max_steps)


def _step_rows(recipe: Recipe) -> int:
    """Rows of one step. The order is drawn in steps, so it is the same however a step is cut into batches."""
    return recipe.batch_size * recipe.gradient_accumulation


class _BetweenSteps(TrainerCallback):  # type: ignore[misc]  # the library has no types
    """Before each step: is the lease alive, and did the checkpoint that is being written fail?"""

    def __init__(self, lease: Lease, writer: CheckpointWriter) -> None:
        self._lease, self._writer = lease, writer

    @override
    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._lease.check()
        self._writer.check()


class _AfterFirstStep(TrainerCallback):  # type: ignore[misc]
    """The optimizer's state exists once it made a step: from then on it is known how much memory a checkpoint takes."""

    def __init__(self, prepare: Callable[[], None]) -> None:
        self._prepare: Callable[[], None] | None = prepare

    @override
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        prepare, self._prepare = self._prepare, None
        if prepare is not None:
            prepare()


class SealedTrainer(Trainer):  # type: ignore[misc]
    """Trains ``model`` on ``rows``. ``identity`` names recipe and base: a checkpoint with another one is refused."""

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        rows: Sequence[Row],
        collate: Callable[[Sequence[Row]], Mapping[str, torch.Tensor]],
        *,
        identity: Mapping[str, str],
        bf16: bool,
        sink: CheckpointSink,
        progress: Progress,
        lease: Lease,
    ) -> None:
        self._total = total_steps(recipe, len(rows))
        self._sink, self._progress, self._bf16 = sink, progress, bf16
        self._writer = CheckpointWriter(sink, lease)
        self._identity = {**identity, "rows": row_digest(rows)}
        self._sampler = EpochSampler([len(row.ids) for row in rows], _step_rows(recipe), recipe.seed)
        self._weights = trainable_weights(model)  # found once: walking over the modules takes as long as copying a LoRA
        self._restored: SavedState | None = None
        super().__init__(
            model=model, args=_arguments(recipe, self._total), train_dataset=Rows(rows), data_collator=partial(collate),
            callbacks=[_BetweenSteps(lease, self._writer)],
        )  # fmt: skip
        if recipe.checkpoint_steps > 0:
            self.add_callback(_AfterFirstStep(self._prepare_checkpoints))
        self.remove_callback(
            PrinterCallback
        )  # what is printed could leave the sandbox; figures go through the port only

    def train_sealed(self) -> int:
        """Train, or go on from the sink's newest checkpoint. Returns the step where it went on, or 0.

        The last checkpoint is kept when this returns. Raises what went wrong in training or with any checkpoint.
        """
        step = self._resume()
        with self._writer:
            self.train()
        return step

    def _resume(self) -> int:
        found = self._sink.latest()
        if found is None:
            return 0
        step, files = found
        with closing(files):
            self._restored = read_state(step, files, self._identity)
            restore_weights(self.model, files, self._restored)
        return step

    def _state(self) -> tuple[dict[str, Mapping[str, torch.Tensor]], dict[str, Any]]:
        step = self.state.global_step
        return capture(self._weights, self.optimizer, self.lr_scheduler, step=step, identity=self._identity)

    def _prepare_checkpoints(self) -> None:
        parts, _ = self._state()
        self._writer.prepare(parts)

    # Hooks of the Trainer, in the order in which they are called.

    @override
    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        return self._sampler

    @override
    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        if self._restored is not None:
            kwargs["resume_from_checkpoint"] = _SEALED
        return super()._inner_training_loop(*args, **kwargs)

    @override
    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: Any,
        trial: Any,
    ) -> tuple[int, int]:
        super()._init_training_state(max_steps, num_update_steps_per_epoch, num_train_epochs, None, trial)
        if self._restored is None:
            return 0, 0
        self.state.global_step = self._restored.header["step"]
        epochs, steps = divmod(self.state.global_step, num_update_steps_per_epoch)
        return epochs, steps * self.args.gradient_accumulation_steps

    @override
    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        if self._restored is not None:
            restore_optimizer(self.optimizer, self.lr_scheduler, self._restored)
            self._restored = replace(self._restored, optimizer={})  # the optimizer has them now

    @override
    def _load_scaler(self, checkpoint: Any) -> None:
        """Nothing to load: bfloat16 needs no loss scaling, and float16 is not offered."""

    @override
    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        self._sampler.set_epoch(kwargs["epoch"])
        super()._run_epoch(*args, **kwargs)

    @override
    def _load_rng_state(self, checkpoint: Any) -> None:
        if self._restored is not None:
            restore_generators(self._restored)

    @override
    def compute_loss_context_manager(self) -> AbstractContextManager[Any]:
        return autocast(self.args.device, self._bf16)

    @override
    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: it would walk over all parameters at every step."""
        return 0

    @override
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        names = {"loss": "loss", "learning_rate": "learning_rate", "grad_norm": "gradient_norm"}
        values = {name: quantized(float(logs[key])) for key, name in names.items() if key in logs}
        if values:
            self._progress.report("train", self.state.global_step, self._total, values)

    @override
    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        parts, header = self._state()
        self._writer.save(self.state.global_step, parts, header)

    @override
    def _save(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("plaintext weights are never written to a path")


def _arguments(recipe: Recipe, total: int) -> TrainingArguments:
    saves = recipe.checkpoint_steps > 0
    return TrainingArguments(
        # The Trainer wants a folder that exists; nothing is written to it.
        output_dir=tempfile.gettempdir(),
        max_steps=total,
        per_device_train_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation,
        learning_rate=float(recipe.learning_rate),
        weight_decay=float(recipe.weight_decay),
        warmup_steps=math.ceil(total * float(recipe.warmup_ratio)),
        lr_scheduler_type=_SCHEDULES[recipe.schedule],
        max_grad_norm=float(recipe.max_gradient_norm),
        seed=recipe.seed,
        save_strategy="steps" if saves else "no",
        save_steps=max(1, recipe.checkpoint_steps),
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
