"""Which model architectures may be built, and what of a config is refused.

A list rather than "whatever the library knows": each entry is plain transformer code inside the measured image that
reads nothing but its own weights. Others in the library load backbones, kernels or side files by name.
"""

from __future__ import annotations

from typing import Any

from ...errors import Malformed, Misuse
from ..text import ENCODER_DECODERS

__all__ = ["DECODERS", "ENCODERS", "ENCODER_DECODERS", "check_config", "positions"]

ENCODERS = frozenset(
    {"bert", "camembert", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet", "roberta", "xlm-roberta"}
)
DECODERS = frozenset(
    {
        "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "granite", "llama", "mistral", "olmo2", "opt", "phi",
        "phi3", "qwen2", "qwen3", "smollm3", "starcoder2",
    }
)  # fmt: skip
# These count positions from the padding id on, so two of their position rows are never reached.
_OFFSET_POSITIONS = frozenset({"camembert", "mpnet", "roberta", "xlm-roberta"})

# Each of these makes the library fetch or run something that isn't weights: remote code, hub kernels, other
# quantizers, side files. They are refused wherever they stand in the config.
_REFUSED = frozenset(
    {
        "auto_map", "custom_pipelines", "trust_remote_code", "quantization_config", "fusion_config", "kernel_config",
        "attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation",
        "transformers_weights", "use_kernels", "gguf_file", "distributed_config", "device_map",
    }
)  # fmt: skip
_CODE = frozenset({"auto_map", "custom_pipelines", "trust_remote_code"})
_LAYERS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers",
)  # fmt: skip
_MAX_LAYERS = 512
_MAX_NUMBER = 2**31
_MAX_DEPTH = 16


def check_config(config: Any) -> dict[str, Any]:
    """``config.json`` as a dict if nothing in it asks for more than weights.

    Raises Malformed (``model.config``, ``model.code``) and Misuse (``model.architecture``).
    """
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise Malformed("model.config", "The base model's config.json names no model_type; seal the whole folder.")
    refuse_machinery(config, "config.json")
    if config["model_type"] not in ENCODERS | DECODERS | ENCODER_DECODERS:
        known = ", ".join(sorted(ENCODERS | DECODERS | ENCODER_DECODERS))
        raise Misuse("model.architecture", f"The base model's architecture isn't supported; supported are: {known}.")
    if config["model_type"] in ENCODER_DECODERS and config.get("is_encoder_decoder", True) is not True:
        raise Malformed("model.config", "The base model's config.json denies its decoder; seal the published file.")
    for name in _LAYERS:
        if isinstance(config.get(name), int) and config[name] > _MAX_LAYERS:
            raise Malformed("model.config", f"The base model's config.json asks for more than {_MAX_LAYERS} layers.")
    return config


def refuse_machinery(value: Any, name: str, depth: int = 0) -> None:
    """Refuse, at every depth, keys that load code or files, and numbers that no real model has."""
    if depth > _MAX_DEPTH:
        raise Malformed("model.config", f"The base model's {name} is nested too deeply; seal the published file.")
    if isinstance(value, dict):
        for key, item in value.items():
            if key in _CODE and item:
                raise Malformed(
                    "model.code",
                    f"The base model's {name} asks for custom code ('{key}'), which never runs here; remove it.",
                )
            if key in _REFUSED and item is not None:
                raise Malformed(
                    "model.config", f"The base model's {name} sets '{key}', which isn't supported; remove it."
                )
            refuse_machinery(item, name, depth + 1)
    elif isinstance(value, list):
        for item in value:
            refuse_machinery(item, name, depth + 1)
    elif isinstance(value, int | float) and abs(value) > _MAX_NUMBER and value < 1e29:
        # tokenizer_config.json writes "no limit" as about 1e30; anything between is no real size.
        raise Malformed("model.config", f"The base model's {name} holds an impossible number; seal the published file.")


def positions(config: dict[str, Any], limit: int | None) -> int | None:
    """How many tokens a row may have, or None where positions aren't learned and the config names no bound."""
    if limit is None or limit <= 0:
        return None
    return limit - 2 if config["model_type"] in _OFFSET_POSITIONS else limit
