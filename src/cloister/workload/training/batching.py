"""Rows of token ids, the order in which they are seen, and how a batch is padded."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

from ...crypto import frame, sha256
from ..text import ENCODER_DECODERS

__all__ = [
    "IGNORED",
    "EpochSampler",
    "Row",
    "Rows",
    "collate_answers",
    "collate_causal",
    "collate_flags",
    "collate_labelled",
    "collate_matches",
    "collate_pairs",
    "collate_tags",
    "epoch_order",
    "is_encoder_decoder",
    "learned",
    "row_digest",
    "text_collate",
]

IGNORED = -100  # cross entropy passes over targets of this value
_MEGABATCH = 50  # batches that are sorted by length together: little padding, and still a random mixture


@dataclass(frozen=True)
class Row:
    """``ids``: token ids. ``target``: the label's number, how many leading ids are prompt and not learned, or a
    relevance in millionths.

    ``marks``: the numbers of all labels that hold, or one number an id (its tag or ``IGNORED``; its token type).
    ``others``: the ids of further texts that belong to this one; the text that is written, where ``ids`` are read by an
    encoder, and ``target`` counts of it.
    """

    ids: tuple[int, ...]
    target: int
    marks: tuple[int, ...] = ()
    others: tuple[tuple[int, ...], ...] = ()


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
        parts = (row.ids, row.marks, *row.others)
        digest.update(frame(row.target, len(parts), *(array("q", part).tobytes() for part in parts)))
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


def learned(row: Row) -> tuple[int, ...]:
    """The targets of a row for a causal model, one an id: itself or ``IGNORED``."""
    # Learned here and there, as in a conversation, or from the completion's first token on.
    return row.marks or (IGNORED,) * row.target + row.ids[row.target :]


def collate_causal(rows: Sequence[Row], pad: int) -> dict[str, torch.Tensor]:
    """A batch for a causal model: only the completion's tokens are targets."""
    ids, mask = _padded(rows, pad)
    width = ids.shape[1]
    labels = torch.tensor([learned(row) + (IGNORED,) * (width - len(row.ids)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def collate_answers(rows: Sequence[Row], pad: int, start: int) -> dict[str, torch.Tensor]:
    """A batch for an encoder-decoder: it reads ``ids`` and learns the first of ``others``, from ``target`` on.

    The decoder sees what it wrote so far, beginning with ``start``. Its padding is on the right, so causal attention
    hides it from all that is learned.
    """
    ids, mask = _padded(rows, pad)
    written, within = _padded([Row(row.others[0], 0) for row in rows], pad)
    targets = torch.tensor([row.target for row in rows]).unsqueeze(1)
    learned = (within == 1) & (torch.arange(written.shape[1]) >= targets)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "decoder_input_ids": torch.cat([torch.full((len(rows), 1), start), written[:, :-1]], dim=1),
        "labels": written.masked_fill(~learned, IGNORED),
    }


def is_encoder_decoder(model: Any) -> bool:
    return getattr(getattr(model, "config", None), "model_type", None) in ENCODER_DECODERS


def text_collate(model: Any) -> Callable[..., dict[str, torch.Tensor]]:
    """How rows become a batch for a ``model`` that writes text."""
    if is_encoder_decoder(model):
        return partial(collate_answers, start=model.config.decoder_start_token_id)
    return collate_causal


def collate_flags(rows: Sequence[Row], pad: int, labels: int) -> dict[str, torch.Tensor]:
    """A batch for several labels a row: (rows, labels) of 0 and 1."""
    ids, mask = _padded(rows, pad)
    flags = torch.zeros(len(rows), labels)
    for place, row in enumerate(rows):
        flags[place, list(row.marks)] = 1.0
    return {"input_ids": ids, "attention_mask": mask, "labels": flags}


def collate_tags(rows: Sequence[Row], pad: int) -> dict[str, torch.Tensor]:
    """A batch for tags: one target a piece, most of them ``IGNORED``."""
    ids, mask = _padded(rows, pad)
    width = ids.shape[1]
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": torch.tensor([row.marks + (IGNORED,) * (width - len(row.marks)) for row in rows]),
    }


def collate_pairs(rows: Sequence[Row], pad: int) -> dict[str, torch.Tensor]:
    """A batch of pairs read together, with the token types if the rows have them, and relevances from 0 to 1."""
    ids, mask = _padded(rows, pad)
    batch = {"input_ids": ids, "attention_mask": mask}
    if rows[0].marks:
        width = ids.shape[1]
        batch["token_type_ids"] = torch.tensor([row.marks + (0,) * (width - len(row.marks)) for row in rows])
    return {**batch, "labels": torch.tensor([[row.target / 1e6] for row in rows])}


def collate_matches(rows: Sequence[Row], pad: int) -> dict[str, torch.Tensor]:
    """Queries, their positives, then all negatives as one batch, and what else is known to be right."""
    positives = [row.others[0] for row in rows]
    texts = [*positives, *(text for row in rows for text in row.others[1:])]
    right: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for row in rows:
        right.setdefault(row.ids, set()).add(row.others[0])
    known = [[text in right[row.ids] and j != i for j, text in enumerate(texts)] for i, row in enumerate(rows)]
    ids, mask = _padded([*rows, *(Row(text, 0) for text in texts)], pad)
    return {"input_ids": ids, "attention_mask": mask, "known": torch.tensor(known)}
