"""Which rows of each batch are whose. All processes together see the batches that one process would see."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from ..batching import IGNORED

__all__ = ["SHARE", "Shares", "share_loader"]

SHARE = "share"  # of the batch's mean, times the number of processes; 0: this process has none of its rows


@dataclass(frozen=True)
class _Piece:
    """A row of the data set, and how many of the batch's rows are this process's and everybody's."""

    place: int
    own: int
    all: int


class Shares(Sampler[list[_Piece]]):
    """Every ``size``-th row of each batch, beginning with the ``rank``-th. Rows of a batch are sorted by length, so the
    shares are about as long.

    A batch with fewer rows than processes, at an epoch's end, leaves some without any. They compute its first row for
    nothing, because every process has to take part in every exchange.
    """

    def __init__(self, order: Sampler[int], batch: int, rank: int, size: int) -> None:
        self._batches = BatchSampler(order, batch, drop_last=False)
        self._rank, self._size = rank, size

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[_Piece]]:
        for batch in self._batches:
            own = batch[self._rank :: self._size]
            yield [_Piece(place, len(own), len(batch)) for place in own or batch[:1]]


class _Pieces(Dataset[tuple[Any, _Piece]]):
    def __init__(self, rows: Dataset[Any]) -> None:
        self._rows: Any = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, piece: _Piece) -> tuple[Any, _Piece]:
        return self._rows[piece.place], piece


@dataclass(frozen=True)
class _Collate:
    """The task's own batch, with ``SHARE``. Without an own row nothing of it counts: no label is one to be learned."""

    inner: Callable[[Sequence[Any]], Mapping[str, Any]]
    size: int

    def __call__(self, pieces: Sequence[tuple[Any, _Piece]]) -> dict[str, Any]:
        batch = dict(self.inner([row for row, _ in pieces]))
        piece = pieces[0][1]
        if piece.own == 0 and isinstance(labels := batch.get("labels"), torch.Tensor):
            batch["labels"] = torch.full_like(labels, IGNORED)
        return {**batch, SHARE: piece.own * self.size / piece.all}


def share_loader(
    rows: Dataset[Any], collate: Callable[[Sequence[Any]], Mapping[str, Any]], shares: Shares, size: int, *, pin: bool
) -> DataLoader[Any]:
    return DataLoader(_Pieces(rows), batch_sampler=shares, collate_fn=_Collate(collate, size), pin_memory=pin)
