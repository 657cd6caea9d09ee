"""How a base is trained: the methods, what leaves of each, and the settings that some of them have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from .fields import Integer, Number, Reader, Targets, Truth

__all__ = [
    "METHODS",
    "SECTIONS",
    "Adapter",
    "DpoSettings",
    "Ia3Settings",
    "LoraSettings",
    "Method",
    "PTuningSettings",
    "Section",
    "TokenSettings",
]


@dataclass(frozen=True)
class LoraSettings:
    """``targets``: None chooses every linear layer inside the transformer blocks."""

    rank: int
    alpha: int
    dropout: Decimal
    targets: tuple[str, ...] | None
    rslora: bool
    dora: bool


@dataclass(frozen=True)
class Ia3Settings:
    """``targets``: linear layers whose outputs are scaled; None chooses the attention's keys and values, and the inputs
    of the last linear layer of each MLP."""

    targets: tuple[str, ...] | None


@dataclass(frozen=True)
class TokenSettings:
    """Virtual tokens in front of every row."""

    tokens: int


@dataclass(frozen=True)
class PTuningSettings:
    """Virtual tokens that a small network of ``hidden`` units makes."""

    tokens: int
    hidden: int


@dataclass(frozen=True)
class DpoSettings:
    """Direct preference optimization (Rafailov et al. 2023): ``beta`` holds the model near the base,
    ``label_smoothing`` is the share of pairs that may stand the wrong way round."""

    beta: Decimal
    label_smoothing: Decimal


Adapter = LoraSettings | Ia3Settings | TokenSettings | PTuningSettings


@dataclass(frozen=True)
class Section:
    """Settings of one method, under the method's own name, or of one ``task``. ``keys``: reader, default, and what it
    is, by name."""

    made: type[Adapter] | type[DpoSettings]
    keys: Mapping[str, tuple[Reader, Any, str]]
    task: str | None = None

    def belongs(self, name: str, task: str, method: str) -> bool:
        """Whether a recipe of this task and method has these settings, which are called ``name``."""
        return name == method if self.task is None else self.task == task


@dataclass(frozen=True)
class Method:
    """``form``: what leaves, as contracts name it. ``says``: one line for people."""

    form: str
    says: str


METHODS: Mapping[str, Method] = {
    "lora": Method("adapter", "small matrices beside the base's linear layers"),
    "ia3": Method("adapter", "one factor for each feature of some layers: the smallest adapter"),
    "prefix": Method("adapter", "virtual tokens in front of every layer's attention"),
    "prompt": Method("adapter", "virtual tokens in front of the text"),
    "ptuning": Method("adapter", "virtual tokens in front of the text, made by a small network"),
    "full": Method("weights", "every weight of the base"),
    "scratch": Method("weights", "the base's architecture and tokenizer, with weights that begin at random"),
}
_TOKENS: tuple[Reader, Any, str] = (Integer(1, 1024), 20, "how many virtual tokens")
SECTIONS: Mapping[str, Section] = {
    "lora": Section(
        LoraSettings,
        {
            "rank": (Integer(1, 512), 16, "rank of the matrices"),
            "alpha": (Integer(1, 4096), 32, "their weight is alpha over rank"),
            "dropout": (Number("0", "0.9"), "0", "share of the inputs that is dropped"),
            "targets": (Targets(), "auto", "which linear layers"),
            "rslora": (Truth(), False, "weight alpha over the root of the rank"),
            "dora": (Truth(), False, "train magnitude and direction apart"),
        },
    ),
    "ia3": Section(Ia3Settings, {"targets": (Targets(), "auto", "which linear layers")}),
    "prefix": Section(TokenSettings, {"tokens": _TOKENS}),
    "prompt": Section(TokenSettings, {"tokens": _TOKENS}),
    "ptuning": Section(PTuningSettings, {"tokens": _TOKENS, "hidden": (Integer(1, 8192), 128, "units of the network")}),
    "dpo": Section(
        DpoSettings,
        {
            "beta": (Number("0.0001", "100"), "0.1", "how strongly the model is held near the base"),
            "label_smoothing": (Number("0", "0.49"), "0", "share of the pairs that may be the wrong way round"),
        },
        task="preference",
    ),
}
