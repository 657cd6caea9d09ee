"""A training state as bytes and back, without pickle: safetensors for arrays, canonical JSON for the rest.

Floats go as their exact hexadecimal text (C99 %a, ``float.hex``): what is resumed is bit for bit what was stopped.
"""

from __future__ import annotations

import io
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from ...crypto import canonical_json, parse_canonical
from ...errors import Denied, Malformed
from .tensors import read_tensors, write_tensors

__all__ = ["collect", "pack", "read_header", "restore_generators", "restore_optimizer", "restore_weights", "unpack"]

KIND = "cloister/checkpoint/v1"
_FILES = frozenset({"model.safetensors", "optimizer.safetensors", "generators.safetensors", "state.json"})


def pack(value: Any) -> Any:
    """Plain values in a form that canonical JSON takes; floats and tuples are marked so that they come back as such."""
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return {"float": value.hex()}
    if isinstance(value, tuple):
        return {"tuple": [pack(v) for v in value]}
    if isinstance(value, list):
        return [pack(v) for v in value]
    if isinstance(value, Mapping):
        return {"map": [[pack(k), pack(v)] for k, v in value.items()]}
    raise Malformed("checkpoint.type", f"A {type(value).__name__} of the optimizer has no checkpoint form.")


def unpack(value: Any) -> Any:
    if isinstance(value, list):
        return [unpack(v) for v in value]
    if isinstance(value, dict) and len(value) == 1:
        (kind, inner), *_ = value.items()
        if kind == "float":
            return float.fromhex(inner)
        if kind == "tuple":
            return tuple(unpack(v) for v in inner)
        if kind == "map":
            return {unpack(k): unpack(v) for k, v in inner}
    if isinstance(value, dict):
        raise Malformed("checkpoint.state", "The checkpoint's state is not of the known form.")
    return value


def collect(
    model: nn.Module,
    optimizer: Any,
    scheduler: Any,
    *,
    step: int,
    identity: Mapping[str, str],
) -> dict[str, bytes]:
    """The blobs of one checkpoint. ``identity`` names what the run is, for ``read_header`` to compare."""
    inner = optimizer.state_dict()
    arrays: dict[str, torch.Tensor] = {}
    plain: list[list[Any]] = []
    for index, entries in inner["state"].items():
        for name, value in entries.items():
            if isinstance(value, torch.Tensor):
                arrays[f"{index}.{name}"] = value
            else:
                plain.append([index, name, pack(value)])
    generators, generator_state = _generators()
    header = {
        "kind": KIND,
        "step": step,
        "identity": dict(identity),
        "groups": pack(inner["param_groups"]),
        "plain": plain,
        "scheduler": pack(scheduler.state_dict()),
        "generators": pack(generator_state),
    }
    trainable: dict[str, torch.Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return {
        "model.safetensors": write_tensors(trainable),
        "optimizer.safetensors": write_tensors(arrays),
        "generators.safetensors": write_tensors(generators),
        "state.json": canonical_json(header),
    }


def read_header(step: int, blobs: Mapping[str, bytes], identity: Mapping[str, str]) -> dict[str, Any]:
    """The checked ``state.json``. Denied (``resume.differs``) if it is of another recipe, base or dataset."""
    if set(blobs) != _FILES:
        raise Malformed("checkpoint.files", "The checkpoint lacks a part or has one too many; start the run afresh.")
    header = parse_canonical(blobs["state.json"])
    if not isinstance(header, dict) or header.get("kind") != KIND or header.get("step") != step:
        raise Malformed("checkpoint.state", "The checkpoint's state is not of the known form.")
    if header.get("identity") != dict(identity):
        raise Denied(
            "resume.differs",
            "The checkpoint is of another recipe, base or dataset; resume with the same or start afresh.",
        )
    return header


def restore_weights(model: nn.Module, blobs: Mapping[str, bytes]) -> None:
    """Copy the checkpoint's weights over the trainable parameters. Malformed if names or shapes differ."""
    found = _tensors(blobs, "model.safetensors")
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if set(found) != set(trainable) or any(found[n].shape != p.shape for n, p in trainable.items()):
        raise Malformed("checkpoint.weights", "The checkpoint's weights are not those of this model; start afresh.")
    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.copy_(found[name])


def restore_optimizer(optimizer: Any, scheduler: Any, header: Mapping[str, Any], blobs: Mapping[str, bytes]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in _tensors(blobs, "optimizer.safetensors").items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    for index, name, value in header["plain"]:
        state.setdefault(index, {})[name] = unpack(value)
    optimizer.load_state_dict({"state": state, "param_groups": unpack(header["groups"])})
    scheduler.load_state_dict(unpack(header["scheduler"]))


def _generators() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    version, words, gauss = random.getstate()
    legacy: Any = np.random.get_state(legacy=False)
    arrays = {
        "python": torch.tensor(words, dtype=torch.int64),
        "numpy": torch.from_numpy(legacy["state"]["key"].astype(np.int64)),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        arrays["cuda"] = torch.cuda.get_rng_state()
    plain = {
        "python": [version, gauss],
        "numpy": [int(legacy["state"]["pos"]), int(legacy["has_gauss"]), float(legacy["gauss"])],
    }
    return arrays, plain


def restore_generators(header: Mapping[str, Any], blobs: Mapping[str, bytes]) -> None:
    """Python's, numpy's and torch's generators go on where the checkpoint left them."""
    arrays, plain = _tensors(blobs, "generators.safetensors"), unpack(header["generators"])
    version, gauss = plain["python"]
    random.setstate((version, tuple(arrays["python"].tolist()), gauss))
    position, has_gauss, cached = plain["numpy"]
    key = arrays["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", key, position, has_gauss, cached))
    torch.set_rng_state(arrays["torch"])
    if "cuda" in arrays and torch.cuda.is_available():
        torch.cuda.set_rng_state(arrays["cuda"])


def _tensors(blobs: Mapping[str, bytes], name: str) -> dict[str, torch.Tensor]:
    return read_tensors(name, io.BytesIO(blobs[name]), len(blobs[name]))
