"""A base model from decrypted bytes, in memory: no path, no plaintext file, no code of the supplier.

``load_base`` takes a mapping of paths inside the model folder to binary readers, refuses what could execute, reads the
safetensors straight into tensors and the tokenizer from its JSON text. The libraries need no path for any of this.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import torch
from tokenizers import Tokenizer
from torch import nn

from ...errors import Malformed, Misuse
from ..text import SpecialTokens, end_tokens, highest_token, read_tokenizer, special_tokens
from .architectures import DECODERS, ENCODER_DECODERS, check_config, positions, refuse_machinery
from .build import build, build_fresh
from .tensors import read_tensors

__all__ = ["BaseModel", "load_base"]

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".npy", ".npz", ".h5", ".msgpack")
_PROGRAMS = (".py", ".pyc", ".pyx", ".so", ".dll", ".dylib", ".exe", ".sh")
_MAX_JSON = 64 << 20
_MAX_FILES = 4096
_LEAST_ROW = 8  # tokens, as in a recipe
# What a full export carries over unread: the tokenizer as its owner sealed it. Chat templates are data.
_CARRIED = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "vocab.txt",
    "merges.txt", "vocab.json", "chat_template.jinja", "added_tokens.json",
)  # fmt: skip


@dataclass
class BaseModel:
    """A checked model folder. ``weights`` are consumed by the first model that is built of it."""

    config: dict[str, Any]
    tokenizer: Tokenizer
    tokens: SpecialTokens
    carried: dict[str, bytes]
    pooling: tuple[str, bool] | None
    weights: dict[str, torch.Tensor] = field(repr=False)

    @property
    def is_decoder(self) -> bool:
        return self.config["model_type"] in DECODERS

    @property
    def is_encoder_decoder(self) -> bool:
        return self.config["model_type"] in ENCODER_DECODERS

    @property
    def stops(self) -> frozenset[int]:
        """The token ids at which its owner lets generation stop."""
        return end_tokens(self.tokens, self.config, self.generation_config())

    def generation_config(self) -> dict[str, Any]:
        """generation_config.json as its owner sealed it, or an empty object."""
        return _object("generation_config.json", self.carried.get("generation_config.json", b"{}"))

    def encoder(self, *, four_bits: bool = False) -> nn.Module:
        """The bare encoder (AutoModel's class) in float32, evaluation mode, ready for a head. ``four_bits``: with its
        linear layers held in 4 bits."""
        return build(self.config, self._take(), highest_token(self.tokenizer), head=False, four_bits=four_bits)

    def fresh_causal_lm(self, seed: int) -> nn.Module:
        """The same architecture with weights that begin at random, whatever weights the folder has."""
        self._require_decoder()
        self.weights = {}
        return build_fresh(self.config, highest_token(self.tokenizer), seed)

    def causal_lm(self, *, four_bits: bool = False) -> nn.Module:
        """The causal language model in float32. Misuse if the architecture is an encoder."""
        self._require_decoder()
        return build(self.config, self._take(), highest_token(self.tokenizer), head=True, four_bits=four_bits)

    def encoder_decoder(self, seed: int | None = None) -> nn.Module:
        """Both parts with the language head, in float32. ``seed``: with weights that begin at random.

        Malformed (``model.config``) where the config doesn't say with which token a text begins.
        """
        if seed is None:
            model: Any = build(self.config, self._take(), highest_token(self.tokenizer), head=True)
        else:
            self.weights = {}
            model = build_fresh(self.config, highest_token(self.tokenizer), seed)
        start, rows = model.config.decoder_start_token_id, model.get_input_embeddings().weight.shape[0]
        if not isinstance(start, int) or not 0 <= start < rows:
            raise Malformed(
                "model.config", "The base model's config.json has no decoder_start_token_id; seal the published file."
            )
        built: nn.Module = model
        return built

    def _require_decoder(self) -> None:
        if not self.is_decoder:
            raise Misuse("model.task", "The base model is an encoder; it can classify but not generate text.")

    def max_length(self, wanted: int, model: nn.Module, *, taken: int = 0) -> int:
        """``wanted`` tokens a row, or fewer where the model has fewer positions, of which an adapter took ``taken``.

        Misuse (``recipe.tokens``) where an adapter would leave none.
        """
        limit = positions(self.config, getattr(model.config, "max_position_embeddings", None))
        if limit is not None and limit - taken < _LEAST_ROW:
            raise Misuse(
                "recipe.tokens", f"The base has {limit} positions, too few for {taken} virtual tokens; use fewer."
            )
        return wanted if limit is None else min(wanted, limit - taken)

    def _take(self) -> dict[str, torch.Tensor]:
        if not self.weights:
            raise Misuse("model.consumed", "This base model was built already; load it again for another run.")
        weights, self.weights = self.weights, {}
        return weights


def load_base(files: Mapping[str, BinaryIO], *, weights: bool = True) -> BaseModel:
    """Check and read a Hugging Face model folder. ``files`` maps paths to seekable readers of the plaintext.

    ``weights`` False leaves them unread: a model from scratch has no use for them, and the folder need not have any.

    Raises Malformed or Misuse with a code under ``model`` and one sentence that says what is wrong with the folder.
    """
    _refuse_files(files)
    config = check_config(_json(files, "config.json"))
    tokenizer_config = _optional_json(files, "tokenizer_config.json")
    refuse_machinery(tokenizer_config, "tokenizer_config.json")
    tokenizer = read_tokenizer(_bytes(files, "tokenizer.json"))
    carried = {name: _bytes(files, name) for name in _CARRIED if name in files}
    named = {**tokenizer_config, **_optional_json(files, "special_tokens_map.json")}
    return BaseModel(
        config=config,
        tokenizer=tokenizer,
        tokens=special_tokens(tokenizer, named, config),
        carried=carried,
        pooling=_pooling(files),
        weights=_weights(files) if weights else {},
    )


def _refuse_files(files: Mapping[str, BinaryIO]) -> None:
    if len(files) > _MAX_FILES:
        raise Malformed("model.files", f"The model folder holds more than {_MAX_FILES} files; seal the model alone.")
    for path in sorted(files):
        lower = path.lower()
        if lower.endswith(_PICKLES):
            raise Malformed(
                "model.pickle", f"The model folder holds {path}, a format that can execute code; keep safetensors only."
            )
        if lower.endswith(_PROGRAMS):
            raise Malformed("model.code", f"The model folder holds {path}; code of a model never runs here, remove it.")


def _size(stream: BinaryIO) -> int:
    size = stream.seek(0, 2)
    stream.seek(0)
    return size


def _bytes(files: Mapping[str, BinaryIO], name: str) -> bytes:
    if name not in files:
        raise Malformed("model.missing", f"The model folder lacks {name}; seal the whole Hugging Face folder.")
    size = _size(files[name])
    if size > _MAX_JSON:
        raise Malformed("model.size", f"The model's {name} is larger than {_MAX_JSON} bytes; seal the published file.")
    return files[name].read()


def _json(files: Mapping[str, BinaryIO], name: str) -> Any:
    return _parsed(name, _bytes(files, name))


def _parsed(name: str, data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        raise Malformed("model.json", f"The model's {name} is not valid JSON; seal the published file.") from None


def _optional_json(files: Mapping[str, BinaryIO], name: str) -> dict[str, Any]:
    return _object(name, _bytes(files, name)) if name in files else {}


def _object(name: str, data: bytes) -> dict[str, Any]:
    value = _parsed(name, data)
    if not isinstance(value, dict):
        raise Malformed("model.json", f"The model's {name} is not a JSON object; seal the published file.")
    return value


def _weights(files: Mapping[str, BinaryIO]) -> dict[str, torch.Tensor]:
    names = ["model.safetensors"]
    if "model.safetensors.index.json" in files:
        shards = _optional_json(files, "model.safetensors.index.json").get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(s, str) for s in shards.values()):
            raise Malformed("model.index", "The model's safetensors index has no weight_map; seal the whole folder.")
        names = sorted(set(shards.values()))
    out: dict[str, torch.Tensor] = {}
    for name in names:
        if name not in files or not name.endswith(".safetensors"):
            raise Malformed("model.missing", "The model folder lacks a safetensors file of its weights; seal them all.")
        found = read_tensors(name, files[name], _size(files[name]))
        if out.keys() & found.keys():
            raise Malformed("model.index", "Two safetensors files hold the same weight; seal the published folder.")
        out.update(found)
    return out


def _pooling(files: Mapping[str, BinaryIO]) -> tuple[str, bool] | None:
    """(mean or first, normalized) as a sentence encoder's own files say, or None if there are no such files."""
    modules = _json(files, "modules.json") if "modules.json" in files else []
    kinds = [str(m.get("type", "")) for m in modules if isinstance(m, dict)] if isinstance(modules, list) else []
    config = _optional_json(files, "1_Pooling/config.json")
    if not config:
        return None
    modes = {key.removeprefix("pooling_mode_") for key, value in config.items() if value is True}
    modes |= {str(config.get("pooling_mode"))} if "pooling_mode" in config else set()
    if {"mean_tokens", "mean"} & modes:
        return "mean", True
    if {"cls_token", "cls"} & modes:
        return "first", any(kind.endswith("Normalize") for kind in kinds)
    raise Misuse("model.pooling", "The sentence encoder's own pooling isn't supported; set pooling to mean or first.")
