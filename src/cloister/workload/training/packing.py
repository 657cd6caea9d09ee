"""Packing: the rows of a batch stand beside each other in one line, and no step computes padding.

It changes how a batch is laid out and nothing else. Positions begin anew with each row, attention runs row by row, and
no row's first token is a target of the row before. Where the rows begin is told in the place of the attention mask:
transformers passes a mask of four dimensions on to the attention as it is, so every architecture carries it.

``sdpa`` understands such masks, beside all others, as soon as this module is imported.

Whether a model keeps rows apart this way is not believed but tried: its logits for two rows beside each other must be
those for each alone (``keeps_rows_apart``).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .batching import IGNORED, Row, learned

__all__ = ["collate_line", "keeps_rows_apart"]

_PLAIN = ALL_ATTENTION_FUNCTIONS["sdpa"]
_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
_CLOSE = 1e-3  # of the largest logit: float32 rounds far below it, another row's influence lies far above
_TRIED = 16  # tokens of each row that is tried


def collate_line(rows: Sequence[Row], **_: int) -> dict[str, torch.Tensor]:
    """A batch for a causal model as one line: (1, tokens of all rows). ``attention_mask``: (1, 1, 1, rows + 1), where
    each row begins and the last one ends. There is nothing to pad, whatever it is told to pad with."""
    lengths = [len(row.ids) for row in rows]
    return {
        "input_ids": torch.tensor([[number for row in rows for number in row.ids]]),
        "position_ids": torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0),
        "labels": torch.tensor([[mark for row in rows for mark in (IGNORED, *learned(row)[1:])]]),
        "attention_mask": torch.tensor([0, *lengths]).cumsum(0).view(1, 1, 1, -1),
    }


def keeps_rows_apart(model: nn.Module, rows: Sequence[Row]) -> bool:
    """Whether ``model`` gives rows in a line the logits that each has alone.

    A window of attention that is narrower than the longest row counts as no.
    """
    config: Any = model.config
    window = getattr(config, "sliding_window", None)
    if isinstance(window, int) and window < max(len(row.ids) for row in rows):
        return False
    first = max(rows, key=lambda row: min(len(row.ids), _TRIED)).ids[:_TRIED]
    tried = [Row(first, 0), Row(first[::-1], 0), Row(first[: max(1, len(first) // 2)], 0)]
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            batch = {k: v.to(device) for k, v in collate_line(tried).items() if k != "labels"}
            beside = model(**batch).logits[0]
            alone = [model(input_ids=torch.tensor([row.ids], device=device)).logits[0] for row in tried]
    except (TypeError, ValueError, RuntimeError):
        return False  # it takes no positions, or no such mask
    finally:
        model.train(was_training)
    wanted = torch.cat(alone)
    return bool((beside - wanted).abs().max() <= _CLOSE * wanted.abs().max())


def _each_row(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, borders: torch.Tensor, scale: float) -> torch.Tensor:
    """Causal attention within each row. ``q``, ``k``, ``v``: (1, heads, tokens, width)."""
    if q.device.type == "cpu" and q.shape[-1] == v.shape[-1]:
        out: torch.Tensor = torch.ops.cloister.row_attention(q, k, v, borders, scale)[0]
        return out
    # Not run on a GPU yet: SDPA chooses its kernel, row by row.
    sizes = borders.diff().tolist()
    rows = zip(*(torch.split(t, sizes, dim=2) for t in (q, k, v)), strict=True)
    found = [F.scaled_dot_product_attention(a, b, c, is_causal=True, scale=scale) for a, b, c in rows]
    return torch.cat(found, dim=2)


def _rows(borders: torch.Tensor) -> list[tuple[Any, Any, slice]]:
    ends: list[int] = borders.tolist()
    return [(slice(None), slice(None), slice(a, b)) for a, b in pairwise(ends)]


# As operators of its own, the loop over rows is one node to torch.compile, whatever the number of rows.
@torch.library.custom_op("cloister::row_attention", mutates_args=())
def _row_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, borders: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    out, sums = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)
    for row in _rows(borders):
        out[row], sums[row] = _FLASH(q[row], k[row], v[row], 0.0, True, scale=scale)
    return out, sums


@_row_attention.register_fake
def _(*given: Any) -> Any:
    q = given[0]
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("cloister::row_attention_backward", mutates_args=())
def _row_attention_backward(
    gradient: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, sums: torch.Tensor,
    borders: torch.Tensor, scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    found = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    for row in _rows(borders):
        parts = _FLASH_BACKWARD(gradient[row], q[row], k[row], v[row], out[row], sums[row], 0.0, True, scale=scale)
        for whole, part in zip(found, parts, strict=True):
            whole[row] = part
    return found


@_row_attention_backward.register_fake
def _(*given: Any) -> Any:
    return tuple(torch.empty_like(each) for each in given[1:4])


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    q, k, v, borders, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, *output, borders)


def _back(ctx: Any, gradient: torch.Tensor, _: Any) -> Any:
    return *torch.ops.cloister.row_attention_backward(gradient, *ctx.saved_tensors, ctx.scale), None, None


_row_attention.register_autograd(_back, setup_context=_keep)


def _attention(module: nn.Module, q: Any, k: Any, v: Any, mask: Any, **kwargs: Any) -> Any:
    if mask is None or mask.is_floating_point() or mask.dtype == torch.bool:
        return _PLAIN(module, q, k, v, mask, **kwargs)
    if kwargs.get("softcap") is not None or kwargs.get("position_bias") is not None:
        raise ValueError("attention with a cap or a bias is not computed row by row")
    scale = kwargs.get("scaling") or q.shape[-1] ** -0.5
    groups = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(groups, dim=1) if groups > 1 else t for t in (k, v))
    # float32 on CPUs for the reason that ``precision`` gives.
    width = torch.float32 if q.device.type == "cpu" else q.dtype
    with torch.autocast(q.device.type, enabled=False):
        out = _each_row(q.to(width), k.to(width), v.to(width), mask.view(-1), scale)
    return out.transpose(1, 2).to(q.dtype), None


ALL_ATTENTION_FUNCTIONS["sdpa"] = _attention
