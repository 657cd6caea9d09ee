"""Elastic weight consolidation (Kirkpatrick et al. 2017, "Overcoming catastrophic forgetting in neural networks",
equation 3): strength/2 · Σ F (θ − θ*)², where θ* are the base's weights and F says how much general text needs each.

F is the diagonal of the Fisher information, estimated on general text with next tokens that are drawn from the model
itself: the loss of the real ones would weigh weights by how wrong the base is (Kunstner et al. 2019, "Limitations of
the empirical Fisher approximation"). It is divided by its mean over all weights that are held, so that ``strength``
means the same for any base and any text: with F = 1 everywhere it is the plain pull towards the base, strength/2 ·
‖θ − θ*‖².

What is held depends on what is trained:

- **Weights themselves** (full; IA3, whose factors begin at 1, where the model is the base): F by weight. Memory: two
  numbers of 4 bytes a trained weight, F and θ*.
- **LoRA and QLoRA**: what counts is the weight that the layer has in effect, W + s·B·A, and θ* is W; so the penalty is
  on s·B·A. A Fisher of A and B themselves would be of where they begin, where B is 0 and so all of A's is 0. F of a
  layer is kept as its row sums R and column sums C, F ≈ R·C/ΣF (the factors of Shazeer & Stern 2018, "Adafactor", §3):
  then Σ F (s·B·A)² = s²/ΣF · Σ (BᵀRB)∘(ACAᵀ) needs no matrix of the layer's size. Memory: in + out numbers a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import nn

from ...contracts.recipe import Recipe
from ...crypto import frame, sha256
from ...errors import Misuse
from .batching import Row, text_collate
from .ports import Lease

__all__ = ["Penalty", "consolidation", "effect_fisher", "weight_fisher"]


class Penalty(Protocol):
    def pull(self, share: float) -> None:
        """Add ``share`` of the penalty's gradient to the gradients."""
        ...

    def value(self) -> float:
        """The penalty now."""
        ...


def consolidation(model: nn.Module, recipe: Recipe, rows: Sequence[Row], lease: Lease) -> Penalty | None:
    """What holds ``model``, a language model as it is before its first step; None for a recipe without ``ewc``.

    The same for the same model, rows and seed, so a resumed run is held by the same. Misuse (``general.flat``) where
    general text depends on none of the weights.
    """
    if recipe.ewc is None:
        return None
    strength = float(recipe.ewc.strength)
    if recipe.lora is not None:
        return _Effects(effect_fisher(model, rows, recipe.seed, lease), strength)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return _Weights(parameters, weight_fisher(model, parameters, rows, recipe.seed, lease), strength)


class _Weights:
    def __init__(self, parameters: Sequence[nn.Parameter], fisher: Sequence[torch.Tensor], strength: float) -> None:
        self._held = [(p, p.detach().clone(), f) for p, f in zip(parameters, fisher, strict=True)]
        self._strength = strength

    @torch.no_grad()
    def pull(self, share: float) -> None:
        for parameter, start, fisher in self._held:
            _add(parameter, (parameter - start).mul_(fisher), self._strength * share)

    @torch.no_grad()
    def value(self) -> float:
        return self._strength / 2 * sum(float((f * (p - start).square()).sum()) for p, start, f in self._held)


@dataclass(frozen=True)
class _Layer:
    """A LoRA layer's matrices A (rank, in) and B (out, rank), and its F: ``rows`` (out) times ``columns`` (in)."""

    a: nn.Parameter
    b: nn.Parameter
    scale: float
    rows: torch.Tensor
    columns: torch.Tensor

    def halves(self) -> tuple[torch.Tensor, torch.Tensor]:
        """BᵀRB and ACAᵀ, both (rank, rank), with the scale in the first."""
        outer = self.b.T @ (self.rows.unsqueeze(1) * self.b) * self.scale**2
        return outer, (self.a * self.columns) @ self.a.T


class _Effects:
    def __init__(self, layers: Sequence[_Layer], strength: float) -> None:
        self._layers, self._strength = layers, strength

    @torch.no_grad()
    def pull(self, share: float) -> None:
        for layer in self._layers:
            outer, inner = layer.halves()
            _add(layer.a, outer @ (layer.a * layer.columns), self._strength * share)
            _add(layer.b, (layer.rows.unsqueeze(1) * layer.b) @ inner, self._strength * share * layer.scale**2)

    @torch.no_grad()
    def value(self) -> float:
        sums = [outer.mul(inner).sum() for outer, inner in (layer.halves() for layer in self._layers)]
        return self._strength / 2 * float(torch.stack(sums).sum())


def weight_fisher(
    model: nn.Module, parameters: Sequence[nn.Parameter], rows: Sequence[Row], seed: int, lease: Lease
) -> list[torch.Tensor]:
    """F of each parameter, in its shape; the mean over all of them is 1."""
    fisher = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters]

    def add(loss: torch.Tensor) -> None:
        for total, gradient in zip(fisher, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
            if gradient is not None:
                total.addcmul_(gradient.float(), gradient.float())

    _each_row(model, rows, seed, lease, add)
    mean = _mean(sum(float(total.sum(dtype=torch.float64)) for total in fisher), sum(p.numel() for p in parameters))
    return [total.div_(mean) for total in fisher]


def effect_fisher(model: nn.Module, rows: Sequence[Row], seed: int, lease: Lease) -> list[_Layer]:
    """F of the weight that each LoRA layer has in effect; the mean over all these weights is 1."""
    layers = [module for module in model.modules() if isinstance(module, LoraLayer) and len(module.lora_A)]
    sums = [(torch.zeros(b.shape[0]), torch.zeros(a.shape[1])) for a, b, _ in map(_matrices, layers)]
    sums = [tuple(part.to(next(model.parameters()).device) for part in pair) for pair in sums]  # type: ignore[misc]
    hooks = [layer.register_forward_hook(_watch(*pair)) for layer, pair in zip(layers, sums, strict=True)]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        _each_row(model, rows, seed, lease, lambda loss: torch.autograd.grad(loss, trained, allow_unused=True))
    finally:
        for hook in hooks:
            hook.remove()
    whole = [float(of_rows.sum(dtype=torch.float64)) for of_rows, _ in sums]
    mean = _mean(sum(whole), sum(len(of_rows) * len(of_columns) for of_rows, of_columns in sums))
    found = []
    for layer, (of_rows, of_columns), total in zip(layers, sums, whole, strict=True):
        a, b, scale = _matrices(layer)
        found.append(_Layer(a, b, scale, of_rows / mean, of_columns / (total or 1.0)))
    return found


def _watch(of_rows: torch.Tensor, of_columns: torch.Tensor) -> Callable[..., None]:
    """A forward hook that adds up the squared gradients of the layer's weight, by row and by column. The weight itself
    needs none, and may be kept in 4 bits: its gradient is the outputs' times the inputs, summed over tokens."""

    def forward(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        given = inputs[0].detach().flatten(0, -2).float()

        def backward(gradient: torch.Tensor) -> None:
            squares = (gradient.flatten(0, -2).float().T @ given).square()
            of_rows.add_(squares.sum(1))
            of_columns.add_(squares.sum(0))

        if output.requires_grad:
            output.register_hook(backward)  # type: ignore[no-untyped-call]

    return forward


def _each_row(
    model: nn.Module, rows: Sequence[Row], seed: int, lease: Lease, add: Callable[[torch.Tensor], Any]
) -> None:
    """For each row the loss of next tokens that the model itself draws: a token's gradients are independent and zero in
    the mean, so the square of their sum estimates the sum of their squares without bias."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(int.from_bytes(sha256(frame("cloister/fisher/v1", seed))[:6], "big"))
    was_training, collate = model.training, text_collate(model)
    model.eval()
    with torch.enable_grad():
        for row in rows:
            lease.check()
            batch = {name: tensor.to(device) for name, tensor in collate([row], 0).items() if name != "labels"}
            length = len(row.others[0] if row.others else row.ids)
            logits = model(**batch).logits[0, -length:].float()
            # The last one's, too: what would come after the row is drawn and not read.
            chances = logits.detach().softmax(-1).cumsum(-1)
            drawn = torch.rand(length, 1, generator=generator).to(device)
            tokens = torch.searchsorted(chances, drawn).clamp_(max=chances.shape[-1] - 1).squeeze(1)
            add(F.cross_entropy(logits, tokens, reduction="sum"))
    model.train(was_training)


def _matrices(layer: Any) -> tuple[nn.Parameter, nn.Parameter, float]:
    (name,) = layer.lora_A
    return layer.lora_A[name].weight, layer.lora_B[name].weight, float(layer.scaling[name])


def _add(parameter: nn.Parameter, gradient: torch.Tensor, factor: float) -> None:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    parameter.grad.add_(gradient, alpha=factor)


def _mean(total: float, weights: int) -> float:
    if not 0 < total < float("inf"):
        raise Misuse("general.flat", "What the base says to general text depends on none of its weights; check it.")
    return total / weights
