"""Bases of two parts, an encoder that reads and a decoder that writes: what they do here, and general text for them.

Their prompts go to the encoder and their completions are what the decoder learns (``text.answer_ids``,
``batching.collate_answers``). The rest is as for every model that writes text (``generate``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ...contracts.recipe import Recipe
from ...errors import Misuse
from ..text import SpecialTokens
from .batching import IGNORED, Row

__all__ = ["answer_loss", "halved", "require_answers"]


def require_answers(recipe: Recipe) -> None:
    """Raises Misuse (``model.task``, ``recipe.combination``) where an encoder-decoder can't do what the recipe asks."""
    if recipe.task != "generation":
        raise Misuse(
            "model.task",
            f"The base is an encoder-decoder, which answers prompts; for task {recipe.task} choose another base.",
        )
    if recipe.columns.get("prompt") is None:
        raise Misuse(
            "model.task", "The base is an encoder-decoder, and its encoder has nothing to read; add columns.prompt."
        )
    if recipe.method == "qlora":
        raise _cannot("method", "A base of two parts isn't held in 4 bits here; use method lora.")
    if recipe.privacy is not None:
        raise _cannot("privacy", "Differential privacy isn't there for encoder-decoders; remove 'privacy'.")
    if recipe.ewc is not None:
        raise _cannot("ewc", "EWC isn't there for encoder-decoders; remove 'ewc', or use 'replay'.")
    for name in ("packing", "compile"):
        if getattr(recipe, name) == "on":
            raise _cannot(name, f"'{name}' isn't there for encoder-decoders; set it to auto.")


def answer_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """Cross entropy of the step's ``labels``, divided by how many of them are learned: the mean over a whole step, as
    for other models. The classes of transformers take the mean of each batch, which counts long answers for less where
    a step has several."""
    logits = outputs["logits"].flatten(0, 1).float()
    total = F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED, reduction="sum")
    return total / ((labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch)


def halved(rows: Sequence[Row], tokens: SpecialTokens) -> list[Row]:
    """Rows of plain text for an encoder-decoder: it reads the first half and writes the second."""
    head = () if tokens.begin is None else (tokens.begin,)
    tail = () if tokens.end is None else (tokens.end,)
    out = []
    for row in rows:
        middle = len(row.ids) // 2
        out.append(Row((*row.ids[:middle], *tail), len(head), others=((*head, *row.ids[middle:]),)))
    return out


def _cannot(key: str, reason: str) -> Misuse:
    return Misuse("recipe.combination", reason, key=key)
