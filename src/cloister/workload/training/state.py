"""A training state as tensors and plain values, and back, without pickle: safetensors, and canonical JSON for the rest.

Floats go as their exact hexadecimal text (C99 %a, ``float.hex``): what is resumed is bit for bit what was stopped.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from ...crypto import canonical_json, parse_canonical
from ...errors import Denied, Malformed
from .ports import SavedFiles
from .snapshot import shard_name
from .tensors import read_tensors

__all__ = [
    "STATE_FILE",
    "SavedState",
    "capture",
    "encode_state",
    "pack",
    "part_like",
    "read_state",
    "restore_generators",
    "restore_optimizer",
    "restore_weights",
    "saved_identity",
    "trainable_weights",
    "unpack",
]

KIND = "cloister/checkpoint/v2"
STATE_FILE = "state.json"
_PARTS = _WEIGHTS, _OPTIMIZER, _GENERATORS = "model", "optimizer", "generators"
_MAX_STATE = 16 << 20
_MAX_SHARDS = 9_000  # a sealed object holds at most 10,000 files


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


def trainable_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters by name: what training changes."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def capture(
    weights: Mapping[str, torch.Tensor], optimizer: Any, scheduler: Any, *, step: int, identity: Mapping[str, str]
) -> tuple[dict[str, Mapping[str, torch.Tensor]], dict[str, Any]]:
    """The state as it is now, of training these ``weights``: tensors by part, which are the training's own and change
    with it, and a header of plain values, which does not. ``identity`` names what the run is, for ``read_state``."""
    inner = optimizer.state_dict()
    arrays: dict[str, torch.Tensor] = {}
    plain: list[list[Any]] = []
    for index, entries in inner["state"].items():
        for name, value in _flat(entries):
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
    return {_WEIGHTS: weights, _OPTIMIZER: arrays, _GENERATORS: generators}, header


def _flat(entries: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """bitsandbytes gives its 8-bit state one level deeper, and takes it back without that level."""
    for name, value in entries.items():
        if isinstance(value, Mapping):
            yield from value.items()
        else:
            yield name, value


def encode_state(header: Mapping[str, Any], shards: Mapping[str, int]) -> bytes:
    """``state.json``: the header of ``capture``, and how many safetensors files each part was written as."""
    data = canonical_json({**header, "shards": dict(shards)})
    if len(data) > _MAX_STATE:  # never write what could not be read again
        raise Malformed("checkpoint.state", "The training's state is larger than a checkpoint's header may be.")
    return data


@dataclass(frozen=True)
class SavedState:
    """A checkpoint whose header was checked, with what is put back later; weights are read when they are put back.

    ``further``: tensors by name of the parts that only some trainings have.
    """

    header: Mapping[str, Any]
    optimizer: Mapping[str, torch.Tensor]
    generators: Mapping[str, torch.Tensor]
    further: Mapping[str, Mapping[str, torch.Tensor]]


def read_state(step: int, files: SavedFiles, identity: Mapping[str, str], further: Sequence[str] = ()) -> SavedState:
    """Denied (``resume.differs``) if it is of another recipe, base or dataset; Malformed if it is not a whole one.

    ``further``: the names of the parts that this training has beside those that all have.
    """
    header = _header(step, files, further)
    if header.get("identity") != dict(identity):
        raise Denied(
            "resume.differs",
            "The checkpoint is of another recipe, base or dataset; resume with the same or start afresh.",
        )
    optimizer, generators, *others = (
        {name: tensor for found in _tensors(files, part, header) for name, tensor in found.items()}
        for part in (_OPTIMIZER, _GENERATORS, *further)
    )
    return SavedState(header, optimizer, generators, dict(zip(further, others, strict=True)))


def saved_identity(step: int, files: SavedFiles) -> Mapping[str, Any]:
    """What a checkpoint says that it is of. Malformed (``checkpoint.state``) if it says nothing."""
    header = _plain_header(step, files)
    identity = None if header is None else header.get("identity")
    if not isinstance(identity, dict):
        raise Malformed("checkpoint.state", "The checkpoint's state is not of the known form.")
    return identity


def _header(step: int, files: SavedFiles, further: Sequence[str]) -> dict[str, Any]:
    """The checked ``state.json``; that the files are exactly those that it counts."""
    header = _plain_header(step, files)
    if header is None or set(files.paths()) != {
        STATE_FILE,
        *(name for part in (*_PARTS, *further) for name in _names(header, part)),
    }:
        raise Malformed("checkpoint.files", "The checkpoint lacks a part or has one too many; start the run afresh.")
    return header


def _plain_header(step: int, files: SavedFiles) -> dict[str, Any] | None:
    if STATE_FILE not in set(files.paths()):
        return None
    with files.open(STATE_FILE) as file:
        header = parse_canonical(file.read(_MAX_STATE + 1), limit=_MAX_STATE)
    if not isinstance(header, dict) or header.get("kind") != KIND or header.get("step") != step:
        raise Malformed("checkpoint.state", "The checkpoint's state is not of the known form.")
    return dict(header)


def restore_weights(model: nn.Module, files: SavedFiles, state: SavedState) -> None:
    """Copy the checkpoint's weights over the trainable parameters, a file at a time. Malformed if names or shapes
    differ; then the model is half changed and of no use."""
    trainable = trainable_weights(model)
    missing = set(trainable)
    for found in _tensors(files, _WEIGHTS, state.header):
        if not missing >= set(found) or any(trainable[n].shape != t.shape for n, t in found.items()):
            raise _other_weights()
        with torch.no_grad():
            for name, tensor in found.items():
                trainable[name].copy_(part_like(tensor, trainable[name]))
        missing -= set(found)
    if missing:
        raise _other_weights()


def part_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Of a whole ``tensor``, the part that this process has of ``like`` where processes share it; else the tensor."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    # None: every process has the whole tensor, so nothing is sent.
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def restore_optimizer(optimizer: Any, scheduler: Any, state: SavedState) -> None:
    """The optimizer takes the tensors over as they are; they are not copied where they already are on its device."""
    entries: dict[int, dict[str, Any]] = {}
    for key, tensor in state.optimizer.items():
        index, _, name = key.partition(".")
        entries.setdefault(int(index), {})[name] = tensor
    for index, name, value in state.header["plain"]:
        entries.setdefault(index, {})[name] = unpack(value)
    optimizer.load_state_dict({"state": entries, "param_groups": unpack(state.header["groups"])})
    scheduler.load_state_dict(unpack(state.header["scheduler"]))


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


def restore_generators(state: SavedState) -> None:
    """Python's, numpy's and torch's generators go on where the checkpoint left them."""
    arrays, plain = state.generators, unpack(state.header["generators"])
    version, gauss = plain["python"]
    random.setstate((version, tuple(arrays["python"].tolist()), gauss))
    position, has_gauss, cached = plain["numpy"]
    key = arrays["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", key, position, has_gauss, cached))
    torch.set_rng_state(arrays["torch"])
    if "cuda" in arrays and torch.cuda.is_available():
        torch.cuda.set_rng_state(arrays["cuda"])


def _names(header: Mapping[str, Any], part: str) -> list[str]:
    shards = header.get("shards")
    count = shards.get(part) if isinstance(shards, dict) else None
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= _MAX_SHARDS:
        raise Malformed("checkpoint.state", "The checkpoint's state is not of the known form.")
    return [shard_name(part, number) for number in range(count)]


def _tensors(files: SavedFiles, part: str, header: Mapping[str, Any]) -> Iterator[dict[str, torch.Tensor]]:
    """The tensors of a part, file by file."""
    for name in _names(header, part):
        with files.open(name) as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            yield read_tensors(name, file, size)


def _other_weights() -> Malformed:
    return Malformed("checkpoint.weights", "The checkpoint's weights are not those of this model; start afresh.")
