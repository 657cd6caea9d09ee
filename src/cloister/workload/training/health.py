"""When a training must not go on: figures that are no numbers, gradients that exploded, and too little memory.

All of it is found before a step changes the weights or a checkpoint is copied, so what was kept before stays good.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch.distributed.tensor import DTensor

from ...errors import CloisterError, Misuse

__all__ = ["UNHEALTHY", "is_out_of_memory", "no_memory", "require_finite", "require_gradient", "require_loss"]

# Whoever sees one of these can still keep the checkpoint that is under way: it was copied before.
UNHEALTHY = frozenset({"training.gradient", "training.look", "training.loss", "training.memory", "training.weights"})
# A gradient this long, before it is shortened, teaches nothing; healthy ones are shorter than a thousand.
_EXPLODED = 1e6
_ALLOCATORS = ("can't allocate memory", "out of memory", "ALLOC_FAILED", "not enough memory")


def require_loss(loss: float, step: int) -> None:
    """Misuse (``training.loss``) unless it is a number."""
    if not math.isfinite(loss):
        raise _stop("training.loss", "The training loss stopped being a number", step)


def require_gradient(norm: float, step: int) -> None:
    """``norm``: before shortening. Misuse (``training.gradient``)."""
    if not norm <= _EXPLODED:
        raise _stop("training.gradient", "The gradients exploded", step)


def require_finite(weights: Iterable[torch.Tensor], step: int) -> None:
    """Misuse (``training.weights``) where a weight is no number. Reads each of them once."""
    found = [w.detach() for w in weights if w.is_floating_point() and w.numel()]
    if found:
        # Not-a-number and infinity come through a sum of squares, which is the fastest way to read them all. One that
        # overflows by itself belongs to weights of 1e19, which are as spoilt.
        lengths = torch._foreach_norm(found)
        whole = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in lengths]
        if not bool(torch.stack([norm.float().cpu() for norm in whole]).isfinite().all()):
            raise _stop("training.weights", "Some weights stopped being numbers", step)


def is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU's memory, of the CPU allocator's, or of Python's. What the kernel kills can't be told."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _ALLOCATORS)


def no_memory() -> CloisterError:
    return Misuse(
        "training.memory",
        "There is too little memory for this training; lower batch_size or max_length, set gradient_checkpointing, or"
        " use a smaller method such as qlora.",
    )


def _stop(code: str, what: str, step: int) -> Misuse:
    return Misuse(code, f"{what}; lower the learning rate, set max_gradient_norm, or use precision fp32.", step=step)
