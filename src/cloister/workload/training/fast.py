"""What makes a training fast, chosen before it begins: packing, the fused loss, compiling."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from ...contracts.recipe import Recipe
from ...errors import Misuse
from .batching import Row, collate_causal, is_encoder_decoder
from .compiled import compiled, pays
from .losses import fused_loss, has_plain_head
from .packing import keeps_rows_apart
from .precision import autocast

__all__ = ["fast_steps", "fuses", "packs"]

_CAUSAL = ("generation", "text", "chat")
_IN_FRONT = ("prefix", "prompt", "ptuning")  # virtual tokens stand in front of every row
_TRIED = 16  # tokens by which a model is tried


def packs(model: nn.Module, recipe: Recipe, rows: Sequence[Row]) -> bool:
    """Whether rows are laid beside each other. Misuse (``recipe.packing``) for ``on`` where the model can't."""
    if (
        recipe.packing == "off"
        or recipe.task not in _CAUSAL
        or recipe.method in _IN_FRONT
        or recipe.privacy is not None
        or is_encoder_decoder(model)
    ):
        return False
    if keeps_rows_apart(model, rows):
        return True
    if recipe.packing == "on":
        raise Misuse(
            "recipe.packing",
            "This base doesn't keep rows apart that stand beside each other; set packing to auto.",
            key="packing",
        )
    return False


def fuses(model: nn.Module, recipe: Recipe, rows: Sequence[Row]) -> bool:
    """Whether the loss is computed without logits. Asked before ``training_precision``: it compares float32 numbers."""
    if recipe.task not in _CAUSAL or recipe.privacy is not None or recipe.processes > 1 or is_encoder_decoder(model):
        return False
    return has_plain_head(_causal(model), collate_causal([Row(row.ids[:_TRIED], 0) for row in rows[:2]], 0))


def _causal(model: Any) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model


@contextmanager
def fast_steps(
    model: nn.Module, recipe: Recipe, batch: Mapping[str, torch.Tensor], tokens: int, *, fused: bool, bf16: bool
) -> Iterator[dict[str, str | int]]:
    """Within: labelled batches of ``model`` take the fastest way there is. Gives what the evaluation tells of it.

    ``batch``: one that any run of this training could have. ``tokens``: how many are learned from in all.
    """
    with ExitStack() as stack:
        part = model
        if fused:
            part = _causal(model).base_model
            stack.enter_context(fused_loss(_causal(model)))
        fast = False
        if pays(recipe, model, tokens) and not is_encoder_decoder(model):
            device = next(model.parameters()).device

            def step() -> torch.Tensor:
                model.train()
                with autocast(device, bf16):
                    loss: torch.Tensor = model(**{name: value.to(device) for name, value in batch.items()})["loss"]
                return loss

            fast = stack.enter_context(compiled(part, step, asked=recipe.compile == "on"))
            model.zero_grad()
        yield {"compile": "on" if fast else "off"}
