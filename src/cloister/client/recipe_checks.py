"""What a recipe will take and what speaks against it, before any key is asked for: ``recipe check`` with a base's
folder, rows or a size. Nothing is sent, and no torch is needed."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..contracts.forecast import Forecast, Machine, Rows, Shape, forecast, read_shape
from ..contracts.recipe import Recipe, parse_recipe
from ..errors import CloisterError, Malformed, Misuse

__all__ = ["PURPOSES", "Examined", "Warned", "base_licence", "examine_recipe", "fitting_changes", "read_base",
           "read_rows", "this_machine"]  # fmt: skip

PURPOSES = ("commercial", "research")
FEW = 500  # examples: fewer rarely move a model further than the choice of seed does
_TOKEN_BYTES = 4  # of ordinary text; tokenizers give 3 to 5
_MOST_CONFIG = 16 << 20
_MOST_LINE = 8 << 20
# A rate of from-scratch size forgets the base: for all weights, and for what stands beside them times the tried one.
_FULL_RATE, _TIMES_TRIED = 0.0005, 10
_NON_COMMERCIAL = re.compile(r"(^|[-_ ])(NC|NON-?COMMERCIAL|RESEARCH-ONLY)($|[-_ ])", re.IGNORECASE)
_NO_DERIVATIVES = re.compile(r"(^|[-_ ])ND($|[-_ ])", re.IGNORECASE)
_OPEN = re.compile(
    r"(apache|mit|bsd|isc|cc0|cc-by|unlicense|odc|pddl|cdla|gpl|agpl|lgpl|mpl|epl|eupl|artistic|zlib)([-_.].*)?",
    re.IGNORECASE,
)
# What is tried for a recipe that doesn't fit, after smaller batches: the same result more slowly. Then other methods.
_SAME = (
    ("gradient_checkpointing=true",),
    ("optimizer=adamw_8bit",),
    ("gradient_checkpointing=true", "optimizer=adamw_8bit"),
)
_OTHER = ("lora", "qlora", "ia3", "prompt")


@dataclass(frozen=True)
class Warned:
    """``code`` is stable, for programs; ``says`` is one sentence that says what to do."""

    code: str
    says: str


@dataclass(frozen=True)
class Examined:
    """``forecast``: None without a base. ``fits``: None where there is no forecast or no known memory. ``changes``: to
    the recipe, with which it would fit."""

    recipe: Recipe
    rows: Rows | None
    forecast: Forecast | None
    fits: bool | None
    changes: tuple[str, ...]
    warnings: tuple[Warned, ...]

    def document(self) -> dict[str, Any]:
        return {
            "forecast": None if self.forecast is None else self.forecast.document(),
            "fits": self.fits,
            "changes_that_fit": list(self.changes),
            "warnings": [{"code": w.code, "says": w.says} for w in self.warnings],
        }


def examine_recipe(
    source: str | bytes,
    changes: Sequence[str] = (),
    *,
    shape: Shape | None = None,
    rows: Rows | None = None,
    machine: Machine | None = None,
    licences: Sequence[str] = (),
    purpose: str | None = None,
) -> Examined:
    """Raises what ``parse_recipe`` raises, and Misuse (``recipe.purpose``)."""
    if purpose is not None and purpose not in PURPOSES:
        raise Misuse("recipe.purpose", f"A purpose is one of {', '.join(PURPOSES)}; give one of them.")
    recipe = parse_recipe(source, changes)
    warnings = [*_about_rows(recipe, rows), *_about_rate(recipe), *_about_licences(licences, purpose)]
    found: Forecast | None = None
    fits: bool | None = None
    others: tuple[str, ...] = ()
    if shape is not None and recipe.task != "script":
        warnings += _about_base(recipe, shape, rows)
        machine = machine or this_machine()
        seen = rows or Rows(10_000, recipe.max_length, 0.0, recipe.max_length)
        found = forecast(recipe, shape, seen, machine)
        if machine.memory is not None:
            fits = found.memory.total <= machine.memory
            if not fits:
                others = fitting_changes(source, changes, shape, seen, machine)
                warnings.append(_too_big(found, machine.memory, others))
    return Examined(recipe, rows, found, fits, others, tuple(warnings))


def fitting_changes(
    source: str | bytes, changes: Sequence[str], shape: Shape, rows: Rows, machine: Machine
) -> tuple[str, ...]:
    """The nearest changes with which the recipe fits into the machine's memory; none where nothing does."""
    recipe = parse_recipe(source, changes)
    smaller = _smaller(recipe)
    tried = [*smaller, *_SAME, *((*smaller[-1], *more) for more in _SAME if smaller)]
    rank = {name: place for place, name in enumerate(_OTHER)}
    below = [name for name in _OTHER if rank[name] > rank.get(recipe.method, -1)]
    for method in below:
        switch = (f"method={method}", "learning_rate=")
        tried += [switch, *((*switch, *fewer) for fewer in _smaller(recipe))]
    for change in tried:
        try:
            candidate = parse_recipe(source, (*changes, *change))
        except CloisterError:
            continue  # a combination that can't work is no way out
        if forecast(candidate, shape, rows, machine).memory.total <= (machine.memory or 0):
            return change
    return ()


def _smaller(recipe: Recipe) -> list[tuple[str, ...]]:
    """The same step in smaller batches: a half, a quarter, … one row."""
    if recipe.task == "embedding":
        return []  # there, a batch's rows learn from each other
    found: list[tuple[str, ...]] = []
    size, pieces = recipe.batch_size, recipe.gradient_accumulation
    while size % 2 == 0:
        size, pieces = size // 2, pieces * 2
        found.append((f"batch_size={size}", f"gradient_accumulation={pieces}"))
    return found


def _about_rows(recipe: Recipe, rows: Rows | None) -> Iterator[Warned]:
    if rows is None:
        return
    learned = round(rows.count * (1 - float(recipe.validation) - float(recipe.test or 0)))
    if learned < FEW:
        yield Warned(
            "recipe.few",
            f"Only {learned} examples would be learned from; below {FEW} a model rarely gets reliably better: add rows,"
            " and compare several seeds.",
        )
    if rows.longest > recipe.max_length and recipe.task != "text":
        yield Warned(
            "recipe.cut",
            f"The longest row has about {rows.longest} tokens and is cut to {recipe.max_length}; raise max_length if"
            " what matters stands at the end.",
        )


def _about_rate(recipe: Recipe) -> Iterator[Warned]:
    if recipe.method in ("scratch", "script"):
        return
    rate = float(recipe.learning_rate)
    document = {k: v for k, v in recipe.to_document().items() if k not in ("kind", "learning_rate")}
    tried = float(parse_recipe(document).learning_rate)
    limit = min(_FULL_RATE, _TIMES_TRIED * tried) if recipe.method == "full" else _TIMES_TRIED * tried
    if rate >= limit:
        yield Warned(
            "recipe.rate",
            f"A learning_rate of {rate:g} is of from-scratch size for {recipe.method} and would wash out what the base"
            f" knows; tried is {tried:g}.",
        )


def _about_licences(licences: Sequence[str], purpose: str | None) -> Iterator[Warned]:
    for licence in licences:
        if _NO_DERIVATIVES.search(licence):
            yield Warned(
                "recipe.licence",
                f"{licence} allows no derivatives, and a tuned model is one; ask its owner for another licence.",
            )
        elif _NON_COMMERCIAL.search(licence):
            if purpose != "research":
                ought = "use other data or another base" if purpose else "say --purpose research, or use another"
                yield Warned("recipe.licence", f"{licence} forbids commercial use; {ought}.")
        elif not _OPEN.fullmatch(licence):
            yield Warned(
                "recipe.licence_unread",
                f"What {licence} allows isn't known here; read it before you train, all parents' licences apply.",
            )


def _about_base(recipe: Recipe, shape: Shape, rows: Rows | None) -> Iterator[Warned]:
    if recipe.task in ("generation", "text", "chat", "preference") and shape.block == "encoder":
        yield Warned("model.task", f"The base is an encoder ({shape.family}), which can't write; use a causal model.")
    if recipe.method == "qlora" and any(size % 64 for size in (shape.width, shape.inner, shape.queries, shape.keys)):
        yield Warned("model.quantize", "The base has widths that are no multiple of 64, which 4 bits need; use lora.")
    if shape.positions is not None and rows is not None and shape.positions < min(rows.longest, recipe.max_length):
        yield Warned("recipe.positions", f"The base reads {shape.positions} tokens a row, and there are longer rows.")


def _too_big(found: Forecast, memory: int, changes: tuple[str, ...]) -> Warned:
    out = f"with {' '.join(change for change in changes if not change.endswith('='))} it would fit"
    return Warned(
        "recipe.memory",
        f"This takes about {found.memory.total / 2**30:.1f} GiB, and there are {memory / 2**30:.1f};"
        f" {out if changes else 'use a smaller base or a larger machine'}.",
    )


def read_base(folder: Path) -> Shape:
    """From ``config.json``. Raises Misuse (``file.*``) and Malformed (``model.*``)."""
    try:
        with (folder / "config.json").open("rb") as file:
            data = file.read(_MOST_CONFIG + 1)
    except OSError:
        raise Misuse("file.read", f"There is no config.json to read in {folder}; name the base's folder.") from None
    if len(data) > _MOST_CONFIG:
        raise Malformed("model.config", "The base's config.json is too large to be one.")
    try:
        return read_shape(json.loads(data.decode("utf-8")))
    except (ValueError, RecursionError):
        raise Malformed("model.config", "The base's config.json is not valid JSON; name the whole folder.") from None


def base_licence(folder: Path) -> str | None:
    """What the head of the folder's model card says (``license:`` between two lines of dashes), or None."""
    try:
        with (folder / "README.md").open("rb") as file:
            text = file.read(64 << 10).decode("utf-8", "replace")
    except OSError:
        return None
    head = re.match(r"---\r?\n(.*?)\n---", text, re.DOTALL)
    found = None if head is None else re.search(r"^license:[ \t]*['\"]?([\w.+-]{1,64})", head[1], re.MULTILINE)
    return None if found is None else found[1]


def read_rows(file: Path, recipe: Recipe) -> Rows:
    """How many rows a JSONL or CSV file has and how long they are, by their bytes: a token is about four of them.

    Raises Misuse (``file.read``, ``data.format``, ``data.column``, ``data.empty``) and Malformed (``data.json``).
    """
    names = recipe.columns.names()
    lengths: list[int] = []
    try:
        with file.open("rb") as stream:
            if file.suffix == ".csv":
                lines = csv.DictReader((line.decode("utf-8", "replace") for line in stream), strict=False)
                lengths = [_length(row, names) for row in lines]
            elif file.suffix in (".jsonl", ".ndjson"):
                while line := stream.readline(_MOST_LINE):
                    if line.strip():
                        lengths.append(_length(json.loads(line), names))
            else:
                raise Misuse("data.format", "Rows are read here from .jsonl and .csv; of others, say how many.")
    except OSError:
        raise Misuse("file.read", f"The file {file} can't be read; name another.") from None
    except (ValueError, RecursionError, csv.Error):
        raise Malformed("data.json", f"A row of {file.name} is not what its ending says; mend it.") from None
    if not lengths:
        raise Misuse("data.empty", f"There are no rows in {file.name}.")
    return Rows.of(lengths)


def _length(row: Any, names: Sequence[str]) -> int:
    if not isinstance(row, dict) or any(name not in row for name in names):
        raise Misuse("data.column", "A row lacks a column that the recipe names; compare the two.")
    texts = (row[name] if isinstance(row[name], str) else json.dumps(row[name]) for name in names)
    return 2 + sum(len(text.encode("utf-8", "replace")) for text in texts) // _TOKEN_BYTES


def this_machine() -> Machine:
    """The one that this runs on: its memory, its cores, and whether they multiply bfloat16 (AMX)."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        amx = "amx_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        amx = False
    return Machine(memory, os.cpu_count() or 1, bf16=amx)


def with_memory(machine: Machine, memory: int | None) -> Machine:
    return machine if memory is None else replace(machine, memory=memory)
