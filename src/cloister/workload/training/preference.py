"""Preferences by direct preference optimization (Rafailov et al. 2023, "Direct Preference Optimization", equation 7).

The reference model is the base as it came. It never changes, so its log-probabilities are computed once, before an
adapter is put in or a weight is moved: training then holds one model in memory, whatever the method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ...contracts.recipe import DpoSettings, Recipe
from ...errors import Misuse
from ..data import Split, Table, split_rows
from ..evaluation import PairFigures, evaluate_preference
from .base_model import BaseModel
from .batching import IGNORED, Row, collate_causal
from .generate import causal_model, equipped
from .looks import Look, wants_looks
from .precision import autocast, use_bf16
from .predict import completion_losses
from .run import Ports, Timings, TrainingResult, device, train
from .tokenize import encode_completions, text_bytes

__all__ = ["Pair", "PreferenceModel", "collate_pairs", "dpo_loss", "run_preference", "token_log_probabilities"]


@dataclass(frozen=True)
class Pair(Row):
    """``ids`` and ``target`` are the chosen text's; ``others`` holds the rejected one's ids, ``marks`` its target.

    ``reference``: log-probabilities of both answers under the base, in nats. They follow from the rest.
    """

    reference: tuple[float, float] = (0.0, 0.0)

    @property
    def chosen(self) -> Row:
        return Row(self.ids, self.target)

    @property
    def rejected(self) -> Row:
        return Row(self.others[0], self.marks[0])


def run_preference(recipe: Recipe, base: BaseModel, table: Table, ports: Ports, split: Split | None) -> TrainingResult:
    """See ``engine.run_training``."""
    assert recipe.dpo is not None  # a recipe of this task has it
    timings = Timings()
    prompts, chosen, rejected = (table.column(recipe.columns[role]) for role in ("prompt", "chosen", "rejected"))
    if any(better == worse for better, worse in zip(chosen, rejected, strict=True)):
        raise Misuse("data.pairs", "Some rows have the same answer as chosen and rejected; drop these rows.")
    # A prompt stands in one part only: other answers to it would tell what is preferred.
    split = split or split_rows(prompts, None, recipe.validation, recipe.seed, recipe.test)
    model, max_length = causal_model(recipe, base, ports)

    def encoded(places: Sequence[int], texts: Sequence[str], *, ended: bool = True) -> list[Row]:
        asked, wanted = [prompts[p] for p in places], [texts[p] for p in places]
        return encode_completions(base.tokenizer, base.tokens, asked, wanted, max_length, ended=ended)

    training = _pairs(encoded(split.training, chosen), encoded(split.training, rejected))
    report = _pairs(encoded(split.report, chosen), encoded(split.report, rejected))
    seen = _pairs(encoded(split.validation, chosen), encoded(split.validation, rejected)) if wants_looks(recipe) else []
    plain = encoded(split.report, chosen, ended=False)
    ports.progress.report("prepare", 0, 2, {})
    with timings.measure("predict"):
        # As training will compute them: else rounding would look like a preference.
        with autocast(device(), use_bf16(recipe.precision)):
            training = _referenced(training, _log_probabilities(model, training, base, ports))
            reference = _log_probabilities(model, seen, base, ports) if seen else None
        ports.progress.report("prepare", 1, 2, {})
        before = _log_probabilities(model, report, base, ports)
        plain_before = completion_losses(model, plain, base.tokens.pad, ports.lease)
    ports.progress.report("prepare", 2, 2, {})
    model = equipped(model, recipe, ports)
    trained = PreferenceModel(model, recipe.dpo)

    def look() -> Look:
        return Look("loss", trained.loss_of(_log_probabilities(model, seen, base, ports), reference), lower=True)

    train(trained, recipe, base, training, collate_pairs, ports, timings, look)
    ports.progress.report("evaluate", 0, 1, {})
    with timings.measure("predict"):
        after = _log_probabilities(model, report, base, ports)
        plain_after = completion_losses(model, plain, base.tokens.pad, ports.lease)
    figures = PairFigures(before, after, plain_before.nats, plain_after.nats, text_bytes(base, plain))
    evaluation = evaluate_preference(figures, beta=float(recipe.dpo.beta), seed=recipe.seed)
    ports.progress.report("evaluate", 1, 1, {"accuracy": f"{evaluation.scores['accuracy'].tuned:f}"})
    found = {"rows": np.array(split.report), "base": before, "tuned": after}
    return TrainingResult(recipe, base, model, evaluation, found, max_length, None, None, timings)


class PreferenceModel(nn.Module):
    """The model that is trained, with DPO's loss on pairs. A batch holds all chosen texts, then all rejected ones."""

    def __init__(self, model: nn.Module, settings: DpoSettings) -> None:
        super().__init__()
        self.model = model
        self._beta, self._smoothing = float(settings.beta), float(settings.label_smoothing)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, reference: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """``input_ids``, ``attention_mask``, ``labels``: (2 × pairs, tokens); ``reference``: (pairs, 2), in nats."""
        # Some adapters put virtual tokens in front.
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits[:, -input_ids.shape[1] :]
        chosen, rejected = token_log_probabilities(logits, labels).chunk(2)
        return {"loss": dpo_loss(chosen, rejected, reference, self._beta, self._smoothing)}

    def loss_of(self, answers: Any, reference: Any) -> float:
        """Of answers' log-probabilities (pairs, 2), chosen and rejected ones, as ``reference`` has them."""
        chosen, rejected = torch.from_numpy(answers).double().unbind(1)
        return float(dpo_loss(chosen, rejected, torch.from_numpy(reference).double(), self._beta, self._smoothing))


def token_log_probabilities(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(rows,): the sum over each row's learned tokens, of ``logits`` (rows, tokens, vocabulary)."""
    nats = F.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), labels[:, 1:], ignore_index=IGNORED, reduction="none"
    )
    return -nats.sum(1)


def dpo_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, reference: torch.Tensor, beta: float, smoothing: float
) -> torch.Tensor:
    """The mean over pairs of the sigmoid loss, with smoothed labels (Mitchell 2023, "A note on DPO with noisy
    preferences")."""
    margin = beta * ((chosen - rejected) - (reference[:, 0] - reference[:, 1]))
    return -((1 - smoothing) * F.logsigmoid(margin) + smoothing * F.logsigmoid(-margin)).mean()


def collate_pairs(pairs: Sequence[Pair], pad: int) -> dict[str, torch.Tensor]:
    """Both sides in one batch, so that one forward pass sees both."""
    batch = collate_causal([*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs)], pad)
    return {**batch, "reference": torch.tensor([pair.reference for pair in pairs])}


def _pairs(chosen: Sequence[Row], rejected: Sequence[Row]) -> list[Pair]:
    return [Pair(c.ids, c.target, (r.target,), (r.ids,)) for c, r in zip(chosen, rejected, strict=True)]


def _referenced(pairs: Sequence[Pair], known: Any) -> list[Pair]:
    return [
        Pair(pair.ids, pair.target, pair.marks, pair.others, (float(better), float(worse)))
        for pair, (better, worse) in zip(pairs, known, strict=True)
    ]


def _log_probabilities(model: nn.Module, pairs: Sequence[Pair], base: BaseModel, ports: Ports) -> Any:
    """(pairs, 2): of the chosen and of the rejected answers, in nats."""
    rows = [*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs)]
    losses = completion_losses(model, rows, base.tokens.pad, ports.lease)
    return -losses.nats.reshape(2, -1).T
