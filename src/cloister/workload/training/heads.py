"""A classifier on any encoder: the pooling it was trained with, and one linear layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .base_model import BaseModel

__all__ = ["PooledClassifier", "PooledEncoder", "Pooling", "TokenClassifier", "choose_pooling", "pool"]

# Logits of a linear layer on unit vectors are bounded by its weights' norm. This factor lets weights of ordinary size,
# and so ordinary learning rates, give confident answers. It is multiplied into the weights that are exported.
_UNIT_SCALE = 10.0
_TEMPERATURE = 0.05  # what cosines are divided by before the softmax over a batch


@dataclass(frozen=True)
class Pooling:
    """``mode`` is mean (over real tokens) or first; ``normalize``: to unit length."""

    mode: str
    normalize: bool


def choose_pooling(wanted: str, base: BaseModel) -> Pooling:
    """The recipe's choice; for ``auto`` what the base was trained with, else the first token for an encoder.

    A decoder's first token has seen nothing, so without further word its mean is taken.
    """
    if wanted != "auto":
        return Pooling(wanted, wanted == "mean")
    if base.pooling is not None:
        return Pooling(*base.pooling)
    return Pooling("mean", True) if base.is_decoder else Pooling("first", False)


def pool(hidden: torch.Tensor, mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """(rows, tokens, width) and (rows, tokens) → (rows, width) in float32."""
    if pooling.mode == "mean":
        weights = mask.unsqueeze(-1).to(torch.float32)
        pooled = (hidden.float() * weights).sum(1) / weights.sum(1)
    else:
        pooled = hidden[:, 0].float()
    return F.normalize(pooled, dim=1) if pooling.normalize else pooled


class PooledClassifier(nn.Module):
    """``encoder`` → pooling → linear head. The head and the loss are computed in float32 whatever the encoder uses."""

    # The loss is the mean over all rows of a step: the Trainer says how many they are, over all its batches.
    accepts_loss_kwargs = True

    def __init__(
        self, encoder: nn.Module, width: int, labels: int, pooling: Pooling, *, independent: bool = False
    ) -> None:
        """``independent``: each label holds or not, by itself (sigmoid), instead of exactly one (softmax)."""
        super().__init__()
        self.independent = independent
        self.encoder = encoder
        self.pooling = pooling
        self.scale = _UNIT_SCALE if pooling.normalize else 1.0
        self.head = nn.Linear(width, labels)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def start_head(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Begin from a linear classifier that was fitted on the frozen encoder: (labels, width) and (labels,)."""
        with torch.no_grad():
            self.head.weight.copy_(weight / self.scale)
            self.head.bias.copy_(bias)

    def exported_head(self) -> dict[str, torch.Tensor]:
        """``weight`` and ``bias`` such that logits = embedding @ weight.T + bias."""
        return {"weight": (self.head.weight * self.scale).detach(), "bias": self.head.bias.detach().clone()}

    def embed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **types: torch.Tensor) -> torch.Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state
        # Some adapters put virtual tokens in front; only what the text's own tokens became is pooled.
        return pool(hidden[:, -input_ids.shape[1] :], attention_mask, self.pooling)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **types: torch.Tensor,
    ) -> dict[str, Any]:
        embedded = self.embed(input_ids, attention_mask, **types)
        with torch.autocast(embedded.device.type, enabled=False):
            logits = self.head(embedded * self.scale)  # called as a layer: private training reads gradients there
            loss = None
            if labels is not None:
                each = F.binary_cross_entropy_with_logits if self.independent else F.cross_entropy
                loss = each(logits, labels, reduction="sum") / (num_items_in_batch or labels.numel())
        return {"logits": logits} if loss is None else {"loss": loss, "logits": logits}


class TokenClassifier(nn.Module):
    """``encoder`` → linear head on every piece. ``labels`` of ``IGNORED`` (-100) are passed over."""

    accepts_loss_kwargs = True

    def __init__(self, encoder: nn.Module, width: int, labels: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, labels)

    def start_head(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        with torch.no_grad():
            self.head.weight.copy_(weight)
            self.head.bias.copy_(bias)

    def exported_head(self) -> dict[str, torch.Tensor]:
        return {"weight": self.head.weight.detach().clone(), "bias": self.head.bias.detach().clone()}

    def hidden(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return found[:, -input_ids.shape[1] :].float()  # without an adapter's virtual tokens

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> dict[str, Any]:
        hidden = self.hidden(input_ids, attention_mask)
        with torch.autocast(hidden.device.type, enabled=False):
            logits = self.head(hidden)
            if labels is None:
                return {"logits": logits}
            count = num_items_in_batch if num_items_in_batch is not None else (labels >= 0).sum()
            loss = F.cross_entropy(logits.transpose(1, 2), labels, reduction="sum") / max(int(count), 1)
        return {"loss": loss, "logits": logits}


class PooledEncoder(nn.Module):
    """``encoder`` → pooling to unit length. Learns by in-batch negatives (InfoNCE; van den Oord et al. 2018)."""

    def __init__(self, encoder: nn.Module, pooling: Pooling) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling

    def exported_head(self) -> dict[str, torch.Tensor]:
        return {}

    def embed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return pool(hidden[:, -input_ids.shape[1] :], attention_mask, self.pooling)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, known: torch.Tensor) -> dict[str, Any]:
        """Queries first, then as many positives, then negatives. ``known`` (queries, texts): right, but not the row's
        own positive, so neither wanted nor pushed away."""
        vectors = self.embed(input_ids, attention_mask)
        with torch.autocast(vectors.device.type, enabled=False):
            scores = vectors[: len(known)] @ vectors[len(known) :].T / _TEMPERATURE
            scores = scores.masked_fill(known, -torch.inf)
            loss = F.cross_entropy(scores, torch.arange(len(known), device=scores.device))
        return {"loss": loss, "logits": scores}
