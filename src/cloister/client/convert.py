"""llama2.c checkpoints as Hugging Face folders, with nothing but the standard library.

The layouts were taken from llama2.c's ``run.c`` and ``export.py`` (version 0): a header of seven int32, then float32
tensors one after another; the tokenizer as scored pieces. The owner's side has no torch and needs none for this: the
only change to a weight is the order of whole rows.
"""

from __future__ import annotations

import json
import math
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..errors import Malformed, Misuse
from .llama2c_tokenizer import read_pieces, tokenizer_documents

__all__ = ["convert_llama2c"]

_HEADER = struct.Struct("<7i")
_VERSIONED_MAGIC = 0x616B3432  # "ak42": the layouts of version 1 and 2
_FLOAT = 4
_PIECE = 1 << 22


@dataclass(frozen=True)
class _Shape:
    """The header. Sizes in floats; ``shared``: the embedding is also the classifier."""

    dim: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    length: int
    shared: bool

    @property
    def head_size(self) -> int:
        return self.dim // self.heads

    @property
    def kv_dim(self) -> int:
        return self.head_size * self.kv_heads


def convert_llama2c(model_bin: Path, tokenizer_bin: Path, dest: Path) -> None:
    """Write ``dest`` as a Hugging Face folder of LlamaForCausalLM: safetensors, configs, tokenizer.

    Raises Misuse (``convert.exists``) if ``dest`` holds anything, Malformed (``convert.model``, ``convert.tokenizer``)
    if a file is foreign, truncated or damaged. Nothing is left behind then.
    """
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise Misuse("convert.exists", "The destination exists and is not an empty folder; name a new one.")
    with model_bin.open("rb") as stream:
        shape = _read_shape(stream, model_bin.stat().st_size)
        pieces = read_pieces(tokenizer_bin, shape.vocabulary)
        documents = {**_configs(shape), **tokenizer_documents(pieces, shape.length)}
        dest.mkdir(parents=True, exist_ok=True)
        weights = dest / "model.safetensors"
        try:
            _write_weights(stream, shape, weights)
        except BaseException:
            weights.unlink(missing_ok=True)
            dest.rmdir()
            raise
    for name, document in documents.items():
        (dest / name).write_text(json.dumps(document, ensure_ascii=False, indent=1, sort_keys=True), encoding="utf-8")


def _bad(why: str) -> Malformed:
    return Malformed("convert.model", f"The model file is not a llama2.c checkpoint of version 0: {why}.")


def _read_shape(stream: BinaryIO, size: int) -> _Shape:
    raw = stream.read(_HEADER.size)
    if len(raw) != _HEADER.size:
        raise _bad("it is shorter than a header")
    dim, hidden, layers, heads, kv_heads, vocabulary, length = _HEADER.unpack(raw)
    if dim == _VERSIONED_MAGIC:
        raise _bad("it has a newer layout; export it again with --version 0")
    limits = ((dim, 1 << 16), (hidden, 1 << 18), (layers, 512), (heads, 1024), (kv_heads, 1024), (length, 1 << 20))
    if any(not 1 <= value <= high for value, high in limits) or not 259 < abs(vocabulary) <= 1 << 20:
        raise _bad("its header holds impossible sizes")
    if dim % heads or heads % kv_heads or (dim // heads) % 2:
        raise _bad("its heads don't divide its width")
    shape = _Shape(dim, hidden, layers, heads, kv_heads, abs(vocabulary), length, vocabulary > 0)
    expected = _HEADER.size + _FLOAT * sum(math.prod(sizes) for _, sizes in _layout(shape))
    if size != expected:
        raise _bad(f"its header asks for {expected} bytes and it has {size}")
    return shape


def _layout(shape: _Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(part, sizes) in file order. The legacy rotary tables are part of the file though nobody reads them."""
    s = shape
    yield "embedding", (s.vocabulary, s.dim)
    yield "attention_norm", (s.layers, s.dim)
    yield "q", (s.layers, s.dim, s.dim)
    yield "k", (s.layers, s.kv_dim, s.dim)
    yield "v", (s.layers, s.kv_dim, s.dim)
    yield "o", (s.layers, s.dim, s.dim)
    yield "mlp_norm", (s.layers, s.dim)
    yield "gate", (s.layers, s.hidden, s.dim)
    yield "down", (s.layers, s.dim, s.hidden)
    yield "up", (s.layers, s.hidden, s.dim)
    yield "norm", (s.dim,)
    yield "rotary", (2, s.length, s.head_size // 2)
    if not s.shared:
        yield "classifier", (s.vocabulary, s.dim)


_NAMES = {
    "embedding": "model.embed_tokens.weight",
    "attention_norm": "model.layers.{}.input_layernorm.weight",
    "q": "model.layers.{}.self_attn.q_proj.weight",
    "k": "model.layers.{}.self_attn.k_proj.weight",
    "v": "model.layers.{}.self_attn.v_proj.weight",
    "o": "model.layers.{}.self_attn.o_proj.weight",
    "mlp_norm": "model.layers.{}.post_attention_layernorm.weight",
    "gate": "model.layers.{}.mlp.gate_proj.weight",
    "down": "model.layers.{}.mlp.down_proj.weight",
    "up": "model.layers.{}.mlp.up_proj.weight",
    "norm": "model.norm.weight",
    "classifier": "lm_head.weight",
}


def _write_weights(stream: BinaryIO, shape: _Shape, target: Path) -> None:
    entries: dict[str, dict[str, object]] = {}
    plan: list[tuple[str, int, int]] = []  # part, bytes of one tensor, how many
    offset = 0
    for part, sizes in _layout(shape):
        name = _NAMES.get(part)
        layered = name is not None and "{}" in name
        one = sizes[1:] if layered else sizes
        size = _FLOAT * math.prod(one)
        count = sizes[0] if layered else 1
        plan.append((part, size, count))
        for layer in range(count if name is not None else 0):
            span = [offset, offset + size]
            entries[str(name).format(layer)] = {"dtype": "F32", "shape": list(one), "data_offsets": span}
            offset += size
    header = json.dumps({"__metadata__": {"format": "pt"}, **entries}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the format wants tensors aligned to 8 bytes
    with target.open("wb") as out:
        out.write(len(header).to_bytes(8, "little") + header)
        for part, size, count in plan:
            for _ in range(count):
                _copy_tensor(stream, out, part, size, shape)


def _copy_tensor(stream: BinaryIO, out: BinaryIO, part: str, size: int, shape: _Shape) -> None:
    if part == "rotary":
        stream.seek(size, 1)
        return
    if part in ("q", "k"):
        data = _checked(stream.read(size))
        for head in range(0, size, shape.head_size * shape.dim * _FLOAT):
            out.writelines(_half_split(data, head, shape))
        return
    while size:
        data = _checked(stream.read(min(size, _PIECE)))
        out.write(data)
        size -= len(data)


def _half_split(data: bytes, start: int, shape: _Shape) -> Iterator[bytes]:
    """One head's rows in Hugging Face's order: llama2.c turns rows 2i and 2i+1 together, Hugging Face i and i+half."""
    row = shape.dim * _FLOAT
    for parity in (0, 1):
        for place in range(parity, shape.head_size, 2):
            yield data[start + place * row : start + (place + 1) * row]


def _checked(data: bytes) -> bytes:
    # A sum in double precision over finite float32 can't overflow, and one NaN or infinity makes it non-finite.
    if not data or not math.isfinite(sum(array("f", data))):
        raise _bad("it holds weights that are NaN or infinite")
    return data


def _configs(shape: _Shape) -> dict[str, object]:
    return {
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": shape.vocabulary,
            "hidden_size": shape.dim,
            "intermediate_size": shape.hidden,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "max_position_embeddings": shape.length,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": shape.shared,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "dtype": "float32",
        },
        # llama2.c's models separate texts by the begin token, so it ends one as well.
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": [1, 2]},
    }
