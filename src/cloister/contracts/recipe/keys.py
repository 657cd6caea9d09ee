"""The recipe's own keys: what each takes, what it is when left out, and what it is for. One table for the reader, the
JSON schema, ``recipe explain`` and the format's page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from .fields import Asset, Choice, Integer, Number, Reader, Truth
from .methods import METHODS
from .tasks import TASKS

__all__ = ["KEYS", "REQUIRED", "UNSET", "Key", "default", "default_words"]

REQUIRED: Final = object()  # no default: it must be there
UNSET: Final = object()  # left out, it has no value
BY_CHOICE: Final = object()  # 0.1 where something is chosen by the validation rows, else it has no value
BY_TASK: Final = object()  # chat has it, the other tasks don't
BY_METHOD: Final = object()  # by task and method, see ``_TRIED``


@dataclass(frozen=True)
class Key:
    reader: Reader
    default: Any
    says: str


KEYS: Mapping[str, Key] = {
    "task": Key(Choice(tuple(TASKS)), REQUIRED, "what the model is to do"),
    "method": Key(Choice(tuple(METHODS)), REQUIRED, "what of the model is trained"),
    "data": Key(Asset(), REQUIRED, "the rows"),
    "base": Key(Asset(), REQUIRED, "the base model"),
    "general": Key(Asset(), UNSET, "general text: what the base could do before is measured, and replayed, on it"),
    "validation": Key(Number("0.001", "0.5"), "0.1", "share of the rows set aside"),
    "test": Key(Number("0.001", "0.5"), BY_CHOICE, "share set aside for the report where validation rows choose"),
    "epochs": Key(Integer(1, 1000), 3, "how often each row is seen"),
    "max_steps": Key(Integer(1, 100_000_000), UNSET, "optimizer steps; shortens a run, never lengthens it"),
    "learning_rate": Key(Number("0.00000001", "1"), BY_METHOD, "the highest of the schedule"),
    "schedule": Key(Choice(("linear", "cosine", "constant")), "linear", "how the rate goes on after the warm-up"),
    "batch_size": Key(Integer(1, 8192), BY_METHOD, "rows of a batch"),
    "gradient_accumulation": Key(Integer(1, 4096), 1, "batches of a step"),
    "optimizer": Key(Choice(("adamw", "adamw_8bit", "adafactor")), "adamw", "adamw_8bit keeps a quarter of the state"),
    "max_gradient_norm": Key(Number("0", "1000"), "1", "longer gradients are shortened to it; 0: never"),
    "max_length": Key(Integer(8, 131_072), BY_METHOD, "tokens of a row; fewer where the base has fewer positions"),
    "warmup_ratio": Key(Number("0", "0.5"), "0.06", "share of the steps in which the rate rises"),
    "weight_decay": Key(Number("0", "1"), "0.01", "AdamW's"),
    "pooling": Key(Choice(("auto", "mean", "first")), "auto", "what of the encoder stands for a whole text"),
    "template": Key(Choice(("auto", "base", "chatml")), BY_TASK, "chat: what writes messages as text"),
    "packing": Key(
        Choice(("auto", "on", "off")), "auto", "rows beside each other instead of padding; auto: if it fits"
    ),
    "compile": Key(Choice(("auto", "on", "off")), "auto", "compile the model; auto: where the run is long enough"),
    "gradient_checkpointing": Key(Truth(), False, "compute activations twice instead of keeping them"),
    "evaluate_steps": Key(Integer(0, 1_000_000), 0, "steps between looks at the validation rows; 0: once an epoch"),
    "select": Key(Choice(("last", "best")), "last", "which weights leave: the last, or the best on validation rows"),
    "patience": Key(Integer(0, 1000), 0, "looks without improvement after which training stops; 0: never"),
    "processes": Key(Integer(1, 64), 1, "processes that train together"),
    "sharding": Key(Choice(("ddp", "fsdp")), "ddp", "several processes: each has the whole model, or a part"),
    "seed": Key(Integer(0, 2**31 - 1), 0, "of split, row order and initial weights"),
    "checkpoint_steps": Key(Integer(0, 1_000_000), 100, "steps between sealed checkpoints; 0 writes none"),
    "checkpoint_minutes": Key(
        Integer(0, 1440), 0, "minutes between sealed checkpoints, beside the steps; 0: not by time"
    ),
    "precision": Key(Choice(("auto", "fp32", "bf16")), "auto", "auto: bf16 where the hardware multiplies it"),
    "threads": Key(Integer(1, 1024), UNSET, "processor threads; the machine's"),
}

# Those of classification were searched for on banking77: each reaches its accuracy, over several seeds, in the least
# time. The others start from these, or from what is usual for the method; docs/quality.md shows what some reach,
# and `python -m benchmarks.quality --inside` tries others on training rows.
_RATES: Mapping[tuple[str, str], str] = {
    ("classification", "lora"): "0.0005",
    ("classification", "full"): "0.0001",
    ("multilabel", "lora"): "0.0005",
    ("multilabel", "full"): "0.0001",
    ("extraction", "lora"): "0.0005",
    ("extraction", "full"): "0.0001",
    ("ranking", "lora"): "0.0005",
    ("ranking", "full"): "0.00005",
    ("embedding", "lora"): "0.0005",
    ("embedding", "full"): "0.00005",
    ("generation", "lora"): "0.0005",
    ("generation", "full"): "0.00005",
    ("text", "lora"): "0.0005",
    ("text", "full"): "0.00005",
    ("chat", "lora"): "0.0005",
    ("chat", "full"): "0.00005",
    ("preference", "lora"): "0.0001",
    ("preference", "full"): "0.000002",
}
_SAME_RATE = {"qlora": "lora"}
_RATE_OF_METHOD = {
    "ia3": "0.005", "prefix": "0.01", "prompt": "0.03", "ptuning": "0.003", "scratch": "0.001", "script": "0.001",
}  # fmt: skip
_SIZES = {
    "classification": (32, 256),
    "multilabel": (32, 256),
    "extraction": (32, 256),
    "ranking": (32, 256),
    "embedding": (32, 256),
    "generation": (16, 1024),
    "text": (16, 1024),
    "chat": (16, 1024),
    "preference": (8, 1024),
    "script": (32, 1024),
}


def default(name: str, task: str, method: str) -> Any:
    """``REQUIRED``, ``UNSET``, or the value of a key that was left out."""
    if KEYS[name].default is BY_CHOICE:
        return UNSET  # ``parse_recipe`` knows what else stands in the recipe
    if KEYS[name].default is BY_TASK:
        return "auto" if task == "chat" else UNSET
    if KEYS[name].default is not BY_METHOD:
        return KEYS[name].default
    if name == "learning_rate":
        return _RATES.get((task, _SAME_RATE.get(method, method))) or _RATE_OF_METHOD[method]
    return _SIZES[task][name == "max_length"]


def default_words(name: str) -> str:
    """What a key is when it is left out, for people."""
    words = {
        id(REQUIRED): "required",
        id(UNSET): "none",
        id(BY_METHOD): "by task and method",
        id(BY_TASK): "auto",
        id(BY_CHOICE): "0.1 or none",
    }
    return words.get(id(KEYS[name].default), str(KEYS[name].default))
