"""``recipe advise``: a method and its settings from task, rows, memory, deadline and regulation, each with its reason.

All rules stand in the tables below; the same question gets the same answer. Advice is where to begin, not what is best:
only trying tells that. On law it says what the parts here do, and never that a law is met.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..contracts.forecast import Forecast, Machine, Rows, Shape, forecast
from ..contracts.recipe import KEYS, TASKS, Recipe, parse_recipe
from ..errors import Misuse
from .recipe_checks import fitting_changes

__all__ = ["REGULATIONS", "Advice", "Reason", "Wanted", "advise_recipe"]


@dataclass(frozen=True)
class Wanted:
    """``tokens``: of an ordinary row. ``deadline``: seconds, or None. ``regulation``: one of ``REGULATIONS``."""

    task: str
    rows: int
    tokens: int
    regulation: str = "none"
    deadline: float | None = None


@dataclass(frozen=True)
class Reason:
    """Why ``key`` is what it is; ``says`` is one sentence."""

    key: str
    says: str


@dataclass(frozen=True)
class Advice:
    """``text``: the recipe as YAML, its reasons beside it."""

    recipe: Recipe
    text: str
    reasons: tuple[Reason, ...]
    forecast: Forecast
    fits: bool

    def document(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.to_document(),
            "yaml": self.text,
            "reasons": [{"key": r.key, "says": r.says} for r in self.reasons],
            "forecast": self.forecast.document(),
            "fits": self.fits,
        }


# From so many rows on: the methods to try, the first that fits is taken, and why.
_METHODS: tuple[tuple[int, tuple[str, ...], str], ...] = (
    (50_000, ("full", "lora", "qlora"), "so many rows can teach all weights something without washing the base out"),
    (0, ("lora", "qlora", "ia3", "prompt"), "from so few rows it learns what all weights would, and forgets less"),
)  # fmt: skip
# What a regulated party should hand out, and how it says so. Epsilon 8 is what published fine-tuning mostly uses.
REGULATIONS: Mapping[str, str] = {
    "none": "",
    "hipaa": "Health data (HIPAA): no rule names an epsilon, and differential privacy alone is not de-identification;"
    " 8 is what published work mostly uses, and your privacy officer decides",
    "glba": "Customers' financial data (GLBA): the Safeguards Rule asks for measures that fit the risk and names none"
    " of these; 8 is what published work mostly uses, and your counsel decides",
    "pci": "Card data (PCI DSS): primary account numbers must be removed or tokenized before sealing, which training"
    " can't do for you; this is only a second line behind that",
}
_PRIVATE_TASKS = ("classification", "generation", "text", "chat")
_PRIVATE_METHODS = ("lora", "qlora", "full")
# From so many rows on: rank, epochs.
_SIZES = ((100_000, 32, 1), (20_000, 32, 2), (2_000, 16, 3), (500, 8, 5), (0, 8, 10))
_CHOOSING = 1_000  # rows from which on some can be spared to choose by


def advise_recipe(wanted: Wanted, shape: Shape, machine: Machine) -> Advice:
    """Raises Misuse (``recipe.task``, ``recipe.regulation``, ``recipe.advice``)."""
    _check(wanted, shape)
    reasons: list[Reason] = []
    rows = Rows(wanted.rows, float(wanted.tokens), wanted.tokens / 2, _longest(wanted, shape))
    keys = _common(wanted, shape, reasons)
    keys, found, fits = _method(keys, wanted, shape, rows, machine, reasons)
    keys, found = _in_time(keys, found, wanted, shape, rows, machine, reasons)
    recipe = parse_recipe(keys)
    return Advice(recipe, _yaml(keys, reasons), tuple(reasons), found, fits)


def _check(wanted: Wanted, shape: Shape) -> None:
    if wanted.task not in TASKS or wanted.task == "script":
        known = ", ".join(task for task in TASKS if task != "script")
        raise Misuse("recipe.task", f"There is no advice for a task of that name; there is for: {known}.")
    if wanted.regulation not in REGULATIONS:
        raise Misuse("recipe.regulation", f"A regulation is one of {', '.join(REGULATIONS)}; give one of them.")
    if wanted.rows < 1 or wanted.tokens < 1:
        raise Misuse("recipe.advice", "Say with --rows and --tokens how many rows there are, and how long one is.")
    if shape.block == "encoder" and wanted.task in ("generation", "text", "chat", "preference"):
        raise Misuse("recipe.advice", "The base is an encoder, which can't write; name a causal language model.")


def _longest(wanted: Wanted, shape: Shape) -> int:
    """Half as long again as an ordinary row, in steps of 64, as far as the base reads."""
    length = max(64, 64 * math.ceil(wanted.tokens * 1.5 / 64))
    return min(length, shape.positions or length, 131_072)


def _common(wanted: Wanted, shape: Shape, reasons: list[Reason]) -> dict[str, Any]:
    _, _, epochs = next(size for size in _SIZES if wanted.rows >= size[0])
    length = _longest(wanted, shape)
    reasons += [
        Reason("epochs", f"With {wanted.rows} rows, {epochs} times is where gains usually end."),
        Reason("max_length", f"Rows of about {wanted.tokens} tokens: half as many again cuts few of them."),
    ]
    keys: dict[str, Any] = {
        "task": wanted.task,
        "data": "party/dataset",
        "base": "party/model",
        "columns": {role: role for role in TASKS[wanted.task].required},
        "epochs": epochs,
        "max_length": length,
    }
    if wanted.regulation != "none" and wanted.task in _PRIVATE_TASKS:
        says = "The validation rows are private too, and choosing by them would spend privacy that no noise covers."
        reasons.append(Reason("select", says))
    elif wanted.rows >= _CHOOSING:
        keys |= {"select": "best", "patience": 2, "epochs": epochs + 1 if epochs > 1 else 1}
        says = "There are rows enough to choose the best weights by some, and to stop when nothing gets better."
        reasons.append(Reason("select", says))
    else:
        reasons.append(Reason("select", f"Below {_CHOOSING} rows, choosing by a tenth of them would follow chance."))
    return keys


def _method(
    keys: dict[str, Any], wanted: Wanted, shape: Shape, rows: Rows, machine: Machine, reasons: list[Reason]
) -> tuple[dict[str, Any], Forecast, bool]:
    candidates, because = next((methods, says) for least, methods, says in _METHODS if wanted.rows >= least)
    private = wanted.regulation != "none" and wanted.task in _PRIVATE_TASKS
    if wanted.regulation != "none":
        candidates = tuple(m for m in candidates if m != "full" and (m in _PRIVATE_METHODS or not private))
        because = "an adapter is all that leaves, so the base and most of what could memorize rows stay inside"
    if any(size % 64 for size in (shape.width, shape.inner, shape.queries, shape.keys)):
        candidates = tuple(m for m in candidates if m != "qlora")
    tried: list[tuple[dict[str, Any], Forecast]] = []
    for method in candidates:
        candidate = {**keys, "method": method, **_settings(method, wanted, private)}
        fitted = _fitted(candidate, shape, rows, machine)
        tried.append(fitted)
        if _fits(fitted[1], machine):
            break
    chosen, found = tried[-1]
    fits = _fits(found, machine)
    method = chosen["method"]
    passed = f", and {candidates[0]} would not fit into the memory" if method != candidates[0] and fits else ""
    reasons.insert(0, Reason("method", f"{method}: {because}{passed}."))
    reasons += _about_memory(chosen, found, fits)
    reasons += _about_privacy(wanted, private)
    return chosen, found, fits


def _settings(method: str, wanted: Wanted, private: bool) -> dict[str, Any]:
    rank = next(size[1] for size in _SIZES if wanted.rows >= size[0])
    found: dict[str, Any] = {method: {"rank": rank, "alpha": 2 * rank}} if method in ("lora", "qlora") else {}
    if private:
        delta = 10.0 ** -max(5, math.ceil(math.log10(wanted.rows)) + 1)
        found["privacy"] = {"epsilon": 8, "delta": f"{delta:.12f}".rstrip("0"), "unit": "example"}
    return found


def _fitted(keys: dict[str, Any], shape: Shape, rows: Rows, machine: Machine) -> tuple[dict[str, Any], Forecast]:
    """With the batch that fits: smaller ones, more of them a step, so that the step learns from as many rows."""
    recipe = parse_recipe(keys)
    found = forecast(recipe, shape, rows, machine)
    if _fits(found, machine):
        return keys, found
    for change in _ways(keys, shape, rows, machine):
        candidate = {**keys, **change}
        return candidate, forecast(parse_recipe(candidate), shape, rows, machine)
    return keys, found


def _ways(keys: dict[str, Any], shape: Shape, rows: Rows, machine: Machine) -> list[dict[str, Any]]:
    # JSON is YAML as well, so the checks' own search serves here, too.
    changes = fitting_changes(json.dumps(keys), (), shape, rows, machine)
    if not changes or any(change.startswith("method=") for change in changes):
        return []
    pairs = (change.partition("=") for change in changes)
    return [{name: KEYS[name].reader.read(name, value) for name, _, value in pairs}]


def _fits(found: Forecast, machine: Machine) -> bool:
    return machine.memory is None or found.memory.total <= machine.memory


def _about_memory(keys: Mapping[str, Any], found: Forecast, fits: bool) -> list[Reason]:
    size = f"about {found.memory.total / 2**30:.1f} GiB"
    if not fits:
        return [Reason("method", f"Even this takes {size}, more than there is; use a smaller base.")]
    reasons = []
    if "gradient_accumulation" in keys:
        says = f"The step's rows in {keys['gradient_accumulation']} batches: the same gradient, in {size}."
        reasons.append(Reason("batch_size", says))
    if keys.get("gradient_checkpointing"):
        says = f"Activations are computed twice instead of kept, a third slower, so that {size} suffice."
        reasons.append(Reason("gradient_checkpointing", says))
    if keys.get("optimizer") == "adamw_8bit":
        reasons.append(Reason("optimizer", f"Its state in 8 bits is a quarter of the memory: {size} in all."))
    return reasons


def _about_privacy(wanted: Wanted, private: bool) -> list[Reason]:
    if wanted.regulation == "none":
        return []
    law = REGULATIONS[wanted.regulation]
    if not private:
        says = f"{law}; differential privacy isn't there for task {wanted.task}: the release gates alone protect."
        return [Reason("privacy", says)]
    unit = "If one person has several rows, set privacy.unit to user and name the column, or that person is not hidden."
    return [Reason("privacy", f"{law}."), Reason("privacy.unit", unit)]


def _in_time(
    keys: dict[str, Any],
    found: Forecast,
    wanted: Wanted,
    shape: Shape,
    rows: Rows,
    machine: Machine,
    reasons: list[Reason],
) -> tuple[dict[str, Any], Forecast]:
    """Fewer epochs where the deadline wants it, judged by the slow end of the forecast."""
    if wanted.deadline is None:
        return keys, found
    while found.duration.seconds[1] > wanted.deadline and keys["epochs"] > 1:
        keys = {**keys, "epochs": keys["epochs"] // 2}
        found = forecast(parse_recipe(keys), shape, rows, machine)
    most = found.duration.seconds[1]
    if most > wanted.deadline:
        says = f"Even one epoch may take {_hours(most)}; begin with fewer rows, or ask for a faster machine."
        reasons.append(Reason("epochs", says))
    else:
        reasons.append(
            Reason("epochs", f"{keys['epochs']} end before the deadline even at the slow end: {_hours(most)}.")
        )
    return keys, found


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 5400 else f"{math.ceil(seconds / 60)} minutes"


def _yaml(keys: Mapping[str, Any], reasons: list[Reason]) -> str:
    """Each key in the order of the format, under its reasons; at the end, why other keys are not there."""
    order = ["task", "method", "data", "base", "columns"]
    lines: list[str] = []
    for key in [*order, *(key for key in keys if key not in order)]:
        lines += [f"# {reason.says}" for reason in reasons if reason.key.partition(".")[0] == key]
        lines.append(f"{key}: {_value(keys[key])}")
    lines += [f"# {reason.says}" for reason in reasons if reason.key.partition(".")[0] not in keys]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_value(inner)}" for name, inner in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else str(value)
