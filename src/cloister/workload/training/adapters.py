"""Adapters through PEFT: where they go, and taking their weights out again."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection
from typing import Any

import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
)
from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
)
from torch import nn
from transformers.pytorch_utils import Conv1D

from ...contracts.recipe import Adapter, Ia3Settings, LoraSettings, PTuningSettings, Recipe, TokenSettings
from ...errors import Misuse
from .batching import is_encoder_decoder

__all__ = ["adapter_state", "add_adapter", "lora_targets", "virtual_tokens"]

_IN_BLOCK = re.compile(r"\.\d+\.(.+)$")
_LINEAR = (nn.Linear, Conv1D)


def add_adapter(model: nn.Module, recipe: Recipe, *, causal: bool) -> Any:
    """A PEFT model around ``model`` with only the adapter's weights trainable; ``model`` itself for a recipe without.

    Raises Misuse (``recipe.targets``) for a target that doesn't exist, or where none is known for this base.
    """
    if recipe.adapter is None:
        return model
    config = _config(model, recipe.method, recipe.adapter)
    writes = TaskType.SEQ_2_SEQ_LM if is_encoder_decoder(model) else TaskType.CAUSAL_LM
    config.task_type = writes if causal else TaskType.FEATURE_EXTRACTION
    with warnings.catch_warnings():
        # This PEFT asks transformers for a property by its older name, which only warns.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        return get_peft_model(model, config)


def virtual_tokens(recipe: Recipe) -> int:
    """How many positions in front of each row the adapter takes."""
    return recipe.adapter.tokens if isinstance(recipe.adapter, TokenSettings | PTuningSettings) else 0


def adapter_state(model: Any) -> dict[str, torch.Tensor]:
    """The adapter's tensors under the names that PEFT's loader expects."""
    # Left to itself, PEFT would look the base's embedding size up on a model hub.
    state: dict[str, torch.Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return state


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


def _config(model: nn.Module, method: str, settings: Adapter) -> PeftConfig:
    fan_in_fan_out = any(isinstance(module, Conv1D) for module in model.modules())
    if isinstance(settings, LoraSettings):
        return LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=float(settings.dropout),
            target_modules=_checked(model, settings.targets, method) or lora_targets(model),
            use_rslora=settings.rslora,
            use_dora=settings.dora,
            fan_in_fan_out=fan_in_fan_out,
        )
    if isinstance(settings, Ia3Settings):
        targets, inputs = _ia3_targets(model, settings)
        return IA3Config(target_modules=targets, feedforward_modules=inputs, fan_in_fan_out=fan_in_fan_out)
    shape = {"num_virtual_tokens": settings.tokens, **_shape(model, method)}
    if isinstance(settings, PTuningSettings):
        return PromptEncoderConfig(encoder_hidden_size=settings.hidden, **shape)
    return PrefixTuningConfig(**shape) if method == "prefix" else PromptTuningConfig(**shape)


def _checked(model: nn.Module, targets: Collection[str] | None, method: str) -> list[str]:
    names = [name for name, module in model.named_modules() if isinstance(module, _LINEAR)]
    for target in targets or ():
        if not any(name == target or name.endswith("." + target) for name in names):
            raise Misuse(
                "recipe.targets", f"The base has no linear layer '{target}'; mend {method}.targets or use auto."
            )
    return list(targets or ())


def _ia3_targets(model: Any, settings: Ia3Settings) -> tuple[list[str], list[str]]:
    """Layers that are scaled, and those of them whose inputs are scaled instead of their outputs."""
    kind = {"umt5": "mt5"}.get(model.config.model_type, model.config.model_type)  # the same layers
    inputs = TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.get(kind, [])
    if settings.targets is None:
        known = TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING.get(kind)
        if known is None:
            raise Misuse("recipe.targets", "No layers are known for IA3 in this base; name them in ia3.targets.")
        return list(known), list(inputs)
    targets = _checked(model, settings.targets, "ia3")
    return targets, [name for name in targets if name in inputs]


def _shape(model: Any, method: str) -> dict[str, int]:
    """What PEFT otherwise guesses from a few architectures' names for it; it sees to grouped keys itself."""
    config = model.config  # transformers maps each architecture's own names to these
    if is_encoder_decoder(model):
        return _decoder_shape(config) if method == "prefix" else {**_common(config), "num_transformer_submodules": 1}
    return _common(config)


def _decoder_shape(config: Any) -> dict[str, int]:
    """A prefix stands in the decoder's own attention, whose heads may be wider than the model (T5's ``d_kv``)."""
    heads = getattr(config, "decoder_attention_heads", config.num_attention_heads)
    layers = getattr(config, "num_decoder_layers", None) or config.decoder_layers
    width = getattr(config, "d_kv", config.hidden_size // heads)
    return {"num_layers": layers, "num_attention_heads": heads, "token_dim": heads * width}


def _common(config: Any) -> dict[str, int]:
    return {
        "num_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "token_dim": config.hidden_size,
    }
