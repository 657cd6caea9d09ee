"""Rows of token ids, the order in which they are seen, and how a batch is padded."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import Dataset, Sampler

from ...crypto import frame, sha256

__all__ = ["IGNORED", "EpochSampler", "Row", "Rows", "collate_causal", "collate_labelled", "epoch_order", "row_digest"]

IGNORED = -100  # cross entropy passes over targets of this value
_MEGABATCH = 50  # batches that are sorted by length together: little padding, and still a random mixture


@dataclass(frozen=True)
class Row:
    """``ids``: token ids. ``target``: the label's number, or how many leading ids are prompt and not learned."""

    ids: tuple[int, ...]
    target: int


class Rows(Dataset[Row]):
    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]


def row_digest(rows: Sequence[Row]) -> str:
    """A name for exactly these rows in this order: a checkpoint may go on only with what it began with."""
    digest = hashlib.sha256(frame("cloister/rows/v1", len(rows)))
    for row in rows:
        digest.update(frame(row.target, array("q", row.ids).tobytes()))
    return digest.hexdigest()


def epoch_order(lengths: Sequence[int], batch: int, seed: int, epoch: int) -> list[int]:
    """Every row once, rows of similar length beside each other, the batches in random order.

    A pure function of its arguments: a resumed run sees the rows in the order of the uninterrupted one without any
    generator's state. A last batch that isn't full stays last, so that the batches keep their borders.
    """
    generator = torch.Generator().manual_seed(
        int.from_bytes(sha256(frame("cloister/order/v1", seed, epoch))[:6], "big")
    )
    shuffled: list[int] = torch.randperm(len(lengths), generator=generator).tolist()
    span = batch * _MEGABATCH
    batches: list[list[int]] = []
    for start in range(0, len(shuffled), span):
        group = sorted(shuffled[start : start + span], key=lambda row: -lengths[row])
        batches += [group[i : i + batch] for i in range(0, len(group), batch)]
    rest = [b for b in batches if len(b) < batch]
    full = [b for b in batches if len(b) == batch]
    order = torch.randperm(len(full), generator=generator).tolist()
    return [row for b in [*(full[i] for i in order), *rest] for row in b]


class EpochSampler(Sampler[int]):
    """``epoch_order`` as the Trainer wants it; ``set_epoch`` is called before each epoch."""

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        self._arguments = (lengths, batch, seed)
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._arguments[0])

    def __iter__(self) -> Iterator[int]:
        return iter(epoch_order(*self._arguments, self._epoch))


def _padded(rows: Sequence[Row], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + (pad,) * (width - len(row.ids)) for row in rows])
    lengths = torch.tensor([len(row.ids) for row in rows])
    return ids, (torch.arange(width).unsqueeze(0) < lengths.unsqueeze(1)).long()


def collate_labelled(rows: Sequence[Row], pad: int) -> dict[str, torch.Tensor]:
    """A batch for classification, padded on the right to its longest row."""
    ids, mask = _padded(rows, pad)
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([row.target for row in rows])}


def collate_causal(rows: Sequence[Row], pad: int) -> dict[str, torch.Tensor]:
    """A batch for a causal model: only the completion's tokens are targets."""
    ids, mask = _padded(rows, pad)
    labels = ids.masked_fill(mask == 0, IGNORED)
    for place, row in enumerate(rows):
        labels[place, : row.target] = IGNORED
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
