"""What a run unlearns: general text that is measured before and after, and mixed into what is learned (replay).

One half of the general text (at most 256 texts of it) is only ever measured, so that the figure is of text that nothing
was learned from; the other half is replayed, and tells EWC (``consolidation``) which weights matter. Which is which
follows from the texts and the recipe's seed alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Sampler

from ...contracts.recipe import Recipe
from ...crypto import frame, sha256
from ...errors import Misuse
from ..data import split_rows
from ..evaluation import Evaluation, built_in_text, decimal_figure, evaluate_drift, evaluate_forgetting
from .base_model import BaseModel
from .batching import Row, epoch_order
from .consolidation import Penalty, consolidation
from .heads import PooledEncoder, Pooling, choose_pooling
from .ports import Lease
from .predict import completion_losses, embeddings
from .seq2seq import halved
from .tokenize import encode_documents, encode_labelled, text_bytes

__all__ = ["GeneralText", "MixedSampler", "mixed_order"]

_LEAST, _MOST = 10, 256  # texts; more say little more about a mean, and cost time in every run
_LONGEST = 512  # tokens of a measured row
_MEGABATCH = 50  # steps whose general rows are dealt out by length together: as in ``batching``


@dataclass
class GeneralText:
    """General text of one run, and what the base could do on it. ``texts``: None for the project's own.

    ``before_language`` or ``before_encoder`` looks at the base, untouched; ``after`` compares.
    """

    recipe: Recipe
    base: BaseModel
    lease: Lease
    texts: Sequence[str] | None = None
    max_length: int = 0
    measured: list[Row] = field(default_factory=list)
    found: NDArray[Any] | None = None
    penalty: Penalty | None = None
    facts: dict[str, str | int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        texts = built_in_text() if self.texts is None else self.texts
        if len(set(texts)) < _LEAST:
            raise Misuse("general.few", f"The general text holds fewer than {_LEAST} different rows; give more of it.")
        share = min(Decimal("0.5"), Decimal(_MOST) / len(texts))
        split = split_rows(texts, None, share, self.recipe.seed)
        self._held, self._learned = ([texts[row] for row in part] for part in (split.validation, split.training))

    def before_language(self, model: nn.Module, max_length: int) -> None:
        """The loss of a language model of at most ``max_length`` tokens a row."""
        self.max_length = max_length
        self.measured = self.pieces(self._held)
        self.found = self._nats(model)

    def before_encoder(self, encoder: nn.Module, max_length: int) -> None:
        """The embeddings of an encoder without its head, or of a decoder's body."""
        self.measured = encode_labelled(
            self.base.tokenizer, self._held, [0] * len(self._held), min(max_length, _LONGEST)
        )
        self.found = self._vectors(encoder)

    def after(self, model: Any) -> Evaluation:
        """What ``model`` does on the same rows: the trained language model, or the one that holds an ``encoder``."""
        assert self.found is not None  # every task looks at its base first
        if self.found.ndim == 1:  # a loss a row; of an encoder, a vector
            tokens = np.array([_written(row) for row in self.measured], dtype=np.int64)
            sizes = text_bytes(self.base, self.measured)
            both = evaluate_forgetting(self.found, self._nats(model), tokens, sizes, self.recipe.seed)
        else:
            both = evaluate_drift(self.found, self._vectors(model.encoder), self.recipe.seed)
        if self.penalty is not None:
            self.facts["ewc_penalty"] = f"{decimal_figure(self.penalty.value()):f}"
        source = "built-in" if self.texts is None else self.recipe.general or "given"
        return Evaluation(both.scores, {**both.facts, **self.facts, "general_text": source})

    def hold(self, model: nn.Module) -> None:
        """Before the first step: what EWC holds, if the recipe asks for it."""
        if self.recipe.ewc is not None:
            self.penalty = consolidation(model, self.recipe, self.pieces(), self.lease)

    def replayed(self) -> list[Row]:
        """What is mixed into the data's rows; nothing for a recipe without replay."""
        if self.recipe.replay is None:
            return []
        return self._rows(self._learned, self.max_length, ended=True)

    def count(self, order: Iterator[list[int]], rows: int, replayed: Sequence[Row]) -> None:
        """``order``: the rows of each step that was made, of which those from ``rows`` on are general text. The data's
        own are counted elsewhere."""
        drawn = [replayed[row - rows] for step in order for row in step if row >= rows]
        if replayed:
            tokens = sum(len(row.ids) + sum(map(len, row.others)) for row in drawn)
            self.facts.update({"replay_rows": len(drawn), "replay_tokens": tokens})

    def pieces(self, texts: Sequence[str] | None = None) -> list[Row]:
        """Rows of at most 512 tokens without an end, at most 256 of them: of the half that isn't measured, if ``texts``
        names none."""
        length = min(self.max_length, _LONGEST)
        given = self._learned if texts is None else texts
        rows = self._rows(given, length, ended=False)
        chosen = np.random.default_rng(self.recipe.seed).permutation(len(rows))[:_MOST]
        return [rows[place] for place in sorted(chosen.tolist())]

    def _rows(self, texts: Sequence[str], length: int, *, ended: bool) -> list[Row]:
        rows = encode_documents(self.base.tokenizer, self.base.tokens, texts, length, ended=ended)
        return halved(rows, self.base.tokens) if self.base.is_encoder_decoder else rows

    def _nats(self, model: nn.Module) -> NDArray[Any]:
        return completion_losses(model, self.measured, self.base.tokens.pad, self.lease).nats.astype(np.float64)

    def _vectors(self, encoder: nn.Module) -> NDArray[Any]:
        pooling = Pooling(choose_pooling(self.recipe.pooling, self.base).mode, True)
        return embeddings(PooledEncoder(encoder, pooling), self.measured, self.base.tokens.pad, self.lease)


def _written(row: Row) -> int:
    """How many tokens of a measured row have a loss."""
    return len(row.others[0]) - row.target if row.others else len(row.ids) - 1


def mixed_order(
    lengths: Sequence[int], others: Sequence[int], step: int, replayed: int, seed: int, epoch: int
) -> list[int]:
    """Every row once, and beside each step's rows ``replayed`` rows of general text, up to ``step`` rows; those are
    numbered on from ``len(lengths)``. A last step that isn't full has its share of them.

    A pure function of its arguments, as ``epoch_order`` is. Each epoch draws anew, and no general row is drawn again
    before all were.
    """
    own = step - replayed
    order = epoch_order(lengths, own, seed, epoch)
    steps = [order[start : start + own] for start in range(0, len(order), own)]
    counts = [(len(rows) * replayed + own - 1) // own for rows in steps]
    drawn = _drawn(len(others), sum(counts), seed, epoch)
    dealt: list[list[int]] = [[] for _ in steps]
    for start in range(0, len(steps), _MEGABATCH):
        group = range(start, min(start + _MEGABATCH, len(steps)))
        number = sum(counts[place] for place in group)
        pool, drawn = sorted(drawn[:number], key=lambda row: others[row]), drawn[number:]
        # Long ones to the steps of long rows: a batch is padded to its longest.
        for place in sorted(group, key=lambda place: max(lengths[row] for row in steps[place])):
            dealt[place], pool = pool[: counts[place]], pool[counts[place] :]
    return [row for rows, more in zip(steps, dealt, strict=True) for row in (*rows, *(len(lengths) + m for m in more))]


def _drawn(rows: int, number: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(
        int.from_bytes(sha256(frame("cloister/replay/v1", seed, epoch))[:6], "big")
    )
    out: list[int] = []
    while len(out) < number:
        out += torch.randperm(rows, generator=generator).tolist()
    return out[:number]


class MixedSampler(Sampler[int]):
    """``mixed_order`` as the Trainer wants it; ``set_epoch`` is called before each epoch."""

    def __init__(self, lengths: Sequence[int], others: Sequence[int], step: int, replayed: int, seed: int) -> None:
        self._arguments = (lengths, others, step, replayed, seed)
        self._epoch, self._length = 0, len(mixed_order(*self._arguments, 0))

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        return iter(mixed_order(*self._arguments, self._epoch))
