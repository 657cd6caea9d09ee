"""The recipe: what one run does, as data. Brokers, the control plane and the workload read it with this one function.

A recipe can't name code, a path or a URL; every key, its type and its range stand in ``_KEYS``, and what isn't there
is refused. Numbers with a fraction are decimals, never floats, so that one recipe has one canonical document.
The format's page is docs/spec/recipe.md.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from ..crypto import canonical_json, sha256
from ..errors import Malformed, Misuse
from .recipe_fields import Key, asset, choice, decimal, decimal_text, integer, targets, truth
from .recipe_yaml import read_yaml

__all__ = ["METHODS", "TASKS", "Columns", "LoraSettings", "Recipe", "parse_recipe"]

KIND = "cloister/recipe/v1"
TASKS = ("classification", "generation")
METHODS = ("lora", "full")

_LORA_KEYS: dict[str, Key] = {
    "rank": integer(1, 512),
    "alpha": integer(1, 4096),
    "dropout": decimal("0", "0.9"),
    "targets": targets(),
    "rslora": truth(),
}
_KEYS: dict[str, Key] = {
    "task": choice(*TASKS),
    "method": choice(*METHODS),
    "data": asset(),
    "base": asset(),
    "validation": decimal("0.001", "0.5"),
    "epochs": integer(1, 1000),
    "max_steps": integer(1, 100_000_000),
    "learning_rate": decimal("0.00000001", "1"),
    "batch_size": integer(1, 8192),
    "gradient_accumulation": integer(1, 4096),
    "max_length": integer(8, 131_072),
    "warmup_ratio": decimal("0", "0.5"),
    "weight_decay": decimal("0", "1"),
    "pooling": choice("auto", "mean", "first"),
    "seed": integer(0, 2**31 - 1),
    "checkpoint_steps": integer(0, 1_000_000),
    "precision": choice("auto", "fp32", "bf16"),
    "threads": integer(1, 1024),
}
_NESTED = ("columns", "lora")
_COLUMNS = {"classification": ("text", "label"), "generation": ("prompt", "completion")}

# Found by `python -m benchmarks.quality`: each reaches its accuracy over several seeds in the least time.
_COMMON: dict[str, Any] = {
    "validation": "0.1", "max_steps": None, "gradient_accumulation": 1, "warmup_ratio": "0.06",
    "weight_decay": "0.01", "pooling": "auto", "seed": 0, "checkpoint_steps": 100, "precision": "auto", "threads": None,
}  # fmt: skip
_DEFAULTS: dict[tuple[str, str], dict[str, Any]] = {
    ("classification", "lora"): {"epochs": 3, "learning_rate": "0.0005", "batch_size": 32, "max_length": 256},
    ("classification", "full"): {"epochs": 3, "learning_rate": "0.0001", "batch_size": 32, "max_length": 256},
    ("generation", "lora"): {"epochs": 3, "learning_rate": "0.0005", "batch_size": 16, "max_length": 1024},
    ("generation", "full"): {"epochs": 3, "learning_rate": "0.00005", "batch_size": 16, "max_length": 1024},
}
_LORA_DEFAULTS: dict[str, Any] = {"rank": 16, "alpha": 32, "dropout": "0", "targets": "auto", "rslora": False}


@dataclass(frozen=True)
class Columns:
    """Which columns are read. ``target`` is the label or the completion; a generation without prompt has no input."""

    input: str | None
    target: str

    def names(self) -> tuple[str, ...]:
        return (self.target,) if self.input is None else (self.input, self.target)


@dataclass(frozen=True)
class LoraSettings:
    """``targets``: None chooses every linear layer inside the transformer blocks."""

    rank: int
    alpha: int
    dropout: Decimal
    targets: tuple[str, ...] | None
    rslora: bool


@dataclass(frozen=True)
class Recipe:
    """A checked recipe. ``data`` and ``base`` are asset names, party/asset; ``lora`` is None for full fine-tuning.

    ``max_steps`` only ever shortens: a contract that bounds the epochs can't be passed by a larger step count.
    ``checkpoint_steps`` 0 writes no checkpoints.
    """

    task: str
    method: str
    data: str
    base: str
    columns: Columns
    validation: Decimal
    epochs: int
    max_steps: int | None
    learning_rate: Decimal
    batch_size: int
    gradient_accumulation: int
    max_length: int
    warmup_ratio: Decimal
    weight_decay: Decimal
    lora: LoraSettings | None
    pooling: str
    seed: int
    checkpoint_steps: int
    precision: str
    threads: int | None

    def to_document(self) -> dict[str, Any]:
        """The canonical form, every default written out, decimals as text."""
        out: dict[str, Any] = {"kind": KIND}
        for name in _KEYS:
            out[name] = _plain(getattr(self, name))
        names = _COLUMNS[self.task]
        out["columns"] = {names[1]: self.columns.target}
        if self.columns.input is not None:
            out["columns"][names[0]] = self.columns.input
        if self.lora is not None:
            out["lora"] = {name: _plain(getattr(self.lora, name)) for name in _LORA_KEYS}
            out["lora"]["targets"] = "auto" if self.lora.targets is None else list(self.lora.targets)
        return {name: value for name, value in out.items() if value is not None}

    @property
    def digest(self) -> bytes:
        return sha256(canonical_json(self.to_document()))

    @classmethod
    def from_document(cls, value: Any) -> Recipe:
        """Read exactly what ``to_document`` writes; Malformed for any other spelling of the same recipe."""
        if not isinstance(value, dict) or value.get("kind") != KIND:
            raise Malformed("recipe.kind", f"This is not a recipe document of kind {KIND}.")
        recipe = parse_recipe({name: item for name, item in value.items() if name != "kind"})
        if recipe.to_document() != value:
            raise Malformed("recipe.canonical", "The recipe document is not in canonical form.")
        return recipe


def parse_recipe(source: str | bytes | Mapping[str, Any]) -> Recipe:
    """Check a recipe given as YAML or as a mapping.

    Raises Misuse (``recipe.key`` unknown, ``recipe.missing``, ``recipe.value``) and Malformed (``recipe.yaml.*``).
    """
    given = read_yaml(source) if isinstance(source, str | bytes) else dict(source)
    _known(given, [*_KEYS, *_NESTED], "recipe")
    for name in ("task", "method"):
        if given.get(name) is None:
            raise Misuse("recipe.missing", f"The recipe lacks '{name}'; add it.", key=name)
    task, method = _KEYS["task"]("task", given["task"]), _KEYS["method"]("method", given["method"])
    merged = {**_COMMON, **_DEFAULTS[task, method], **{k: v for k, v in given.items() if v is not None}}
    if task != "classification" and merged["pooling"] != "auto":
        raise Misuse("recipe.value", "The recipe's 'pooling' is for classification only; remove it.", key="pooling")
    read = {name: _read(name, key, merged) for name, key in _KEYS.items()}
    return Recipe(**read, columns=_columns(task, merged.get("columns")), lora=_lora(method, merged.get("lora")))


def _read(name: str, key: Callable[[str, Any], Any], values: Mapping[str, Any], prefix: str = "") -> Any:
    if values.get(name) is None:
        if name in _COMMON:
            return None
        raise Misuse("recipe.missing", f"The recipe lacks '{prefix}{name}'; add it.", key=prefix + name)
    return key(prefix + name, values[name])


def _known(given: Mapping[Any, Any], valid: list[str], what: str) -> None:
    for name in given:
        if name in valid:
            continue
        shown = name if isinstance(name, str) and re.fullmatch(r"[\w.-]{1,40}", name) else "(not a plain name)"
        near = difflib.get_close_matches(str(name)[:40], valid, n=1, cutoff=0.0)[0]
        raise Misuse("recipe.key", f"The {what} has no key '{shown}'; the nearest valid key is '{near}'.", key=shown)


def _columns(task: str, given: Any) -> Columns:
    source, target = _COLUMNS[task]
    if not isinstance(given, Mapping):
        wanted = "text and label" if task == "classification" else "completion, and prompt if there is one"
        raise Misuse("recipe.missing", f"The recipe lacks 'columns'; name {wanted} there.", key="columns")
    _known(given, [source, target], "recipe's columns")
    found = {name: value for name, value in given.items() if value is not None}
    for name in found:
        if not isinstance(found[name], str) or not 0 < len(found[name]) <= 256:
            raise Misuse(
                "recipe.value", f"The recipe's 'columns.{name}' must be a column's name.", key=f"columns.{name}"
            )
    if target not in found or (source not in found and task == "classification"):
        missing = source if target in found else target
        raise Misuse("recipe.missing", f"The recipe lacks 'columns.{missing}'; add it.", key=f"columns.{missing}")
    if found.get(source) == found[target]:
        raise Misuse("recipe.value", f"The recipe's 'columns' name one column as {source} and {target}.", key="columns")
    return Columns(found.get(source), found[target])


def _lora(method: str, given: Any) -> LoraSettings | None:
    if method != "lora":
        if given is not None:
            raise Misuse(
                "recipe.value", "The recipe has 'lora' settings but its method is full; remove them.", key="lora"
            )
        return None
    if given is not None and not isinstance(given, Mapping):
        raise Misuse("recipe.value", "The recipe's 'lora' must hold keys such as rank and alpha.", key="lora")
    _known(given or {}, list(_LORA_KEYS), "recipe's lora")
    merged = {**_LORA_DEFAULTS, **{k: v for k, v in (given or {}).items() if v is not None}}
    return LoraSettings(**{name: _read(name, key, merged, "lora.") for name, key in _LORA_KEYS.items()})


def _plain(value: Any) -> Any:
    return decimal_text(value) if isinstance(value, Decimal) else value
