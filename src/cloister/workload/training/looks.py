"""Looks at the validation rows while training runs: what they choose, and what of that a resumed run has to know.

Only here do validation rows choose anything. The report is on other rows then (``data.Split.report``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import torch
from transformers import TrainerCallback
from typing_extensions import override

from ...contracts.recipe import Recipe
from ...errors import Malformed, Misuse
from .ports import Progress

__all__ = ["BEST", "Look", "Looks", "quantized", "wants_looks"]

BEST = "best"  # the part of a checkpoint that holds the best weights so far
_PLACES = Decimal("0.000001")


def quantized(value: float) -> str:
    """A measurement as decimal text with six places; not-a-number stays visible as such."""
    return f"{Decimal(repr(value)).quantize(_PLACES):f}" if math.isfinite(value) else "nan"


def wants_looks(recipe: Recipe) -> bool:
    """Does the recipe choose something by the validation rows, or ask to see how they do meanwhile?"""
    return recipe.test is not None or recipe.evaluate_steps > 0


@dataclass(frozen=True)
class Look:
    """One figure of the validation rows. ``lower``: less of it is better."""

    name: str
    value: float
    lower: bool = False

    def better_than(self, other: Look) -> bool:
        return self.value < other.value if self.lower else self.value > other.value


class Looks(TrainerCallback):  # type: ignore[misc]  # the library has no types
    """Looks when one is due, remembers the best, and ends training where ``patience`` looks in a row were no better.

    ``weights``: the trained ones. With ``select: best`` the best ones are kept in a copy of the same size.
    """

    def __init__(
        self,
        look: Callable[[], Look],
        recipe: Recipe,
        weights: Mapping[str, torch.Tensor],
        *,
        total: int,
        epoch: int,
        progress: Progress,
        precision: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        """``total``, ``epoch``: steps of the run, of an epoch. Within ``precision`` the model runs as it trains."""
        self._look, self._progress, self._precision = look, progress, precision
        self._total, self._every = total, recipe.evaluate_steps or epoch
        self._patience = recipe.patience
        self._weights = weights
        self._count, self._waited, self._best_step = 0, 0, 0
        self._best: Look | None = None  # its figure is quantized, so that the last bits of a sum choose nothing
        # Made at once: so the memory that a run needs doesn't grow in the middle of it.
        self.kept = {n: w.detach().clone() for n, w in weights.items()} if recipe.select == "best" else {}

    @override
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = state.global_step
        if step % self._every == 0 or step == self._total:
            with self._precision():
                look = self._look()
            self._take(step, look)
            if self.stopped:
                control.should_training_stop = True

    def _take(self, step: int, look: Look) -> None:
        if not math.isfinite(look.value):
            raise Misuse(
                "training.look",
                "A figure of the validation rows is not a number; lower the learning rate, or use precision fp32.",
            )
        look = replace(look, value=float(quantized(look.value)))
        self._count += 1
        if self._best is None or look.better_than(self._best):
            self._best, self._best_step, self._waited = look, step, 0
            _copy(self._weights, self.kept)
        else:
            self._waited += 1
        self._progress.report("look", step, self._total, {look.name: quantized(look.value)})

    @property
    def stopped(self) -> bool:
        return 0 < self._patience <= self._waited

    def choose(self) -> None:
        """Put the best weights in place of the last, where the recipe wants that."""
        if self._best is not None:
            _copy(self.kept, {name: self._weights[name] for name in self.kept})

    def facts(self) -> dict[str, str | int]:
        """For the evaluation: how often was looked, which step was best, and how good it was."""
        if self._best is None:
            return {}
        best: dict[str, str | int] = {
            "best_step": self._best_step,
            f"best_{self._best.name}": quantized(self._best.value),
        }
        return {"looks": self._count, **best}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside ``kept``."""
        best = None if self._best is None else [self._best.name, quantized(self._best.value), self._best.lower]
        return {"best": best, "best_step": self._best_step, "count": self._count, "waited": self._waited}

    def restore(self, state: Any, kept: Mapping[str, torch.Tensor]) -> None:
        """Malformed (``checkpoint.state``, ``checkpoint.weights``) if it isn't what ``state`` and ``kept`` gave."""
        if {n: t.shape for n, t in kept.items()} != {n: t.shape for n, t in self.kept.items()}:
            raise Malformed("checkpoint.weights", "The checkpoint's best weights are not those of this model.")
        try:
            self._best_step, self._count, self._waited = (int(state[n]) for n in ("best_step", "count", "waited"))
            if state["best"] is not None:
                name, figure, lower = state["best"]
                self._best = Look(str(name), float(figure), bool(lower))
        except (TypeError, KeyError, ValueError):
            raise Malformed("checkpoint.state", "The checkpoint's state is not of the known form.") from None
        _copy(kept, self.kept)


def _copy(sources: Mapping[str, torch.Tensor], targets: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(sources[name])
