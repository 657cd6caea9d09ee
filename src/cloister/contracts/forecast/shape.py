"""How large a base is, part by part, from its config.json alone: no weights are read, and no torch is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import Malformed, Misuse

__all__ = ["Shape", "read_shape"]

# How a block is built: what it keeps for the way back depends on it (``memory``).
_GATED = frozenset(
    {"gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3"}
)  # RMS norms, and an MLP of three matrices
_PLAIN = frozenset({"gpt2", "gpt_neox", "opt", "phi", "starcoder2"})  # layer norms, an MLP of two, biases
_ENCODERS = frozenset(
    {"bert", "camembert", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet", "roberta", "xlm-roberta"}
)
_PAIRS = ("bart", "mt5", "t5", "umt5")  # an encoder and a decoder: their steps were not measured
_UNTIED = frozenset({"granite", "gpt_neox", "llama", "mistral", "olmo2", "phi", "phi3", "qwen2", "qwen3"})
_POSITIONED = _ENCODERS - {"deberta-v2", "modernbert"} | {"gpt2", "opt"}  # with learned positions
_NORMS = {"gemma2": 4, "gemma3_text": 4, "gpt_neox": 2, "phi": 1}  # a block's; else 2
_NAMES = {
    "vocabulary": ("vocab_size",),
    "width": ("hidden_size", "n_embd", "dim"),
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "inner": ("intermediate_size", "n_inner", "hidden_dim", "ffn_dim"),
    "positions": ("max_position_embeddings", "n_positions", "n_ctx"),
}
_HALVES = ("bfloat16", "float16")
_LARGEST = 1 << 31


@dataclass(frozen=True)
class Shape:
    """Sizes in numbers, not bytes. ``block``: gated, plain or encoder. ``inner``: the MLP's width. ``keys``: the width
    of all keys of a token, ``queries`` that of its queries. ``positions``: how many tokens a row may have, or None.
    ``stored``: bytes of a number in its files."""

    family: str
    block: str
    vocabulary: int
    width: int
    layers: int
    heads: int
    queries: int
    keys: int
    inner: int
    tied: bool
    positions: int | None
    stored: int
    embeddings: int
    norms: int

    @property
    def attention(self) -> int:
        """Weights of all attention matrices."""
        return self.layers * self.width * (2 * self.queries + 2 * self.keys)

    @property
    def mlp(self) -> int:
        return self.layers * self.width * self.inner * (3 if self.gated_mlp else 2)

    @property
    def gated_mlp(self) -> bool:
        return self.block == "gated" or self.family == "modernbert"

    @property
    def linear(self) -> int:
        """Weights of the blocks' linear layers: what is quantized, and what adapters stand beside."""
        return self.attention + self.mlp

    @property
    def head(self) -> int:
        """The language head's own weights; none where it shares the embedding's, and none of an encoder."""
        return 0 if self.tied or self.block == "encoder" else self.vocabulary * self.width

    @property
    def total(self) -> int:
        return self.embeddings + self.linear + self.norms + self.head

    def parts(self) -> dict[str, int]:
        return {
            "embeddings": self.embeddings,
            "attention": self.attention,
            "mlp": self.mlp,
            "norms_and_biases": self.norms,
            "head": self.head,
        }


def read_shape(config: Any) -> Shape:
    """Of a parsed config.json. Raises Malformed (``model.config``) and Misuse (``model.architecture``)."""
    if not isinstance(config, Mapping) or not isinstance(config.get("model_type"), str):
        raise Malformed("model.config", "The base's config.json names no model_type; name the whole model folder.")
    family = config["model_type"]
    if family in _PAIRS:
        raise Misuse(
            "model.architecture",
            "An encoder-decoder can be trained, but its memory and time are not forecast; leave the base's folder out.",
        )
    if family not in _GATED | _PLAIN | _ENCODERS:
        known = ", ".join(sorted(_GATED | _PLAIN | _ENCODERS))
        raise Misuse("model.architecture", f"The base's architecture isn't supported; supported are: {known}.")
    block = "gated" if family in _GATED else "plain" if family in _PLAIN else "encoder"
    width, layers, heads = (_number(config, name) for name in ("width", "layers", "heads"))
    inner = _number(config, "inner", 4 * width)
    head_width = _named(config, "head_dim", width // heads or 1)
    keys = min(heads, _named(config, "num_key_value_heads", heads)) * head_width
    positions = _number(config, "positions", 0) or None
    vocabulary = _number(config, "vocabulary")
    stored = 2 if str(config.get("dtype", config.get("torch_dtype"))).removeprefix("torch.") in _HALVES else 4
    tied = config.get("tie_word_embeddings", family not in _UNTIED) is True
    queries = heads * head_width
    embeddings, norms = _small(config, family, block, (vocabulary, width, layers, inner, queries, keys, positions or 0))
    return Shape(
        family,
        block,
        vocabulary,
        width,
        layers,
        heads,
        queries,
        keys,
        inner,
        tied,
        positions,
        stored,
        embeddings,
        norms,
    )


def _small(config: Mapping[str, Any], family: str, block: str, sizes: tuple[int, ...]) -> tuple[int, int]:
    """Numbers of the embeddings, and of norms and biases: a percent of most bases, so a rough count is enough."""
    vocabulary, width, layers, inner, queries, keys, positions = sizes
    narrow = _named(config, "embedding_size", width) if family == "electra" else width
    rows = vocabulary + (positions if family in _POSITIONED else 0)
    if block == "encoder":
        rows += _named(config, "type_vocab_size", 0)
    embeddings = rows * narrow + (narrow * width if narrow != width else 0)
    norms = layers * width * _NORMS.get(family, 2) * (1 if block == "gated" else 2)
    if block != "gated":
        norms += layers * (queries + 2 * keys + 2 * width + inner)
    if family == "qwen2":
        norms += layers * (queries + 2 * keys)
    if block == "encoder" and family not in ("distilbert", "electra", "deberta-v2", "modernbert"):
        norms += width * width  # a pooler, which no result depends on
    return embeddings, norms + 2 * width


def _number(config: Mapping[str, Any], name: str, usual: int | None = None) -> int:
    given = next((config[key] for key in _NAMES[name] if config.get(key) is not None), usual)
    if (
        not isinstance(given, int)
        or isinstance(given, bool)
        or not 0 <= given < _LARGEST
        or (given == 0 and usual != 0)
    ):
        raise Malformed(
            "model.config", f"The base's config.json has no usable {_NAMES[name][0]}; name the whole folder."
        )
    return given


def _named(config: Mapping[str, Any], name: str, usual: int) -> int:
    given = config.get(name)
    if given is None:
        return usual
    if not isinstance(given, int) or isinstance(given, bool) or not 0 <= given < _LARGEST:
        raise Malformed("model.config", f"The base's config.json has no usable {name}; name the whole model folder.")
    return given
