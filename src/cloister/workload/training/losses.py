"""The loss of a language model without its logits: the head and cross entropy in one, a few hundred tokens at a time.

With 32,000 words, the float32 logits of a batch are a hundred times larger than its hidden states. Here each chunk's
logits turn into its share of the gradient at once and are forgotten, and only tokens that are learned are looked at.
The same idea is known from Liger's fused linear cross entropy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from .batching import IGNORED

__all__ = ["fused_loss", "has_plain_head", "head_loss"]

_LOGITS = 1 << 24  # of a chunk: enough for a matrix product at full speed
_CLOSE = 1e-4


def head_loss(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
) -> torch.Tensor:
    """The summed negative log likelihood, in nats, of ``targets`` (tokens,) given ``hidden`` (tokens, width).

    Under autocast, products are in its type, as they are without this; sums of gradients and the loss are float32.
    """
    function: Any = _HeadLoss
    found: torch.Tensor = function.apply(hidden, weight, bias, targets)
    return found


@contextmanager
def fused_loss(causal: Any) -> Iterator[None]:
    """Within: ``causal`` computes the loss of labelled batches by ``head_loss``, and gives no logits with it."""
    plain, head, body = causal.forward, causal.get_output_embeddings(), causal.base_model

    def forward(labels: Any = None, num_items_in_batch: Any = None, **inputs: Any) -> Mapping[str, torch.Tensor]:
        if labels is None:
            unlabelled: Mapping[str, torch.Tensor] = plain(**inputs)
            return unlabelled
        hidden = body(**{name: value for name, value in inputs.items() if value is not None})[0]
        targets = labels[:, 1:].flatten()
        places = (targets != IGNORED).nonzero().squeeze(1)
        kept = hidden[:, :-1].flatten(0, 1).index_select(0, places)
        total = head_loss(kept, head.weight, head.bias, targets[places])
        return {"loss": total / (len(places) if num_items_in_batch is None else num_items_in_batch)}

    causal.forward = forward
    try:
        yield
    finally:
        del causal.forward


def has_plain_head(causal: Any, batch: Mapping[str, torch.Tensor]) -> bool:
    """Whether ``fused_loss`` gives ``causal`` the loss that it has anyway: some scale or cap their logits."""
    if type(causal.get_output_embeddings()) is not nn.Linear or "forward" in vars(causal):
        return False
    device = next(causal.parameters()).device
    batch = {name: value.to(device) for name, value in batch.items()}
    was_training = causal.training
    causal.eval()
    try:
        with torch.no_grad():
            wanted = float(causal(**batch)["loss"])
            with fused_loss(causal):
                found = float(causal(**batch)["loss"])
    except (TypeError, RuntimeError):
        return False
    finally:
        causal.train(was_training)
    return abs(found - wanted) <= _CLOSE * abs(wanted)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    @override
    def forward(ctx: Any, hidden: Any, weight: Any, bias: Any, targets: Any) -> torch.Tensor:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        wanted = ctx.needs_input_grad[:3]
        with torch.autocast(kind, enabled=False):
            loss, *gradients = _chunks(hidden.to(dtype), weight.to(dtype), bias, targets, wanted)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [t if t is None else t.dtype for t in (hidden, weight, bias)]
        return loss

    @staticmethod
    @override
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        found = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return *(None if t is None else t.mul(gradient).to(dtype) for t, dtype in found), None


def _chunks(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, wanted: Any
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """The loss, and its gradients by ``hidden``, ``weight`` and ``bias`` as far as ``wanted``."""
    size = max(64, _LOGITS // weight.shape[0])
    loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
    by_hidden = torch.empty_like(hidden) if wanted[0] else None
    by_weight = torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None
    by_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and wanted[2] else None
    for start in range(0, len(targets), size):
        rows = hidden[start : start + size]
        logits = (rows @ weight.t()).float()
        if bias is not None:
            logits += bias.float()
        nats, share = _chunk_loss(logits, targets[start : start + size].unsqueeze(1), any(wanted))
        loss += nats
        if share is None:
            continue
        if by_bias is not None:
            by_bias += share.sum(0)
        share = share.to(hidden.dtype)
        if by_hidden is not None:
            torch.mm(share, weight, out=by_hidden[start : start + size])
        if by_weight is not None:
            by_weight += share.t() @ rows
    return loss, by_hidden, by_weight, by_bias


def _chunk_loss(logits: torch.Tensor, targets: torch.Tensor, learns: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(nats, their gradient by the logits). ``logits`` are used up."""
    right = logits.gather(1, targets)
    highest = logits.amax(1, keepdim=True)
    logits.sub_(highest).exp_()
    total = logits.sum(1, keepdim=True)
    nats = (total.log() + highest - right).sum()
    if not learns:
        return nats, None
    return nats, logits.div_(total).scatter_add_(1, targets, torch.full_like(right, -1.0))
