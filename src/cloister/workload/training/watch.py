"""What is done between two steps: the lease is asked, checkpoints come due, and it is told how training goes."""

from __future__ import annotations

import resource
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback
from typing_extensions import override

from ...contracts.recipe import Recipe
from .background import CheckpointWriter
from .looks import quantized
from .ports import Lease

__all__ = ["AfterFirstStep", "BetweenSteps", "Pace", "Saves"]


class BetweenSteps(TrainerCallback):  # type: ignore[misc]  # the library has no types
    """Before each step: is the lease alive, and did the checkpoint that is being written fail?"""

    def __init__(self, lease: Lease, writer: CheckpointWriter) -> None:
        self._lease, self._writer = lease, writer

    @override
    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._lease.check()
        self._writer.check()


class AfterFirstStep(TrainerCallback):  # type: ignore[misc]
    """The optimizer's state exists once it made a step: from then on it is known how much memory a checkpoint takes."""

    def __init__(self, prepare: Callable[[], None]) -> None:
        self._prepare: Callable[[], None] | None = prepare

    @override
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        prepare, self._prepare = self._prepare, None
        if prepare is not None:
            prepare()


class Saves(TrainerCallback):  # type: ignore[misc]
    """A checkpoint every so many steps, every so many minutes, and at the end, whatever ended training.

    Which ones the clock keeps differs from run to run. That changes nothing of the training: a checkpoint is a copy.
    """

    def __init__(self, recipe: Recipe, clock: Callable[[], float]) -> None:
        """``clock``: seconds that only grow."""
        self._steps, self._seconds = recipe.checkpoint_steps, 60.0 * recipe.checkpoint_minutes
        self._clock, self._last = clock, clock()

    @property
    def wanted(self) -> bool:
        return self._steps > 0 or self._seconds > 0

    @override
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        due = control.should_training_stop or (self._steps > 0 and state.global_step % self._steps == 0)
        if self.wanted and (due or 0 < self._seconds <= self._clock() - self._last):
            control.should_save = True
            self._last = self._clock()


class Pace:
    """How fast this process trains, and how much memory it took at most. Figures of time and memory tell of the rows
    (their lengths) what a loss doesn't, so they leave a run only where the contract names them."""

    def __init__(self, total: int, step_tokens: float, clock: Callable[[], float]) -> None:
        """``total``: steps of the run; ``step_tokens``: tokens of one, on average."""
        self._total, self._tokens, self._clock = total, step_tokens, clock
        self._first: tuple[int, float] | None = None
        self._last = (0, 0.0)

    def begin(self, step: int) -> None:
        self._first = self._last = (step, self._clock())

    def values(self, step: int) -> dict[str, str]:
        """Tokens a second since the last call, seconds that are left as it went so far, and MiB."""
        now = self._clock()
        if self._first is None or step <= self._last[0]:
            return {}
        (first, began), (last, before) = self._first, self._last
        self._last = (step, now)
        left = (self._total - step) * (now - began) / (step - first)
        return {
            "tokens_per_second": quantized((step - last) * self._tokens / max(now - before, 1e-9)),
            "eta_seconds": quantized(left),
            "memory": quantized(peak_memory()),
        }


def peak_memory() -> float:
    """MiB at most so far: of the GPU's where there is one, else of the process (resident)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
