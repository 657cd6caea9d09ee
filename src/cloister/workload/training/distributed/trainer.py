"""The sealed trainer in a group: each step's rows are split, and only the first process keeps checkpoints.

transformers' Trainer divides the summed loss by the tokens (or rows) of all processes and multiplies it by their
number, because DDP and FSDP take the mean of gradients: the gradient is that of one process with all rows, up to the
order in which floats are added.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from typing_extensions import override

from ....crypto import frame, sha256
from ..state import part_like, restore_optimizer
from ..trainer import SealedTrainer
from .group import Group
from .shares import SHARE, Shares, share_loader

__all__ = ["GroupTrainer"]


class _Sharded(nn.Module):
    """Tells the Trainer that the model is wrapped, and lets it put off the exchange of gradients, as it does by DDP."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    @override
    def forward(self, **inputs: Any) -> Any:
        return self.module(**inputs)

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        self.module.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self.module.set_requires_gradient_sync(True)


class GroupTrainer(SealedTrainer):
    """``SealedTrainer`` as a member of ``group``, within ``joined``."""

    def __init__(self, model: nn.Module, *, group: Group, **settings: Any) -> None:
        self._group, self._over = group, False
        super().__init__(model, **settings)

    @override
    def train_sealed(self) -> int:
        if not self._group.first:  # not the same dropout for other rows
            torch.manual_seed(_seed(self.args.seed, self._group.rank))
        return super().train_sealed()

    @override
    def _resume(self) -> int:
        step = super()._resume()
        # Only the first process looks at validation rows, so it alone knows whether training had ended there.
        (self._over,) = self._group.agree(self._looks is not None and self._looks.stopped)
        return step

    @override
    def train(self, *args: Any, **kwargs: Any) -> Any:
        return None if self._over else super().train(*args, **kwargs)

    @override
    def get_train_dataloader(self) -> DataLoader[Any]:
        group = self._group
        shares = Shares(self._get_train_sampler(), self._train_batch_size, group.rank, group.size)
        return share_loader(
            self.train_dataset, self.data_collator, shares, group.size, pin=self.args.dataloader_pin_memory
        )

    @override
    def _wrap_model(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        if self._group.sharded:
            return _Sharded(model)
        return DistributedDataParallel(
            model,
            device_ids=[self.args.device] if self.args.device.type == "cuda" else None,
            forward_sync_buffers=False,  # nothing in the models here is learned in a buffer
            # Not every model uses all its weights (a pooler). And so DDP never lays gradients out anew after its first
            # step, which a resumed run makes at another place: several processes would add them in another order.
            find_unused_parameters=True,
        )

    @override
    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        share = inputs.pop(SHARE, 1.0)
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        # A loss that counts what it learned from is weighed already; of a batch without own rows nothing remains.
        if share == 0 or not self.model_accepts_loss_kwargs:
            loss = loss * share
        return loss

    @override
    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        control = self.control
        control.should_save, control.should_evaluate, control.should_log, control.should_training_stop = (
            self._group.agree(
                control.should_save, control.should_evaluate, control.should_log, control.should_training_stop
            )
        )
        evaluates = control.should_evaluate
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if evaluates:
            (self.control.should_training_stop,) = self._group.agree(self.control.should_training_stop)

    @override
    def _clip_grad_norm(self, model: Any) -> Any:
        return _whole(super()._clip_grad_norm(model))

    @override
    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        if grad_norm is None:
            grad_norm = _whole(self.accelerator.clip_grad_norm_(model.parameters(), math.inf))
        return super()._get_grad_norm(model, grad_norm)

    @override
    def _state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        parts, header = super()._state()
        return self._group.whole(parts), header

    @override
    def _prepare_checkpoints(self) -> None:
        parts, _ = self._state()
        if self._group.first:
            self._writer.prepare(parts)

    @override
    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        parts, header = self._state()
        if self._group.first:
            self._writer.save(self.steps, parts, header)

    @override
    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        if self._restored is None:
            return
        numbered = [p for group in self.optimizer.param_groups for p in group["params"]]
        parts = {key: part_like(t, numbered[int(key.partition(".")[0])]) for key, t in self._restored.optimizer.items()}
        restore_optimizer(self.optimizer, self.lr_scheduler, replace(self._restored, optimizer=parts))
        self._restored = replace(self._restored, optimizer={})

    @override
    def _load_rng_state(self, checkpoint: Any) -> None:
        super()._load_rng_state(checkpoint)
        if self._restored is not None:
            self._group.own_generators(self._restored.generators)


def _whole(norm: Any) -> Any:
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _seed(seed: int, rank: int) -> int:
    return int.from_bytes(sha256(frame("cloister/rank/v1", seed, rank))[:6], "big")
