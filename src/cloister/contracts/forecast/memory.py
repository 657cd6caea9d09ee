"""The most memory that a run takes, part by part: what tensors are held at the same time, and how large they are.

A run has moments that each may be the highest: the base is loaded, a pass over the rows that are only measured, the end
of a training step's forward pass, and the end of its backward pass. What is kept for the way back was counted in the
engine's own graph (PyTorch's ``saved_tensors_hooks``): whole numbers of a block's widths, which say which tensors they
are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..recipe import Ia3Settings, LoraSettings, PTuningSettings, Recipe, TokenSettings
from .rows import Rows
from .shape import Shape

__all__ = ["PROCESS", "Memory", "forecast_memory", "packs", "trained"]

FLOAT, HALF = 4, 2
PROCESS = 650 << 20  # an interpreter with torch, transformers and PEFT, measured
_NF4 = 0.516  # bytes a weight: 4 bits, 8 for the scale of 64, 32 for the scale of 256 scales
_STATE = {"adamw": 8.0, "adamw_8bit": 2.03}  # bytes a trained weight: two moments, in 8 bits with a scale for 256
_EVALUATED = 4096  # padded tokens of a batch that is only measured, as the engine cuts them
_LOGIT_COPIES = 3  # logits, their logarithm, and the latter's contiguous copy
_CHUNK = 1 << 24  # logits at a time in the fused loss
_CHUNKS = 2  # of them held at once: logits, and the share of the gradient that they turn into
_GENERATES = ("generation", "text", "chat")
_IN_FRONT = ("prefix", "prompt", "ptuning")
_TEXTS = {"preference": 2, "embedding": 3}  # of a row

# Holes. glibc takes an aligned block from a hole only if the hole is longer than the block by the alignment, so holes
# of just the right size stay unused: a tenth of everything, measured. Where small tensors that stay settle between a
# step's large ones (the moments of LoRA's many matrices, most of all), the next step's activations don't fit into the
# holes of those before: this share of them takes memory again, measured.
_HOLES = 0.1
_AGAIN = {"qlora": 1.1, "lora": 0.8, "ia3": 0.15}
_AGAIN_ELSE = 0.25  # of adapters that are tokens

# Bytes that a block keeps for each token, a unit of its width and of its MLP's: (float32), (bfloat16 and float32).
# Gated, all trained, in float32: each norm's input, what it is normalized, and scaled, to (6 widths); queries, keys,
# values and what attention gives (4), which is (40 bytes); of the MLP both products, what its function makes of one,
# and their product (16). Nothing is kept of a frozen layer's input, nor of what a frozen norm scales.
_KEPT: Mapping[tuple[str, str], tuple[tuple[int, int], tuple[int, int]]] = {
    ("gated", "full"): ((40, 16), (44, 8)),
    ("gated", "lora"): ((32, 16), (36, 8)),
    ("gated", "dora"): ((72, 32), (56, 16)),
    ("gated", "ia3"): ((32, 16), (28, 10)),
    ("gated", "frozen"): ((24, 12), (24, 6)),
    ("plain", "full"): ((24, 20), (30, 10)),
    ("plain", "lora"): ((24, 20), (30, 10)),
    ("plain", "dora"): ((64, 36), (50, 18)),
    ("plain", "ia3"): ((28, 20), (30, 12)),
    ("plain", "frozen"): ((16, 16), (24, 8)),
    ("encoder", "full"): ((32, 8), (34, 4)),
    ("encoder", "lora"): ((32, 8), (34, 4)),
    ("encoder", "dora"): ((72, 24), (54, 12)),
    ("encoder", "ia3"): ((32, 8), (32, 6)),
    ("encoder", "frozen"): ((24, 4), (24, 2)),
}


@dataclass(frozen=True)
class Memory:
    """Bytes by part, at the highest moment, which ``moment`` names: load, measure, forward or backward."""

    moment: str
    parts: Mapping[str, int]

    @property
    def above(self) -> int:
        """Without the process itself."""
        return sum(self.parts.values()) - self.parts["process"]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def forecast_memory(recipe: Recipe, shape: Shape, rows: Rows, *, bf16: bool, gpu: bool) -> Memory:
    """``bf16``: what the recipe's ``precision`` comes to there. ``gpu``: of the GPU's memory, where checkpoints are
    copied elsewhere; that formula was not measured."""
    learned = trained(recipe, shape)
    held, packed = _held(recipe, shape, bf16=bf16)
    state = _state(recipe, shape, learned)
    snapshot = 0 if gpu or not (recipe.checkpoint_steps or recipe.checkpoint_minutes) else learned * FLOAT + state
    tokens = _tokens(recipe, rows)
    activations, loss = _activations(recipe, shape, rows, tokens, bf16=bf16), _loss(recipe, shape, tokens, bf16=bf16)
    gradients = learned * FLOAT * _gradients(recipe, rows)
    temporary = _temporary(recipe, shape, tokens, bf16=bf16)
    always = {
        "weights": held,
        "quantization": packed,
        "optimizer": state,
        "checkpoint": snapshot,
        "process": PROCESS,
    }
    waiting = gradients if recipe.gradient_accumulation > 1 else 0
    moments = {
        "forward": {"gradients": waiting, "activations": activations, "loss": loss, "temporary": temporary},
        "backward": {"gradients": gradients, "activations": 0, "loss": 0, "temporary": temporary},
        "load": {
            "weights": held if recipe.method != "qlora" else held + shape.linear * shape.stored,
            "optimizer": 0,
            "checkpoint": 0,
            "gradients": 0,
            "activations": 0,
            "loss": 0,
            "temporary": 0 if gpu or shape.stored == FLOAT else shape.total * shape.stored,
        },
        "measure": {
            "gradients": gradients,
            "activations": _passing(shape),
            "loss": _measured(recipe, shape, rows),
            "temporary": 0,
            "checkpoint": 0,
        },
    }
    again = 0.0 if gpu else _unfit(recipe, shape, rows, tokens, bf16=bf16)
    if gpu:
        del moments["load"]  # into the host's memory
    found = (_moment(name, {**always, **parts}, 0.0 if name == "load" else again) for name, parts in moments.items())
    return max(found, key=lambda memory: memory.total)


def _gradients(recipe: Recipe, rows: Rows) -> int:
    """How many of each. Private training has one a row of an adapter, and of all weights the step's sum and one more
    (ghost clipping); not measured."""
    if recipe.privacy is None:
        return 1
    return 1 + min(recipe.batch_size, rows.count) if recipe.form == "adapter" else 2


def _unfit(recipe: Recipe, shape: Shape, rows: Rows, tokens: int, *, bf16: bool) -> float:
    """Holes that what comes later doesn't fit into: see ``_AGAIN``."""
    if recipe.form != "adapter":
        return 0.0
    kind = None if recipe.lora is None else "lora"
    return _AGAIN.get(recipe.method, _AGAIN_ELSE) * _activations(recipe, shape, rows, tokens, bf16=bf16, kind=kind)


def _moment(name: str, parts: Mapping[str, float], again: float) -> Memory:
    above = sum(parts.values()) - PROCESS
    return Memory(name, {**{key: int(size) for key, size in parts.items()}, "holes": int(_HOLES * above + again)})


def trained(recipe: Recipe, shape: Shape) -> int:
    """How many numbers a step changes."""
    settings = recipe.adapter
    ends = 2 * (shape.width + shape.queries) + 2 * (shape.width + shape.keys)
    ends += (3 if shape.gated_mlp else 2) * (shape.width + shape.inner)
    if isinstance(settings, LoraSettings):
        outs = shape.queries + 2 * shape.keys + 2 * shape.width + (2 if shape.gated_mlp else 1) * shape.inner
        return shape.layers * (settings.rank * ends + (outs if settings.dora else 0))
    if isinstance(settings, Ia3Settings):
        return shape.layers * (2 * shape.keys + shape.inner)
    if isinstance(settings, PTuningSettings):
        return (settings.tokens + 2 * settings.hidden + 2) * shape.width + settings.hidden * (settings.hidden + 2)
    if isinstance(settings, TokenSettings):
        return settings.tokens * (2 * shape.layers * shape.keys if recipe.method == "prefix" else shape.width)
    return shape.total


def packs(recipe: Recipe) -> bool:
    """Whether rows lie beside each other without padding, where the model allows it."""
    possible = recipe.task in _GENERATES and recipe.method not in _IN_FRONT and recipe.privacy is None
    return possible and recipe.packing != "off"


def _held(recipe: Recipe, shape: Shape, *, bf16: bool) -> tuple[float, float]:
    """Of the weights themselves: as floats, and in 4 bits."""
    learned = trained(recipe, shape) if recipe.form == "adapter" else 0
    floats = shape.total + learned
    if recipe.method == "qlora":
        return (floats - shape.linear) * FLOAT, shape.linear * _NF4
    # A frozen base is rounded once instead of at every step; its float32 weights wait for the evaluation.
    rounded = HALF * (shape.linear + shape.head) if bf16 and recipe.form == "adapter" else 0
    return floats * FLOAT + rounded, 0


def _state(recipe: Recipe, shape: Shape, learned: int) -> float:
    if recipe.optimizer == "adafactor":  # a row and a column for each matrix
        return learned * FLOAT / max(1, min(shape.width, 64)) * 2
    return learned * _STATE[recipe.optimizer]


def _tokens(recipe: Recipe, rows: Rows) -> int:
    """Of the largest batch, with what an adapter puts in front."""
    texts = _TEXTS.get(recipe.task, 1)
    count = min(recipe.batch_size, rows.count)
    longest = min(rows.longest, recipe.max_length)
    if packs(recipe):
        return rows.together(count, longest)
    front = recipe.adapter.tokens if isinstance(recipe.adapter, TokenSettings | PTuningSettings) else 0
    return texts * count * (longest + (0 if recipe.method == "prefix" else front))


def _activations(
    recipe: Recipe, shape: Shape, rows: Rows, tokens: int, *, bf16: bool, kind: str | None = None
) -> float:
    wide, inside = _KEPT[shape.block, kind or _kind(recipe)][bf16]
    attention = 16 * (shape.queries - shape.width)  # where heads are not the width: queries, keys, values, answer
    block: float = wide * shape.width + attention + inside * shape.inner
    if recipe.lora is not None:
        block += (7 if shape.gated_mlp else 6) * recipe.lora.rank * (HALF if bf16 else FLOAT)
    if not packs(recipe) and (rows.deviation or recipe.method == "prefix"):
        block += FLOAT * min(rows.longest, recipe.max_length)  # the mask, as numbers that attention adds
    if recipe.method == "prefix" and isinstance(recipe.adapter, TokenSettings):
        # Keys and values of the virtual tokens, beside each row's own.
        block += 8 * shape.keys * recipe.adapter.tokens / max(1, min(rows.longest, recipe.max_length))
    blocks = tokens * block
    if recipe.gradient_checkpointing:  # each block's input, and one block whole
        return float(tokens * FLOAT * shape.width * shape.layers + blocks)
    return float(blocks * shape.layers + 4 * FLOAT * tokens * shape.width)  # the embedding, the last norm's three


def _kind(recipe: Recipe) -> str:
    if recipe.lora is not None:
        return "dora" if recipe.lora.dora else "lora"
    return {"scratch": "full", "full": "full", "ia3": "ia3"}.get(recipe.method, "frozen")


def _loss(recipe: Recipe, shape: Shape, tokens: int, *, bf16: bool) -> float:
    if recipe.task in _GENERATES and recipe.privacy is None and recipe.processes == 1:
        chunk = min(tokens * shape.vocabulary, max(_CHUNK, 64 * shape.vocabulary))
        found = float(chunk * _CHUNKS * FLOAT)
        head = shape.vocabulary * shape.width
        if recipe.form == "weights":
            found += 2 * head * FLOAT  # the sum of the head's gradient, and what is added to it or made of it
        if bf16:
            found += head * HALF
        return found
    if recipe.task in (*_GENERATES, "preference"):
        return float(4 * FLOAT * tokens * shape.vocabulary)  # logits, their logarithms, and the gradient of each
    return 0.0


def _temporary(recipe: Recipe, shape: Shape, tokens: int, *, bf16: bool) -> float:
    largest = shape.width * max(shape.inner, shape.width)
    gradients = 3 * FLOAT * tokens * max(shape.inner, shape.width)  # of what the last block is made of
    if recipe.method == "qlora":
        gradients += FLOAT * largest  # one layer at a time is a matrix of floats
    if recipe.lora is not None and recipe.lora.dora:
        gradients += 3 * FLOAT * largest  # the weight, what is added to it, and their sum, whose length is measured
    if bf16 and recipe.form == "weights":
        gradients += HALF * shape.linear  # rounded for the step
    return float(gradients)


def _passing(shape: Shape) -> float:
    return float(_EVALUATED * FLOAT * (3 * shape.width + 3 * shape.inner))


def _measured(recipe: Recipe, shape: Shape, rows: Rows) -> float:
    """Of a batch whose loss is looked at: only tasks with a language head have one."""
    if recipe.task not in (*_GENERATES, "preference"):
        return 0.0
    tokens = min(_EVALUATED, rows.measured)
    return float(_LOGIT_COPIES * FLOAT * tokens * shape.vocabulary)
