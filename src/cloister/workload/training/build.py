"""From a checked config and tensors to a transformers model, without a path."""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
)

from ...errors import CloisterError, Malformed
from .architectures import ENCODER_DECODERS
from .quantized import check_widths, compute_through, quantization

__all__ = ["build", "build_fresh"]

# Names under which architectures keep their dropout. It is switched off for fine-tuning: on the measured tasks it
# costs no accuracy at a few epochs, while on a CPU random masks were 40 % of a step.
_DROPOUTS = (
    "hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout", "hidden_dropout", "dropout",
    "resid_pdrop", "embd_pdrop", "attn_pdrop", "activation_dropout", "embedding_dropout", "mlp_dropout",
    "residual_dropout", "resid_dropout", "dropout_rate", "encoder_layerdrop", "decoder_layerdrop",
)  # fmt: skip
# A model that asks for so many more numbers than its files hold would be filled with random ones.
_SLACK = 4_000_000
_LARGEST_FRESH = 100_000_000_000


def build(
    config: dict[str, Any], weights: dict[str, torch.Tensor], highest_token: int, *, head: bool, four_bits: bool = False
) -> nn.Module:
    """The architecture's own class with ``weights`` in float32, evaluation mode. ``head``: with its language head;
    ``four_bits``: see ``quantized``.

    Raises Malformed: ``model.weights`` where config and weights don't fit, ``model.vocabulary`` where the tokenizer
    gives ids that the embedding lacks. Misuse: ``model.quantize``.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        made = CONFIG_MAPPING[config["model_type"]].from_dict(copy.deepcopy(config))
        _without_dropout(made)
        made.use_cache = False
        cls = _class(made, head=head)
        shapes = _shapes(cls, made)
        _refuse_hollow(shapes, weights)
        if four_bits:
            check_widths(shapes)
        model, report = cls.from_pretrained(
            None, config=made, state_dict=weights, dtype=torch.float32, attn_implementation="sdpa",
            output_loading_info=True, quantization_config=quantization() if four_bits else None,
        )  # fmt: skip
    except CloisterError:
        raise
    except Exception:  # noqa: BLE001 - for a broken config the library raises whatever its code stumbles over
        # Its own text can be pages long and quotes the file; it stays inside.
        raise _misfit() from None
    # A pooler is the one part that checkpoints often leave out; no result here depends on it.
    if any("pooler" not in name for name in report["missing_keys"]) or report["mismatched_keys"]:
        raise _misfit()
    return _checked(compute_through(model) if four_bits else model, highest_token)


def build_fresh(config: dict[str, Any], highest_token: int, seed: int) -> nn.Module:
    """The language model of ``config`` with the architecture's own random weights, drawn from ``seed``.

    Raises Malformed: ``model.config`` where no model can be made of it or it is too large, ``model.vocabulary``.
    """
    try:
        made = CONFIG_MAPPING[config["model_type"]].from_dict(copy.deepcopy(config))
        _without_dropout(made)
        made.use_cache, made.dtype, made._attn_implementation = False, torch.float32, "sdpa"
        cls = _class(made, head=True)
        if _numbers(_shapes(cls, made)) > _LARGEST_FRESH:
            raise Malformed("model.config", "The base model's config.json asks for more than 100 billion weights.")
        torch.manual_seed(seed)
        model = cls(made)
    except CloisterError:
        raise
    except Exception:  # noqa: BLE001 - as above
        raise Malformed(
            "model.config", "No model can be made of the base's config.json; seal the published file."
        ) from None
    return _checked(model, highest_token)


def _checked(model: Any, highest_token: int) -> nn.Module:
    rows = model.get_input_embeddings().weight.shape[0]
    if highest_token >= rows:
        raise Malformed(
            "model.vocabulary",
            f"The tokenizer gives ids up to {highest_token} but the model has {rows} embeddings; seal matching ones.",
        )
    checked: nn.Module = model.eval()
    return checked


def _class(made: Any, *, head: bool) -> Any:
    with_head = (
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if made.model_type in ENCODER_DECODERS else MODEL_FOR_CAUSAL_LM_MAPPING
    )
    return (with_head if head else MODEL_MAPPING)[type(made)]


def _misfit() -> Malformed:
    return Malformed("model.weights", "The base model's config.json and weights don't fit together; seal one folder.")


def _without_dropout(config: Any) -> None:
    for name in _DROPOUTS:
        if isinstance(getattr(config, name, None), float):
            setattr(config, name, 0.0)


def _refuse_hollow(shapes: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """A small file with a huge config must not make us allocate the config's size."""
    if _numbers(shapes) > 2 * sum(t.numel() for t in weights.values()) + _SLACK:
        raise _misfit()


def _shapes(cls: Any, config: Any) -> nn.Module:
    """The model without its weights."""
    with torch.device("meta"):
        shapes: nn.Module = cls(copy.deepcopy(config))
    return shapes


def _numbers(shapes: nn.Module) -> int:
    return sum(p.numel() for p in shapes.parameters())
