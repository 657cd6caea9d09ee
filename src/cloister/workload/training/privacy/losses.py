"""Each row's own loss, from nothing but that row: what differential privacy shortens is the gradient of these."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from ..batching import IGNORED
from ..heads import PooledClassifier

__all__ = ["row_losses"]


def row_losses(model: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """(rows,): cross entropy of the label, or the mean over the row's learned tokens.

    A mean of the row's own tokens, never of the batch's: a row's loss must not depend on who stands beside it.
    """
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    if isinstance(model, PooledClassifier):
        return F.cross_entropy(logits["logits"], batch["labels"], reduction="none")
    targets = batch["labels"][:, 1:]
    each = F.cross_entropy(
        logits.logits[:, :-1].float().transpose(1, 2), targets, ignore_index=IGNORED, reduction="none"
    )
    return each.sum(1) / (targets != IGNORED).sum(1).clamp(min=1)
