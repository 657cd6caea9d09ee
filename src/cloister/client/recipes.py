"""Recipes on the owner's side: a draft, advice, forecast and warnings, and what each key is for. No key, no network
and no torch is needed.

The tour: ``recipe_checks`` (what it takes, and what speaks against it), ``recipe_advice`` (where to begin),
``recipe_sample`` (which tokens are learned); here, these for folders, files and words as people write them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..contracts.forecast import Forecast, Machine, Rows
from ..contracts.recipe import KEYS, METHODS, SECTIONS, TASKS, default_words, parse_recipe, recipe_schema
from ..errors import Misuse
from . import recipe_advice, recipe_checks
from .recipe_advice import Advice, Wanted
from .recipe_checks import Examined

__all__ = [
    "advise_recipe",
    "describe_machine",
    "examine_recipe",
    "explain_recipe",
    "forecast_lines",
    "recipe_draft",
    "recipe_schema",
]

_SIZE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?) ?(KiB|MiB|GiB|TiB|KB|MB|GB|TB)", re.IGNORECASE)
_UNITS = {"k": 1, "m": 2, "g": 3, "t": 4}
_SPAN = re.compile(r"([0-9]{1,6})([mhd])")
_SECONDS = {"m": 60, "h": 3600, "d": 86_400}


def describe_machine(memory: str | None = None, cores: int | None = None, *, gpu: bool = False) -> Machine:
    """``memory``: "16GiB". What isn't said is this machine's; of a GPU only what is said is known. Misuse
    (``recipe.memory``, ``recipe.cores``)."""
    this = recipe_checks.this_machine()
    size = None if memory is None else _SIZE.fullmatch(memory.strip())
    if memory is not None and size is None:
        raise Misuse("recipe.memory", "Write an amount of memory with its unit, such as 16GiB.")
    if cores is not None and not 1 <= cores <= 4096:
        raise Misuse("recipe.cores", "Give a number of cores from 1 to 4096.")
    amount = None
    if size is not None:
        base = 1024 if "i" in size[2].lower() else 1000
        amount = int(float(size[1]) * base ** _UNITS[size[2][0].lower()])
    if gpu:
        return Machine(amount, cores or this.cores, gpu=True, bf16=True)
    return replace(this, memory=amount or this.memory, cores=cores or this.cores)


def examine_recipe(
    source: str | bytes,
    changes: Sequence[str] = (),
    *,
    base: Path | None = None,
    rows: str | None = None,
    tokens: int = 0,
    machine: Machine | None = None,
    licences: Sequence[str] = (),
    purpose: str | None = None,
) -> Examined:
    """See ``recipe_checks``. ``rows``: a file, or how many there are, of ``tokens`` each. The licence that the base's
    model card names counts among ``licences``."""
    recipe = parse_recipe(source, changes)
    found = None
    if rows is not None and rows.isdecimal():
        length = tokens or recipe.max_length
        found = Rows(max(1, int(rows[:12])), float(length), length / 4 if tokens else 0.0, length + length // 2)
    elif rows is not None:
        found = recipe_checks.read_rows(Path(rows), recipe)
    named = None if base is None else recipe_checks.base_licence(base)
    return recipe_checks.examine_recipe(
        source,
        changes,
        shape=None if base is None else recipe_checks.read_base(base),
        rows=found,
        machine=machine,
        licences=[*licences, *([] if named is None or named in licences else [named])],
        purpose=purpose,
    )


def advise_recipe(
    task: str, rows: int, tokens: int, base: Path, machine: Machine, *, deadline: str | None, regulation: str
) -> Advice:
    """See ``recipe_advice``. ``deadline``: "90m", "8h", "2d". Misuse (``recipe.deadline``)."""
    span = None if deadline is None else _SPAN.fullmatch(deadline.strip())
    if deadline is not None and span is None:
        raise Misuse("recipe.deadline", "Write a deadline as minutes, hours or days from now: 90m, 8h or 2d.")
    seconds = None if span is None else float(int(span[1]) * _SECONDS[span[2]])
    wanted = Wanted(task, rows, tokens, regulation, seconds)
    return recipe_advice.advise_recipe(wanted, recipe_checks.read_base(base), machine)


def forecast_lines(found: Forecast | None) -> list[str]:
    """A forecast for people: a line of memory, its largest parts, and a line of time."""
    if found is None:
        return []
    parts = sorted(found.memory.parts.items(), key=lambda part: -part[1])
    held = ", ".join(f"{name} {_gib(size)}" for name, size in parts if size >= 1 << 20)
    least, most = found.duration.seconds
    return [
        f"Memory: about {_gib(found.memory.total)} GiB ({held}), most of it in the moment '{found.memory.moment}'.",
        f"Time: {_span(least)} to {_span(most)} for {found.duration.steps} steps over {found.duration.tokens} tokens.",
    ]


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"


def _span(seconds: float) -> str:
    for name, unit in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} seconds"


def recipe_draft(task: str, method: str) -> str:
    """YAML of the keys that every recipe needs, with a comment beside each. Misuse for an unknown task or method."""
    for what, name, known in (("task", task, TASKS), ("method", method, METHODS)):
        if name not in known:
            raise Misuse(f"recipe.{what}", f"There is no {what} of that name; there are: {', '.join(known)}.")
    # Users stand there only with privacy, which a draft doesn't ask for.
    roles = ", ".join(f"{role}: {role}" for role in TASKS[task].roles if role != "user")
    lines = [
        (f"task: {task}", TASKS[task].says),
        (f"method: {method}", METHODS[method].says),
        ("data: PARTY/DATASET", "as named in the contract"),
        ("base: PARTY/MODEL", ""),
        (f"columns: {{{roles}}}", "which column stands for what"),
        ("epochs: 3", ""),
    ]
    width = max(len(line) for line, _ in lines)
    return "".join(f"{f'{line:{width}}  # {says}' if says else line}\n" for line, says in lines)


def explain_recipe(key: str | None = None) -> list[dict[str, str]]:
    """``key``, ``says``, ``takes``, ``default`` of one key ("lora.rank") or of all. Misuse for an unknown one."""
    found = [
        {"key": name, "says": k.says, "takes": k.reader.words, "default": default_words(name)}
        for name, k in KEYS.items()
    ]
    columns = "; ".join(f"{name}: {' and '.join(task.roles)}" for name, task in TASKS.items())
    found.append({"key": "columns", "says": "which column stands for what", "takes": columns, "default": "required"})
    for method, section in SECTIONS.items():
        found += [
            {"key": f"{method}.{name}", "says": says, "takes": reader.words, "default": str(usual).lower()}
            for name, (reader, usual, says) in section.keys.items()
        ]
    if key is None:
        return found
    chosen = [each for each in found if each["key"] == key or each["key"].startswith(f"{key}.")]
    if not chosen:
        near = difflib.get_close_matches(key[:40], [each["key"] for each in found], n=1, cutoff=0.0)[0]
        raise Misuse("recipe.key", f"A recipe has no such key; the nearest is '{near}'.")
    return chosen
