"""The Trainer's loop with differentially private steps (DP-SGD; Abadi et al. 2016, "Deep learning with differential
privacy"): units drawn at random, each one's gradient shortened, noise on the sum.

Nothing of a step leaves this class but the noised mean of the gradients: what follows (optimizer, schedule,
checkpoints) works on that and tells nothing further. No loss and no gradient's length is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from decimal import Decimal
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from typing_extensions import override

from ....contracts.recipe import PrivacySettings, Recipe
from ..batching import Row
from ..looks import quantized
from ..trainer import SealedTrainer
from .accountant import Budget, spent_until
from .clipping import ClippedSums
from .noise import NoiseSource
from .units import machine, members, numbers_digest, run_budget
from .ways import choose_way, without_unused

__all__ = ["PrivateTrainer"]

# Rounding, of float32 sums and of norms, may make a unit's part longer than the clip norm by less than this.
_ROUNDING = 2.0**-10


class PrivateTrainer(SealedTrainer):
    """``units``: for each row the number of the unit that it belongs to. ``way``: how gradients are shortened, see
    ``clipping``; None finds the fastest that is right for this model.

    Misuse as ``accountant.plan_noise``.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        rows: Sequence[Row],
        collate: Callable[[Sequence[Row]], Mapping[str, torch.Tensor]],
        *,
        units: Sequence[int],
        identity: Mapping[str, str],
        way: str | None = None,
        **outside: Any,
    ) -> None:
        assert recipe.privacy is not None
        self._settings: PrivacySettings = recipe.privacy
        self.budget: Budget = run_budget(recipe, units)
        self._members = members(rows, units)
        without_unused(model, collate)
        self._sums = ClippedSums(
            model,
            collate,
            clip_norm=float(self._settings.clip_norm),
            physical=recipe.batch_size,
            way=way or choose_way(model, collate, recipe),
        )
        # A step is one batch of the Trainer's; which rows it takes, and how they are cut, is decided in here. The
        # whole gradient is never shortened: that of each unit was, and the noise must stay as it is.
        one = replace(
            recipe,
            batch_size=recipe.batch_size * recipe.gradient_accumulation,
            gradient_accumulation=1,
            max_gradient_norm=Decimal(0),
        )
        named = {**identity, "units": numbers_digest(units), "machine": machine()}
        super().__init__(model, one, rows, collate, identity=named, **outside)
        self._noise: NoiseSource | None = None

    @override
    def train_sealed(self) -> int:
        with ExitStack() as stack:
            stack.enter_context(self._sums.attached())
            return super().train_sealed()

    @override
    def _resume(self) -> int:
        step = super()._resume()
        if self._restored is None:
            self._noise = NoiseSource.fresh(self._identity)
        else:
            self._noise = NoiseSource.resumed(self._restored.header.get("privacy"), self._identity)
        return step

    @override
    def _state(self) -> tuple[dict[str, Mapping[str, torch.Tensor]], dict[str, Any]]:
        parts, header = super()._state()
        return parts, {**header, "privacy": self._drawn().state()}

    @override
    def get_train_dataloader(self) -> DataLoader[int]:
        """One empty batch a step."""
        return DataLoader(range(self._total), batch_size=1, collate_fn=_nothing)  # type: ignore[arg-type]

    @override
    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """The gradient of the step, as every parameter's ``grad``. The loss that it returns is zero, whatever it was:
        nobody may see it."""
        del inputs, num_items_in_batch
        model.train()
        for parameter, gradient in zip(self._sums.parameters, self._noised(self.steps + 1), strict=True):
            parameter.grad = gradient
        return torch.zeros((), device=self.args.device)

    def _noised(self, step: int) -> Iterator[torch.Tensor]:
        """The noised sum over the expected number of units: the number that really came is private."""
        chosen = self._drawn().chosen(step, len(self._members), self.budget.rate)
        sums = self._sums.of([self._members[unit] for unit in chosen])
        deviation = self.budget.noise_multiplier * float(self._settings.clip_norm) * (1 + _ROUNDING)
        expected = self.budget.rate * len(self._members)
        for noised in self._drawn().add_to(step, sums, deviation):
            yield noised.div_(expected)

    def _drawn(self) -> NoiseSource:
        assert self._noise is not None
        return self._noise

    @override
    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> None:
        """Not looked at: it is mostly noise, and there is no loss to look at beside it."""

    @override
    def facts(self) -> dict[str, str | int]:
        return {**super().facts(), "clipping": self._sums.way}

    @override
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """How far it is and what it spent. Loss, gradient norm, tokens a second and memory tell of the rows."""
        if "learning_rate" in logs:
            pace = {k: v for k, v in self._pace.values(self.steps).items() if k == "eta_seconds"}
            values = {
                "learning_rate": quantized(float(logs["learning_rate"])),
                "epsilon": f"{spent_until(self.budget, self.steps):f}",
            }
            self._progress.report("train", self.steps, self._total, {**values, **pace})


def _nothing(steps: Sequence[int]) -> dict[str, torch.Tensor]:
    return {"step": torch.tensor(steps)}
