"""LoRA through PEFT: where it goes, and taking its weights out again."""

from __future__ import annotations

import re
import warnings
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model, get_peft_model_state_dict
from torch import nn
from transformers.pytorch_utils import Conv1D

from ...contracts.recipe import LoraSettings
from ...errors import Misuse

__all__ = ["add_lora", "lora_state", "lora_targets"]

_IN_BLOCK = re.compile(r"\.\d+\.(.+)$")
_LINEAR = (nn.Linear, Conv1D)


def lora_targets(model: nn.Module) -> list[str]:
    """Every linear layer inside the repeated transformer blocks, by its name within a block: attention and MLP.

    Embeddings, poolers and language heads stand outside the blocks and are left alone.
    """
    found = set()
    for name, module in model.named_modules():
        inside = _IN_BLOCK.search("." + name)
        if isinstance(module, _LINEAR) and inside is not None:
            found.add(inside.group(1))
    if not found:
        raise Misuse("recipe.targets", "No linear layers were found for LoRA in this base; name them in lora.targets.")
    return sorted(found)


def add_lora(model: nn.Module, settings: LoraSettings, *, causal: bool) -> Any:
    """A PEFT model around ``model`` with only the LoRA weights trainable. Misuse for a target that doesn't exist."""
    names = [name for name, module in model.named_modules() if isinstance(module, _LINEAR)]
    targets = list(settings.targets) if settings.targets is not None else lora_targets(model)
    for target in targets:
        if not any(name == target or name.endswith("." + target) for name in names):
            raise Misuse("recipe.targets", f"The base has no linear layer '{target}'; mend lora.targets or use auto.")
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=float(settings.dropout),
        target_modules=targets,
        use_rslora=settings.rslora,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type=TaskType.CAUSAL_LM if causal else TaskType.FEATURE_EXTRACTION,
    )
    with warnings.catch_warnings():
        # This PEFT asks transformers for a property by its older name, which only warns.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        return get_peft_model(model, config)


def lora_state(model: Any) -> dict[str, torch.Tensor]:
    """The adapter's tensors under the names that PEFT's loader expects."""
    # Left to itself, PEFT would look the base's embedding size up on a model hub.
    state: dict[str, torch.Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return state
