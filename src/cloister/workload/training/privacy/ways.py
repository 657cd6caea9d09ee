"""Which way of shortening gradients is right for a model: found out on made-up rows, so nothing private decides it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ....contracts.recipe import Recipe
from ..batching import Row
from ..heads import PooledClassifier
from .clipping import ClippedSums
from .losses import row_losses

__all__ = ["choose_way", "without_unused"]

_AGREE = 1e-3  # relative; float32 leaves about 1e-5, and a way that mixes rows is off by much more
_LENGTHS = (3, 7, 5)
_SHORT = 1e-3
Collate = Callable[[Sequence[Row]], Mapping[str, torch.Tensor]]


def without_unused(model: nn.Module, collate: Collate) -> None:
    """What no row's loss depends on, as an encoder's pooler, is not trained: only noise would change it."""
    device = next(model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in collate(_made_up(model)).items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(row_losses(model, batch).sum(), trained, allow_unused=True)
    for parameter, gradient in zip(trained, found, strict=True):
        if gradient is None:
            parameter.requires_grad_(False)


def choose_way(model: nn.Module, collate: Collate, recipe: Recipe) -> str:
    """The fastest way that gives the sum of ``whole`` on made-up rows.

    Layers that are looked at without being called, share a weight, or mix a batch's rows are beyond Opacus's hooks,
    which would give a wrong gradient in silence. ``whole`` is right for all of them.
    """
    if recipe.gradient_checkpointing:
        return "whole"  # it calls layers twice
    way = "hooks" if recipe.adapter is not None else "ghost"
    first, second, third = _made_up(model)
    units = [[first], [second, third]] if way == "hooks" else [[first], [second], [third]]
    with _stirred(model):
        wanted = _sum(model, collate, "whole", units)
        try:
            found = _sum(model, collate, way, units)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            return "whole"  # Opacus has no error of its own for a layer that it can't do
    difference = sum(float((a - b).square().sum()) for a, b in zip(wanted, found, strict=True)) ** 0.5
    length = sum(float(a.square().sum()) for a in wanted) ** 0.5
    return way if difference <= _AGREE * length else "whole"


def _sum(model: nn.Module, collate: Collate, way: str, units: Sequence[Sequence[Row]]) -> list[torch.Tensor]:
    # All are shortened, so a gradient that is ascribed to the wrong row shows.
    sums = ClippedSums(model, collate, clip_norm=_SHORT, physical=len(_LENGTHS), way=way)
    was_training = model.training
    model.train()
    try:
        with sums.attached():
            return sums.of(units)
    finally:
        model.train(was_training)


class _stirred:
    """Weights that begin as zero, as LoRA's second matrices, hide others' gradients; in here they are small numbers."""

    def __init__(self, model: nn.Module) -> None:
        self._zero = [p for p in model.parameters() if p.requires_grad and not bool(p.any())]

    def __enter__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in self._zero:
                p.copy_(0.02 * torch.randn(p.shape, generator=generator))

    def __exit__(self, *_: object) -> None:
        with torch.no_grad():
            for p in self._zero:
                p.zero_()


def _made_up(model: Any) -> list[Row]:
    """Short rows of the vocabulary's first tokens, the padding left out. A target of 1 is a label and a place."""
    body: Any = model.encoder if isinstance(model, PooledClassifier) else model
    table = body.get_input_embeddings()
    ids = [number for number in range(table.num_embeddings) if number != table.padding_idx][:8]
    return [
        Row(tuple(ids[(place * (length + 1) + length) % len(ids)] for place in range(length)), 1) for length in _LENGTHS
    ]
