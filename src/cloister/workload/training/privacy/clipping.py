"""The sum over a step's units of their gradients, each shortened to the clip norm.

Three ways to the same sum (a test compares them):

- ``hooks``: every row's gradient at once, by Opacus's hooks on the layers; a unit's rows are added up, then shortened.
  Memory grows with rows times trained weights, which is little for LoRA.
- ``ghost``: Opacus's ghost clipping: only the norms of the rows' gradients, then a second pass backward through the
  losses, weighted. Memory as without privacy. Units of several rows go the next way.
- ``whole``: one unit after the other, by a plain pass backward. Slow, and right for every model there is.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from opacus.grad_sample.grad_sample_module import GradSampleHooks
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleHooksFastGradientClipping
from opacus.grad_sample.linear import compute_linear_grad_sample
from torch import nn
from torch.autograd import backward

from ..batching import Row
from .losses import row_losses

__all__ = ["WAYS", "ClippedSums"]

WAYS = ("hooks", "ghost", "whole")
Collate = Callable[[Sequence[Row]], Mapping[str, torch.Tensor]]
Losses = Callable[[nn.Module, Mapping[str, torch.Tensor]], torch.Tensor]


@dataclass(frozen=True)
class _Piece:
    """Rows of one pass. ``owners``: each row's unit, counted from the piece's first; ``weights``: one over the rows of
    its unit. ``continues``: the first unit has rows in the piece before; ``goes_on``: the last one in the next."""

    rows: list[Row]
    owners: list[int]
    weights: list[float]
    continues: bool
    goes_on: bool


class ClippedSums:
    """``physical``: at most so many rows are in memory at a time, whatever a step takes. ``parameters``: what is
    trained, in the order of every answer."""

    def __init__(
        self,
        model: nn.Module,
        collate: Collate,
        *,
        clip_norm: float,
        physical: int,
        way: str,
        losses: Losses = row_losses,
    ) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.way = way
        self._model, self._collate, self._losses = model, collate, losses
        self._clip, self._physical = clip_norm, physical
        self._rows = 0  # of the pass that is under way
        self._hooks: Any = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """In here the model has Opacus's hooks; afterwards nothing of them is left."""
        expanding = [m.register_forward_pre_hook(self._expand) for m in self._model.modules() if _looks_up(m)]
        with warnings.catch_warnings():
            # The hooks read the gradients of what a layer gives; that its inputs have none, as token ids, is fine.
            warnings.filterwarnings("ignore", message="Full backward hook is firing", category=UserWarning)
            try:
                if self.way == "hooks":
                    self._hooks = _RowHooks(self._model, loss_reduction="sum")
                elif self.way == "ghost":
                    self._hooks = GradSampleHooksFastGradientClipping(
                        self._model, loss_reduction="sum", max_grad_norm=self._clip
                    )
                yield
            finally:
                if self._hooks is not None:
                    self._hooks.cleanup()
                    self._hooks = None
                for handle in expanding:
                    handle.remove()
                for module in self._model.modules():  # where a pass was left in the middle
                    module.__dict__.pop("activations", None)
                    module.__dict__.pop("max_batch_len", None)

    def of(self, units: Sequence[Sequence[Row]]) -> list[torch.Tensor]:
        """The sum for these units, by parameter; zeros for none. A unit whose gradient is not finite gives nothing:
        what it gives must be bounded, and an error here would tell of it."""
        totals = [torch.zeros_like(p) for p in self.parameters]
        if self.way == "whole":
            for unit in units:
                self._add_whole(unit, totals)
        elif self.way == "hooks":
            carried: list[torch.Tensor] | None = None
            for piece in _pieces(units, self._physical):
                carried = self._add_hooked(piece, carried, totals)
        else:
            with self._without_hooks():
                for unit in units:
                    if len(unit) > 1:  # the norm of a sum of rows is not told by the rows' norms
                        self._add_whole(unit, totals)
            for piece in _pieces([unit for unit in units if len(unit) == 1], self._physical):
                self._add_ghost(piece, totals)
        for p in self.parameters:
            p.grad = None
        return totals

    def _add_whole(self, unit: Sequence[Row], totals: list[torch.Tensor]) -> None:
        self._drop_gradients()
        for start in range(0, len(unit), self._physical):
            backward(self._row_losses(unit[start : start + self._physical]).sum() / len(unit))
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        norm = torch.stack([torch.linalg.vector_norm(g, dtype=torch.float64) for g in found]).norm()
        if torch.isfinite(norm):
            torch._foreach_add_(totals, found, alpha=float(self._shorten(norm)))

    def _add_hooked(
        self, piece: _Piece, carried: list[torch.Tensor] | None, totals: list[torch.Tensor]
    ) -> list[torch.Tensor] | None:
        """Returns the gradient so far of the unit that goes on in the next piece."""
        self._drop_gradients()
        backward(self._row_losses(piece.rows).sum())
        found = [self._taken(p, len(piece.rows)) for p in self.parameters]
        if piece.owners != list(range(len(piece.rows))) or piece.continues or piece.goes_on:
            found = [_by_unit(g, piece) for g in found]
            if carried is not None:
                for gradient, before in zip(found, carried, strict=True):
                    gradient[0] += before
        carried = [g[-1].clone() for g in found] if piece.goes_on else None
        whole = len(found[0]) - piece.goes_on
        if not whole:
            return carried
        flat = [g[:whole].reshape(whole, -1) for g in found]
        norms = torch.stack([torch.linalg.vector_norm(g, dim=1) for g in flat]).norm(dim=0)
        finite = torch.isfinite(norms)
        if not bool(finite.all()):
            flat = [torch.where(finite.unsqueeze(1), g, 0.0) for g in flat]
            norms = torch.where(finite, norms, 0.0)
        share = self._shorten(norms)
        for total, gradient in zip(totals, flat, strict=True):
            total.view(-1).addmv_(gradient.T, share)
        return carried

    def _add_ghost(self, piece: _Piece, totals: list[torch.Tensor]) -> None:
        self._drop_gradients()
        losses = self._row_losses(piece.rows)
        backward(losses.sum(), retain_graph=True)
        norms = self._hooks.get_norm_sample()
        if len(norms) != len(piece.rows):
            raise ValueError("a layer mixes the rows of a batch")
        if not bool(torch.isfinite(norms).all()):
            for row in piece.rows:  # its losses and gradients may be infinite too, so no weight makes them nothing
                with self._without_hooks():
                    self._add_whole([row], totals)
            return
        self._drop_gradients()
        with self._without_hooks():
            backward((self._shorten(norms) * losses).sum())
        for total, parameter in zip(totals, self.parameters, strict=True):
            if parameter.grad is not None:
                total += parameter.grad

    @contextmanager
    def _without_hooks(self) -> Iterator[None]:
        self._hooks.disable_hooks()
        try:
            yield
        finally:
            self._hooks.enable_hooks()

    def _row_losses(self, rows: Sequence[Row]) -> torch.Tensor:
        device = self.parameters[0].device
        batch = {name: tensor.to(device) for name, tensor in self._collate(rows).items()}
        self._rows = len(rows)
        return self._losses(self._model, batch)

    def _taken(self, parameter: Any, rows: int) -> torch.Tensor:
        found, parameter.grad_sample = parameter.grad_sample, None
        if not isinstance(found, torch.Tensor) or len(found) != rows:
            raise ValueError("a layer mixes the rows of a batch, or is not called as a layer")
        return found.float()

    def _shorten(self, norms: torch.Tensor) -> torch.Tensor:
        """By how much each is shortened: the norm is at most the clip norm afterwards, but for rounding."""
        return (self._clip / norms.clamp(min=math.ulp(1.0))).clamp(max=1.0)

    def _drop_gradients(self) -> None:
        for p in self.parameters:
            p.grad = None

    def _expand(self, _: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """Positions are often looked up once for all rows; then their gradient is that of all rows together."""
        ids = given[0]
        if ids.dim() > 1 and ids.shape[0] == 1 and self._rows > 1:
            ids = ids.expand(self._rows, *ids.shape[1:])
        return (ids.contiguous(), *given[1:])


class _RowHooks(GradSampleHooks):  # type: ignore[misc]  # the library has no types
    """Opacus's, without its copy of what a linear layer gives: of LoRA that was most of what the hooks cost."""

    def capture_backprops_hook(
        self, module: nn.Module, given: Any, gradients: Any, loss_reduction: str, batch_first: bool
    ) -> None:
        trained: list[Any] = [p for p in module.parameters(recurse=False) if p.requires_grad]
        if not self.hooks_enabled or type(module) is not nn.Linear or any(p._forward_counter != 1 for p in trained):
            super().capture_backprops_hook(module, given, gradients, loss_reduction, batch_first)
            return
        seen: Any = module.activations  # one entry a call
        module.__dict__.pop("max_batch_len", None)  # of an earlier call of the same layer; it is Opacus's
        for parameter, found in compute_linear_grad_sample(module, seen.pop(), gradients[0].detach()).items():
            held = getattr(parameter, "_current_grad_sample", None)  # of another layer that has the same weight
            if held is not None:
                found = held + found
                del parameter._current_grad_sample
            parameter.grad_sample = found
            parameter._forward_counter = 0


def _looks_up(module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding) and module.weight.requires_grad


def _by_unit(gradient: torch.Tensor, piece: _Piece) -> torch.Tensor:
    """(rows, …) → (units, …): the mean over each unit's rows, or the part of it that lies in this piece."""
    weights = torch.tensor(piece.weights, device=gradient.device)
    owners = torch.tensor(piece.owners, device=gradient.device)
    out = gradient.new_zeros(piece.owners[-1] + 1, *gradient.shape[1:])
    return out.index_add_(0, owners, gradient * weights.view(-1, *(1,) * (gradient.dim() - 1)))


def _pieces(units: Sequence[Sequence[Row]], physical: int) -> Iterator[_Piece]:
    """The rows of all units, those of similar length beside each other, in as few passes as ``physical`` allows and all
    about equally long."""
    ordered = sorted((unit for unit in units if unit), key=lambda unit: max(len(row.ids) for row in unit))
    rows = [(number, row, 1.0 / len(unit)) for number, unit in enumerate(ordered) for row in unit]
    if not rows:
        return
    size = math.ceil(len(rows) / math.ceil(len(rows) / physical))
    for start in range(0, len(rows), size):
        part, following = rows[start : start + size], rows[start + size : start + size + 1]
        first, last = part[0][0], part[-1][0]
        yield _Piece(
            rows=[row for _, row, _ in part],
            owners=[number - first for number, _, _ in part],
            weights=[weight for _, _, weight in part],
            continues=start > 0 and rows[start - 1][0] == first,
            goes_on=bool(following) and following[0][0] == last,
        )
