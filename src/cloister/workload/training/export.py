"""The release files: what plain peft, transformers and safetensors open without Cloister."""

from __future__ import annotations

import json
from typing import Any

import torch
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from .adapters import adapter_state
from .heads import PooledClassifier, PooledEncoder, TokenClassifier
from .run import TrainingResult
from .tensors import write_tensors

__all__ = ["export_files"]

# transformers refuses safetensors files that don't say which framework wrote them.
_FORMAT = {"format": "pt"}


def export_files(result: TrainingResult) -> dict[str, bytes]:
    """Name → bytes: ``adapter/…`` or ``model/…`` as the method gives; a classifier adds its head, labels, pooling.

    Nothing names this machine: the adapter says it belongs to the base's asset name.
    """
    adapted = result.recipe.adapter is not None
    folder = "adapter" if adapted else "model"
    files = _adapter(result) if adapted else _full(result)
    files |= _head(result)
    files |= result.further
    return {f"{folder}/{name}": data for name, data in sorted(files.items())}


def _adapter(result: TrainingResult) -> dict[str, bytes]:
    peft_model = _body(result)
    config: dict[str, Any] = peft_model.peft_config["default"].to_dict()
    config.update(base_model_name_or_path=result.recipe.base, inference_mode=True, revision=None)
    return {
        "adapter_model.safetensors": write_tensors(adapter_state(peft_model), _FORMAT),
        "adapter_config.json": _json({k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}),
    }


def _full(result: TrainingResult) -> dict[str, bytes]:
    model = _body(result)
    state: dict[str, torch.Tensor] = remove_tied_weights_from_state_dict(dict(model.state_dict()), model)
    config = {k: v for k, v in result.base.config.items() if k not in ("torch_dtype", "_name_or_path")}
    config.update(architectures=[type(model).__name__], dtype="float32")
    return {
        **result.base.carried,
        "config.json": _json(config),
        "model.safetensors": write_tensors(revert_weight_conversion(model, state), _FORMAT),
    }


def _head(result: TrainingResult) -> dict[str, bytes]:
    """What turns the encoder's states into answers; nothing for a model that writes text."""
    files = {}
    if isinstance(result.model, PooledClassifier | TokenClassifier):
        files["head.safetensors"] = write_tensors(result.model.exported_head(), _FORMAT)
    if result.labels is not None:
        files["labels.json"] = _json(list(result.labels))
    if result.pooling is not None:
        mode, normalize = result.pooling.mode, result.pooling.normalize
        files["pooling.json"] = _json({"max_length": result.max_length, "mode": mode, "normalize": normalize})
    if isinstance(result.model, PooledEncoder) and result.recipe.adapter is None:
        files |= _sentence_encoder(result)
    return files


def _sentence_encoder(result: TrainingResult) -> dict[str, bytes]:
    """What sentence-transformers opens a folder of weights by, in the spelling that its older releases read, too."""
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    modules = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (kind, path) in enumerate(kinds)
    ]
    first = result.model.pooling.mode == "first"
    return {
        "modules.json": _json(modules),
        "sentence_bert_config.json": _json({"max_seq_length": result.max_length, "do_lower_case": False}),
        "1_Pooling/config.json": _json(
            {
                "word_embedding_dimension": result.model.encoder.config.hidden_size,
                "pooling_mode_cls_token": first,
                "pooling_mode_mean_tokens": not first,
                "pooling_mode_max_tokens": False,
                "pooling_mode_mean_sqrt_len_tokens": False,
            }
        ),
    }


def _body(result: TrainingResult) -> Any:
    headed = isinstance(result.model, PooledClassifier | PooledEncoder | TokenClassifier)
    return result.model.encoder if headed else result.model


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, default=str) + "\n").encode()
