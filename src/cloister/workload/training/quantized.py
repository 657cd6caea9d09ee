"""Bases whose linear layers are held in 4 bits: NF4 with double quantization (Dettmers et al. 2023, "QLoRA: Efficient
finetuning of quantized LLMs", section 3), by bitsandbytes, as transformers quantizes while it loads.

Each layer is dequantized whenever it is used, forward and backward, and computed in the precision of what runs through
it. There is no other copy of the base: it is compared as it is held, before and after, and the card's lines open it in
the same 4 bits. Run on CPUs only so far; GPUs take the same code.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import bitsandbytes
import torch
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from ...errors import Misuse

__all__ = ["FOUR_BITS", "FourBitLinear", "check_widths", "compute_through", "held_bytes", "quantization"]

_MULTIPLE = 64  # numbers that share a scale; bitsandbytes' CPU kernels fail on widths in between
# As the usage snippet of a release says it.
FOUR_BITS = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}


class FourBitLinear(bitsandbytes.nn.Linear4bit):  # type: ignore[misc]
    """Without the packed bfloat16 kernels that bitsandbytes switches to for evaluation on some CPUs: training and
    evaluation see the same weights in the same precision, and nothing about the layer changes between them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        bias = None if self.bias is None else self.bias.to(x.dtype)
        found: torch.Tensor = bitsandbytes.matmul_4bit(x, self.weight, bias=bias, quant_state=self.weight.quant_state)
        return found


def quantization() -> Any:
    """For ``from_pretrained``: which then quantizes tensor by tensor. Embeddings, norms and language heads stay."""
    return BitsAndBytesConfig(**FOUR_BITS, bnb_4bit_compute_dtype=torch.float32)


def check_widths(shapes: nn.Module) -> None:
    """Misuse (``model.quantize``) where a linear layer of a transformer block has a width that can't be quantized."""
    linear = (m for name, m in shapes.named_modules() if isinstance(m, nn.Linear | Conv1D) and "." in name)
    if any(size % _MULTIPLE for module in linear for size in module.weight.shape):
        raise Misuse(
            "model.quantize",
            f"The base has linear layers whose width is no multiple of {_MULTIPLE}, as 4 bits need it; use lora.",
        )


def compute_through(model: nn.Module) -> nn.Module:
    """The quantized layers' class is replaced in place; their weights stay what they are."""
    for module in model.modules():
        if type(module) is bitsandbytes.nn.Linear4bit:
            module.__class__ = FourBitLinear
    return model


def held_bytes(modules: Iterable[nn.Module]) -> int:
    """Bytes of the modules' own weights, with the scales of those that are quantized."""
    total = 0
    for module in modules:
        tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        total += sum(tensor.nbytes for tensor in tensors)
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            total += sum(value.nbytes for value in state.as_dict(packed=True).values())
    return total
