"""How a base is trained: the methods, what leaves of each, and the settings that some of them have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from .fields import Choice, Integer, Number, Parameters, Reader, Targets, Truth

__all__ = [
    "METHODS",
    "SECTIONS",
    "Adapter",
    "DpoSettings",
    "EwcSettings",
    "Ia3Settings",
    "LoraSettings",
    "Method",
    "PTuningSettings",
    "PrivacySettings",
    "ReplaySettings",
    "ScriptSettings",
    "SearchSettings",
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
class ScriptSettings:
    """What a party's own program is given. ``parameters``: texts by name."""

    parameters: Mapping[str, str]


@dataclass(frozen=True)
class DpoSettings:
    """Direct preference optimization (Rafailov et al. 2023): ``beta`` holds the model near the base,
    ``label_smoothing`` is the share of pairs that may stand the wrong way round."""

    beta: Decimal
    label_smoothing: Decimal


@dataclass(frozen=True)
class PrivacySettings:
    """DP-SGD: at most ``epsilon`` at ``delta`` for one unit: an ``example``, or all rows of one ``user``. A unit's
    gradient is shortened to ``clip_norm``."""

    epsilon: Decimal
    delta: Decimal
    unit: str
    clip_norm: Decimal


@dataclass(frozen=True)
class ReplaySettings:
    """``share`` of the rows of every step are general text."""

    share: Decimal

    def rows(self, step: int) -> int:
        """How many of a step's ``step`` rows."""
        return int(step * self.share + Decimal("0.5"))


@dataclass(frozen=True)
class EwcSettings:
    """Elastic weight consolidation (Kirkpatrick et al. 2017): ``strength`` holds weights that general text needs."""

    strength: Decimal


@dataclass(frozen=True)
class SearchSettings:
    """At most ``trials`` short trainings, for at most ``minutes``, that choose the learning rate and the batch size."""

    trials: int
    minutes: int
    epochs: int


Adapter = LoraSettings | Ia3Settings | TokenSettings | PTuningSettings


@dataclass(frozen=True)
class Section:
    """Settings of one method, under the method's own name, or of one ``task``; ``optional`` ones are of any method, and
    stand for something that is done only if they are there. ``keys``: reader, default, and what it is, by name."""

    made: type[Any]
    keys: Mapping[str, tuple[Reader, Any, str]]
    task: str | None = None
    optional: bool = False
    says: str = ""  # of an optional one, for people

    def belongs(self, name: str, task: str, method: str) -> bool:
        """Whether a recipe of this task and method can have these settings, which are called ``name``."""
        return self.optional or (name == method if self.task is None else self.task == task)


@dataclass(frozen=True)
class Method:
    """``form``: what leaves, as contracts name it. ``says``: one line for people."""

    form: str
    says: str


METHODS: Mapping[str, Method] = {
    "lora": Method("adapter", "small matrices beside the base's linear layers"),
    "qlora": Method("adapter", "the same, on a base whose linear layers are kept in 4 bits"),
    "ia3": Method("adapter", "one factor for each feature of some layers: the smallest adapter"),
    "prefix": Method("adapter", "virtual tokens in front of every layer's attention"),
    "prompt": Method("adapter", "virtual tokens in front of the text"),
    "ptuning": Method("adapter", "virtual tokens in front of the text, made by a small network"),
    "full": Method("weights", "every weight of the base"),
    "scratch": Method("weights", "the base's architecture and tokenizer, with weights that begin at random"),
    "script": Method("weights", "as a party's own program does it, whose digest stands in the contract"),
}
_TOKENS: tuple[Reader, Any, str] = (Integer(1, 1024), 20, "how many virtual tokens")
_LORA: Mapping[str, tuple[Reader, Any, str]] = {
    "rank": (Integer(1, 512), 16, "rank of the matrices"),
    "alpha": (Integer(1, 4096), 32, "their weight is alpha over rank"),
    "dropout": (Number("0", "0.9"), "0", "share of the inputs that is dropped"),
    "targets": (Targets(), "auto", "which linear layers"),
    "rslora": (Truth(), False, "weight alpha over the root of the rank"),
    "dora": (Truth(), False, "train magnitude and direction apart"),
}
SECTIONS: Mapping[str, Section] = {
    "lora": Section(LoraSettings, _LORA),
    "qlora": Section(LoraSettings, _LORA),
    "ia3": Section(Ia3Settings, {"targets": (Targets(), "auto", "which linear layers")}),
    "prefix": Section(TokenSettings, {"tokens": _TOKENS}),
    "prompt": Section(TokenSettings, {"tokens": _TOKENS}),
    "ptuning": Section(PTuningSettings, {"tokens": _TOKENS, "hidden": (Integer(1, 8192), 128, "units of the network")}),
    "script": Section(ScriptSettings, {"parameters": (Parameters(), {}, "what the program is given")}),
    "dpo": Section(
        DpoSettings,
        {
            "beta": (Number("0.0001", "100"), "0.1", "how strongly the model is held near the base"),
            "label_smoothing": (Number("0", "0.49"), "0", "share of the pairs that may be the wrong way round"),
        },
        task="preference",
    ),
    "privacy": Section(
        PrivacySettings,
        {
            "epsilon": (Number("0.01", "1000"), "8", "what one unit's presence may change, at most"),
            "delta": (Number("0.000000000001", "0.01"), "0.00001", "the chance that it changes more"),
            "unit": (Choice(("example", "user")), "example", "whose presence is hidden: one row's, or all of a user's"),
            "clip_norm": (Number("0.000001", "1000"), "1", "a unit's gradient is shortened to it"),
        },
        optional=True,
        says="differential privacy (DP-SGD), under a budget that the data's owner keeps",
    ),
    "replay": Section(
        ReplaySettings,
        {"share": (Number("0.001", "0.9"), "0.1", "share of the rows that are general text")},
        optional=True,
        says="mix general text into what is learned",
    ),
    "ewc": Section(
        EwcSettings,
        {"strength": (Number("0.000001", "1000000"), "1", "how strongly they are held")},
        optional=True,
        says="hold the weights that general text needs",
    ),
    "search": Section(
        SearchSettings,
        {
            "trials": (Integer(2, 1000), 10, "how many settings are tried, at most"),
            "minutes": (Integer(1, 100_000), 60, "how long they are tried, at most"),
            "epochs": (Integer(1, 100), 1, "of each try"),
        },
        optional=True,
        says="try settings first, and train with the best of them",
    ),
}
