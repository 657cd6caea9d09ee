"""transformers' Trainer with its pickled checkpoints replaced by sealed state, and every outside contact cut.

The loop, the optimizer, clipping, accumulation and scheduling are the Trainer's own. What is replaced: the data order
(a pure function of seed and epoch), saving and loading of state (``state``, kept beside the training by
``background``), logging (to a ``Progress`` port), what is done between two steps (``watch``, ``looks``), what stops
a training (``health``) and what is tried when memory runs out (``pieces``). The names beginning with an underscore are
transformers' own hooks at the version pinned in pyproject; a test fails if an update renames one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, Trainer
from typing_extensions import override

from ...contracts.recipe import Recipe
from ...errors import CloisterError
from .background import CheckpointWriter
from .batching import EpochSampler, Row, Rows, is_encoder_decoder, row_digest
from .consolidation import Penalty
from .forgetting import MixedSampler
from .health import UNHEALTHY, is_out_of_memory, no_memory, require_finite, require_gradient, require_loss
from .looks import BEST, Look, Looks, quantized
from .pieces import ROWS, Pieces
from .ports import CheckpointSink, Lease, Progress
from .precision import autocast
from .seq2seq import answer_loss
from .state import (
    SavedState,
    capture,
    read_state,
    restore_generators,
    restore_optimizer,
    restore_weights,
    trainable_weights,
)
from .steps import epoch_steps, sampler, step_rows, total_steps, training_arguments
from .watch import AfterFirstStep, BetweenSteps, Pace, Saves

__all__ = ["SealedTrainer"]

# The Trainer passes this on as the place of a checkpoint. It is never opened: every reader of it is overridden here.
_SEALED = "sealed checkpoint, not a path"


def _with_rows(collate: Callable[[Sequence[Row]], Mapping[str, torch.Tensor]], rows: Sequence[Row]) -> dict[str, Any]:
    return {**collate(rows), ROWS: list(rows)}


class SealedTrainer(Trainer):  # type: ignore[misc]
    """Trains ``model`` on ``rows``, with general text (``replayed``) among them, held by a ``penalty``. ``identity``
    names recipe and base: a checkpoint with another one is refused. ``look``: one look at the validation rows, if any
    are to be taken. ``clock``: seconds that only grow.
    """

    current_gradient_accumulation_steps: float  # the Trainer's own

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        rows: Sequence[Row],
        collate: Callable[[Sequence[Row]], Mapping[str, torch.Tensor]],
        *,
        grouped: bool = True,
        replayed: Sequence[Row] = (),
        penalty: Penalty | None = None,
        identity: Mapping[str, str],
        bf16: bool,
        sink: CheckpointSink,
        progress: Progress,
        lease: Lease,
        look: Callable[[], Look] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total_steps(recipe, len(rows))
        own = len(rows)
        rows = [*rows, *replayed]
        self._sink, self._progress, self._bf16 = sink, progress, bf16
        self._writer = CheckpointWriter(sink, lease)
        self._identity = {**identity, "rows": row_digest(rows)}
        self._sampler = sampler(recipe, own, [len(row.ids) if grouped else 0 for row in rows])
        self._penalty = penalty
        self._weights = trainable_weights(model)  # found once: walking over the modules takes as long as copying a LoRA
        self._restored: SavedState | None = None
        self._collate = collate
        self._saves = Saves(recipe, clock)
        tokens = sum(len(row.ids) + sum(map(len, row.others)) for row in rows) / len(rows)
        self._pace = Pace(self._total, tokens * step_rows(recipe), clock)
        super().__init__(
            model=model, args=training_arguments(recipe, self._total), train_dataset=Rows(rows),
            data_collator=partial(_with_rows, collate), callbacks=[BetweenSteps(lease, self._writer)],
            compute_loss_func=answer_loss if is_encoder_decoder(model) else None,
        )  # fmt: skip
        # Embeddings learn from the rest of their batch; private training bounds each row's share in one pass; and
        # processes that train together take the same way.
        alone = recipe.task != "embedding" and recipe.privacy is None and recipe.processes == 1
        self._pieces = Pieces(allowed=alone, clear=model.zero_grad)
        self._looks = None if look is None else Looks(
            look, recipe, self._weights, total=self._total, epoch=epoch_steps(recipe, own), progress=progress,
            precision=self._autocast,
        )  # fmt: skip
        # In this order: what may end the training, then what keeps its last state.
        if self._looks is not None:
            self.add_callback(self._looks)
        if self._saves.wanted:
            self.add_callback(AfterFirstStep(self._prepare_checkpoints))
            self.add_callback(self._saves)
        self.remove_callback(
            PrinterCallback
        )  # what is printed could leave the sandbox; figures go through the port only

    def train_sealed(self) -> int:
        """Train, or go on from the sink's newest checkpoint. Returns the step where it went on, or 0.

        The last checkpoint is kept when this returns. Raises what went wrong in training or with any checkpoint.
        """
        step = self._resume()
        with self._writer:
            try:
                # It may have ended there: at its last step, after which the Trainer would make one more, or for want of
                # patience.
                if self.steps < self._total and (self._looks is None or not self._looks.stopped):
                    self.train()
                require_finite(self._weights.values(), self.steps)
            except (CloisterError, RuntimeError, MemoryError) as error:
                told = no_memory() if is_out_of_memory(error) else error
                if isinstance(told, CloisterError) and told.code in UNHEALTHY:
                    self._writer.finish()  # it was copied while all was well: a run may go on from there
                    raise told from None
                raise
        if self._looks is not None:
            self._looks.choose()
        return step

    @property
    def steps(self) -> int:
        """Steps of the run so far, those before a resume included."""
        return int(self.state.global_step)

    def facts(self) -> dict[str, str | int]:
        """What the evaluation tells of the training beside its figures: what was chosen, and what memory forced."""
        chosen = {} if self._looks is None else self._looks.facts()
        return {**chosen, **({"batch_pieces": self._pieces.count} if self._pieces.count > 1 else {})}

    def _resume(self) -> int:
        found = self._sink.latest()
        if found is None:
            return 0
        step, files = found
        looks = self._looks
        with closing(files):
            self._restored = read_state(
                step, files, self._identity, (BEST,) if looks is not None and looks.kept else ()
            )
            restore_weights(self.model, files, self._restored)
        if looks is not None:
            looks.restore(self._restored.header.get("looks"), self._restored.further.get(BEST, {}))
        self._pieces.restore(self._restored.header.get("pieces", 1))
        self._restored = replace(self._restored, further={})
        self.state.global_step = step
        return step

    def _state(self) -> tuple[dict[str, Mapping[str, torch.Tensor]], dict[str, Any]]:
        require_finite(self._weights.values(), self.steps)  # a spoilt state must not take a good one's place
        parts, header = capture(
            self._weights, self.optimizer, self.lr_scheduler, step=self.steps, identity=self._identity
        )
        if self._looks is not None:
            header["looks"] = self._looks.state()
            if self._looks.kept:
                parts[BEST] = self._looks.kept
        if self._pieces.count > 1:
            header["pieces"] = self._pieces.count
        return parts, header

    def _prepare_checkpoints(self) -> None:
        parts, _ = self._state()
        self._writer.prepare(parts)

    # Hooks of the Trainer, in the order in which they are called.

    @override
    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler | MixedSampler:
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
        self.state.global_step = 0 if self._restored is None else self._restored.header["step"]
        self._pace.begin(self.steps)
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
    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        batches = self.current_gradient_accumulation_steps

        def piece(rows: Sequence[Row], share: float) -> Any:
            # A loss that is no sum over the step's items is divided by this: so each piece counts by its rows.
            self.current_gradient_accumulation_steps = batches / share
            return super(SealedTrainer, self).training_step(model, dict(self._collate(rows)), num_items_in_batch)

        rows = inputs.pop(ROWS, ())
        whole = partial(super().training_step, model, inputs, num_items_in_batch)
        try:
            loss = self._pieces.learn(self.steps, rows, whole, piece)
        finally:
            self.current_gradient_accumulation_steps = batches
        if self._penalty is not None and self.accelerator.sync_gradients:  # once a step: it is the same for every batch
            self._penalty.pull(1.0)
        return loss

    @override
    def compute_loss_context_manager(self) -> AbstractContextManager[Any]:
        return self._autocast()

    def _autocast(self) -> AbstractContextManager[Any]:
        return autocast(self.args.device, self._bf16)

    @override
    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Of the step that is about to change the weights. Raises if it would spoil them."""
        norm = super()._get_grad_norm(model, grad_norm)
        both = torch.stack([torch.as_tensor(value).float().to(self._tr_loss.device) for value in (self._tr_loss, norm)])
        loss, length = both.tolist()  # together: on a GPU every look at a value waits for the step
        require_loss(loss, self.steps + 1)
        require_gradient(length, self.steps + 1)
        return norm

    @override
    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: it would walk over all parameters at every step."""
        return 0

    @override
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        names = {"loss": "loss", "learning_rate": "learning_rate", "grad_norm": "gradient_norm"}
        values = {name: quantized(float(logs[key])) for key, name in names.items() if key in logs}
        if values:
            self._progress.report("train", self.steps, self._total, {**values, **self._pace.values(self.steps)})

    @override
    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        parts, header = self._state()
        self._writer.save(self.steps, parts, header)

    @override
    def _save(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("plaintext weights are never written to a path")
