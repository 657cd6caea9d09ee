"""bfloat16 where it pays, float32 where it matters.

On CPUs with AMX, and on GPUs, matrix products in bfloat16 are several times faster. Everything that is small and
delicate stays float32: trainable weights, optimizer, head, loss. Results are always evaluated in float32, as
recipients open them; a base that is held in 4 bits is opened in 4 bits by them, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from peft import PeftModel, PeftType
from peft.helpers import disable_input_dtype_casting
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

__all__ = ["autocast", "training_precision", "use_bf16"]


def use_bf16(precision: str) -> bool:
    """What ``auto`` means here: bfloat16 if the hardware multiplies it, else float32."""
    if precision != "auto":
        return precision == "bf16"
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_amx_tile_supported())


def autocast(device: torch.device, enabled: bool) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, dtype=torch.bfloat16) if enabled else nullcontext()


@contextmanager
def training_precision(model: nn.Module, enabled: bool) -> Iterator[None]:
    """Within: the frozen linear layers of a LoRA model hold bfloat16. Afterwards: their float32 weights, unchanged.

    Autocast would round the same weights to the same bfloat16 values at every step; doing it once saves a quarter of a
    step. Full fine-tuning has no frozen layers, and nothing happens.
    """
    frozen = _frozen_linears(model) if enabled else []
    kept = [(m, m.weight.data, None if m.bias is None else m.bias.data) for m in frozen]
    on_cpu = next(model.parameters()).device.type == "cpu"
    casting = [disable_input_dtype_casting(m) for m in model.modules() if enabled and _is_lora(m)]
    try:
        for module in frozen:
            module.weight.data = module.weight.data.to(torch.bfloat16)
            if module.bias is not None:
                module.bias.data = module.bias.data.to(torch.bfloat16)
        with _float_attention(enabled and on_cpu), _all(casting):
            yield
    finally:
        for module, weight, bias in kept:
            module.weight.data = weight
            if bias is not None:
                module.bias.data = bias


def _is_lora(module: nn.Module) -> bool:
    return isinstance(module, PeftModel) and module.active_peft_config.peft_type == PeftType.LORA


def _frozen_linears(model: nn.Module) -> list[nn.Linear]:
    # A language head often shares its weight with the embedding, whose sums must stay float32.
    shared = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    linears = [m for m in model.modules() if isinstance(m, nn.Linear) and id(m.weight) not in shared]
    # What is held in 4 bits has no floats to round.
    return [m for m in linears if not m.weight.requires_grad and m.weight.is_floating_point()]


@contextmanager
def _all(managers: list[AbstractContextManager[Any]]) -> Iterator[None]:
    if not managers:
        yield
        return
    with managers[0], _all(managers[1:]):
        yield


@contextmanager
def _float_attention(enabled: bool) -> Iterator[None]:
    """torch's CPU kernel for the backward of bfloat16 attention is 20 times slower than its float32 one (52 against
    2.5 ms a layer on MiniLM), which ate all that bfloat16 gained. So only the attention product runs in float32."""
    if not enabled:
        yield
        return
    plain = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attention(module: nn.Module, q: Any, k: Any, v: Any, mask: Any, **kwargs: Any) -> Any:
        if mask is not None and not mask.is_floating_point() and mask.dtype != torch.bool:
            return plain(module, q, k, v, mask, **kwargs)  # where rows begin: ``packing`` sees to the rest
        if mask is not None and mask.is_floating_point():
            mask = mask.float()
        if kwargs.get("position_bias") is not None:  # T5's, which is added to the products
            kwargs["position_bias"] = kwargs["position_bias"].float()
        with torch.autocast("cpu", enabled=False):
            out, weights = plain(module, q.float(), k.float(), v.float(), mask, **kwargs)
        return out.to(q.dtype), weights

    ALL_ATTENTION_FUNCTIONS["sdpa"] = attention
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = plain
