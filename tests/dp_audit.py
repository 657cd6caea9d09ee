"""An attack that measures privacy: canaries that are in the data or not, and how well that can be guessed afterwards.

Steinke, Nasr, Jagielski 2023, "Privacy auditing with one (1) training run": if a training is (ε, δ)-private, nobody
guesses for many independent canaries more often right than by a bound. What was guessed gives a lower bound on ε.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from scipy.stats import binom
from torch import nn

from cloister.contracts.recipe import parse_recipe
from cloister.workload.training.batching import Row
from cloister.workload.training.privacy import PrivateTrainer
from tests.tiny_models import MemorySink, Recorder

__all__ = ["CanaryTrainer", "audit", "canary_rows", "lower_bound"]

DELTA = 1e-5


def p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float = DELTA) -> float:
    """The chance of at least so many ``right`` guesses, were the training (``epsilon``, ``delta``)-private (theorem 5.2
    of the paper, and its procedure to evaluate it)."""
    often = 1 / (1 + np.exp(-epsilon))
    chance = binom.sf(right - 1, guesses, often)
    summed = np.cumsum(binom.pmf(right - np.arange(1, right + 1), guesses, often))
    slack = float(np.max(summed / np.arange(1, right + 1), initial=0.0))
    return float(min(1.0, chance + slack * delta * 2 * canaries))


def lower_bound(canaries: int, guesses: int, right: int, *, error: float = 0.05) -> float:
    """The largest epsilon that these guesses rule out, wrong with a chance of at most ``error``."""
    low, high = 0.0, 20.0
    if p_value(canaries, guesses, right, low) >= error:
        return 0.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(canaries, guesses, right, middle) < error else (low, middle)
    return low


class Canaries(nn.Module):
    """A weight for each canary: its gradient lies along that weight alone, the worst case for whoever hides it."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.table = nn.Embedding(count, 1)
        nn.init.zeros_(self.table.weight)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.table

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> Any:
        looked = self.table(input_ids)
        return SimpleNamespace(logits=torch.cat([looked, -looked], dim=2))


def canary_rows(numbers: Sequence[int]) -> list[Row]:
    return [Row((number, number), 0) for number in numbers]


def collate(rows: Sequence[Row]) -> Mapping[str, torch.Tensor]:
    ids = torch.tensor([row.ids[:2] for row in rows])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.zeros_like(ids)}


class CanaryTrainer(PrivateTrainer):
    """Keeps all that a private run makes of its rows. ``quiet``: without the noise that it needs."""

    def __init__(
        self,
        rows: Sequence[Row],
        *,
        size: int,
        count: int,
        quiet: bool = False,
        sink: MemorySink | None = None,
        units: Sequence[int] | None = None,
        **privacy: Any,
    ) -> None:
        recipe = parse_recipe({
            "task": "generation", "method": "full", "data": "a/b", "base": "a/c", "columns": {"completion": "text"},
            "batch_size": size, "epochs": 2, "max_steps": 2, "checkpoint_steps": 1,
            "learning_rate": "0.00000001", "weight_decay": 0,
            "privacy": {"epsilon": 2, "delta": "0.00001", "clip_norm": "0.1", **privacy},
        })  # fmt: skip
        self.recorder = recorder = Recorder()
        named = {"recipe": recipe.digest.hex()}
        super().__init__(
            Canaries(count), recipe, rows, partial(collate), units=units or range(len(rows)), identity=named,
            way="hooks", bf16=False, sink=sink or MemorySink(), progress=recorder, lease=recorder,
        )  # fmt: skip
        self.quiet = quiet
        self.seen = torch.zeros(count)

    def _noised(self, step: int) -> Any:
        if self.quiet:
            self.budget = SimpleNamespace(**{**vars(self.budget), "noise_multiplier": 0.0})
        for gradient in super()._noised(step):
            self.seen += gradient.view(-1)
            yield gradient


def audit(*, count: int, seed: int, quiet: bool = False) -> tuple[float, float]:
    """(the lower bound that the attack found, the epsilon that the run claims)."""
    present = np.random.default_rng(seed).random(count) < 0.5
    rows = canary_rows(np.flatnonzero(present).tolist())
    trainer = CanaryTrainer(rows, size=int(0.9 * len(rows)), count=count, quiet=quiet)
    claimed = float(trainer.budget.epsilon)
    trainer.train_sealed()
    # A canary that was there pulls its weight's gradient down.
    order = np.argsort(trainer.seen.numpy(), kind="stable")
    each = count * 4 // 10
    right = int(present[order[:each]].sum() + (~present[order[-each:]]).sum())
    return lower_bound(count, 2 * each, right), claimed
