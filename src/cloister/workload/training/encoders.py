"""What the tasks on an encoder share: the body, its head's start, texts of several columns as rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...contracts.recipe import Recipe
from ..evaluation import Probe
from .adapters import add_adapter, virtual_tokens
from .base_model import BaseModel
from .run import Ports, device

__all__ = ["body", "encode_pairs", "equip", "takes_types"]


def body(recipe: Recipe, base: BaseModel, ports: Ports) -> tuple[Any, int, int]:
    """The bare encoder, its width, and how long a row may be. What it makes of general text is remembered, and the
    recipe's seed is set for the head to be drawn."""
    encoder: Any = base.encoder(four_bits=recipe.method == "qlora").to(device())
    max_length = base.max_length(recipe.max_length, encoder, taken=virtual_tokens(recipe))
    ports.general.before_encoder(encoder, max_length)
    torch.manual_seed(recipe.seed)
    return encoder, int(encoder.config.hidden_size), max_length


def equip(model: Any, recipe: Recipe, probe: Probe | None = None) -> None:
    """The head begins as the probe: training starts from the base's best instead of distorting the encoder to meet a
    random head (Kumar et al. 2022, "Fine-tuning can distort pretrained features")."""
    if probe is not None:
        model.start_head(torch.from_numpy(probe.weight), torch.from_numpy(probe.bias))
    torch.manual_seed(recipe.seed)
    model.encoder = add_adapter(model.encoder, recipe, causal=False)


def takes_types(recipe: Recipe, base: BaseModel) -> bool:
    """Does the base tell a pair's two texts apart by token types? PEFT has no place for them beside virtual tokens."""
    types = base.config.get("type_vocab_size", 2 if base.config["model_type"] in ("bert", "electra") else 0)
    return isinstance(types, int) and types > 1 and virtual_tokens(recipe) == 0


def encode_pairs(
    base: BaseModel, firsts: Sequence[str], seconds: Sequence[str], max_length: int
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Ids and token types of pairs as the base's own tokenizer joins them; the longer text is cut first."""
    base.tokenizer.enable_truncation(max_length, strategy="longest_first")
    limit = 64 * max_length  # characters: no tokenizer makes fewer tokens of ordinary text
    try:
        pairs = [(a[:limit], b[:limit]) for a, b in zip(firsts, seconds, strict=True)]
        found = []
        for start in range(0, len(pairs), 4096):
            encoded = base.tokenizer.encode_batch_fast(pairs[start : start + 4096])
            found += [(tuple(e.ids), tuple(e.type_ids)) for e in encoded]
        return found
    finally:
        base.tokenizer.no_truncation()
