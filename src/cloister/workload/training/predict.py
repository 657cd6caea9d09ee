"""Running a model over rows without learning: embeddings, logits, and each completion's loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from .batching import IGNORED, Row, collate_labelled, collate_pairs, collate_tags, text_collate
from .heads import PooledClassifier, PooledEncoder, TokenClassifier
from .ports import Lease

__all__ = ["CompletionLoss", "completion_losses", "embeddings", "logits", "pair_passes", "word_outputs"]

_TOKENS = 4096  # padded tokens of a batch: enough to fill the cores, little memory
Floats = NDArray[np.float32]


def embeddings(model: PooledClassifier | PooledEncoder, rows: Sequence[Row], pad: int, lease: Lease) -> Floats:
    """(rows, width): pooled embeddings in float32, in the order of ``rows``."""

    def step(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return model.embed(batch["input_ids"], batch["attention_mask"])

    return _run(model, rows, partial(collate_labelled, pad=pad), step, lease)


def logits(model: PooledClassifier, rows: Sequence[Row], pad: int, lease: Lease) -> Floats:
    """(rows, labels)."""

    def step(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        found: torch.Tensor = model(batch["input_ids"], batch["attention_mask"])["logits"]
        return found

    return _run(model, rows, partial(collate_labelled, pad=pad), step, lease)


def pair_passes(model: PooledClassifier, rows: Sequence[Row], pad: int, lease: Lease, *, embed: bool) -> Floats:
    """Of pairs read together: their embeddings (rows, width), or their logits (rows, 1)."""

    def step(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        given = {name: tensor for name, tensor in batch.items() if name != "labels"}
        found: torch.Tensor = model.embed(**given) if embed else model(**given)["logits"]
        return found

    return _run(model, rows, partial(collate_pairs, pad=pad), step, lease)


def word_outputs(model: TokenClassifier, rows: Sequence[Row], pad: int, lease: Lease, *, embed: bool) -> list[Floats]:
    """For each row what its words' first pieces give, (words, width): hidden states, or logits."""

    def step(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        given = (batch["input_ids"], batch["attention_mask"])
        found: torch.Tensor = model.hidden(*given) if embed else model(*given)["logits"]
        return found

    out: list[Floats] = [np.empty((0, 0), dtype=np.float32)] * len(rows)
    for places, values in _passes(model, rows, partial(collate_tags, pad=pad), step, lease):
        for place, value in zip(places, values, strict=True):
            out[place] = value[[i for i, mark in enumerate(rows[place].marks) if mark != IGNORED]]
    return out


class CompletionLoss:
    """Per row: summed negative log likelihood in nats, and how many tokens it sums over."""

    def __init__(self, nats: Floats, tokens: NDArray[np.int64]) -> None:
        self.nats = nats
        self.tokens = tokens


def completion_losses(model: nn.Module, rows: Sequence[Row], pad: int, lease: Lease) -> CompletionLoss:
    """The loss of every row's completion under ``model``, tokens after the first that can be predicted."""

    def step(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        found = model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits.float()
        targets = batch["labels"]
        if "decoder_input_ids" not in batch:
            # Some adapters put virtual tokens in front; what is predicted after the last of them isn't counted either.
            found, targets = found[:, -targets.shape[1] : -1], targets[:, 1:]
        each = F.cross_entropy(found.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")
        return torch.stack([each.sum(1), (targets != IGNORED).sum(1).float()], dim=1)

    both = _run(model, rows, partial(text_collate(model), pad=pad), step, lease)
    return CompletionLoss(both[:, 0], both[:, 1].astype(np.int64))


def _run(
    model: nn.Module,
    rows: Sequence[Row],
    collate: Callable[[Sequence[Row]], Mapping[str, torch.Tensor]],
    step: Callable[[Mapping[str, torch.Tensor]], torch.Tensor],
    lease: Lease,
) -> Floats:
    pieces = list(_passes(model, rows, collate, step, lease))
    out = np.empty((len(rows), pieces[0][1].shape[1]), dtype=np.float32)
    for places, values in pieces:
        out[places] = values
    return out


def _passes(
    model: nn.Module,
    rows: Sequence[Row],
    collate: Callable[[Sequence[Row]], Mapping[str, torch.Tensor]],
    step: Callable[[Mapping[str, torch.Tensor]], torch.Tensor],
    lease: Lease,
) -> Iterator[tuple[list[int], Any]]:
    """Row numbers and what ``step`` gives for them, batch by batch."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for places in _batches(rows):
            lease.check()
            batch = {k: v.to(device) for k, v in collate([rows[p] for p in places]).items()}
            yield places, step(batch).float().cpu().numpy()
    model.train(was_training)


def _batches(rows: Sequence[Row]) -> list[list[int]]:
    """Row numbers by length, cut so that each padded batch holds about ``_TOKENS``."""
    sizes = [max(len(row.ids), *map(len, row.others), 0) for row in rows]
    order = sorted(range(len(rows)), key=lambda place: sizes[place])
    out: list[list[int]] = []
    for place in order:
        if out and sizes[place] * (len(out[-1]) + 1) <= _TOKENS:
            out[-1].append(place)
        else:
            out.append([place])
    return out
