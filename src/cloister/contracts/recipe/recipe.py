"""The recipe: what one run does, as data. Brokers, the control plane and the workload read it with this one function.

A recipe can't name code, a path or a URL; every key, its type and its range stand in ``keys``, ``methods`` and
``tasks``, and what isn't there is refused. Numbers with a fraction are decimals, never floats, so that one recipe has
one canonical document. The format's page is docs/spec/recipe.md.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from ...crypto import canonical_json, sha256
from ...errors import Malformed, Misuse
from .combinations import check_combination, check_pair
from .fields import decimal_text
from .keys import KEYS, REQUIRED, UNSET, default
from .methods import (
    METHODS,
    SECTIONS,
    Adapter,
    DpoSettings,
    EwcSettings,
    LoraSettings,
    PrivacySettings,
    ReplaySettings,
    ScriptSettings,
    SearchSettings,
)
from .tasks import TASKS, Columns
from .yaml import read_yaml

__all__ = ["KIND", "Recipe", "parse_recipe"]

KIND = "cloister/recipe/v1"
_MAX_COLUMN = 256
_OTHERS = ("script", "dpo", "privacy", "replay", "ewc", "search")  # sections beside the method's own


def chooses(select: str, patience: int, search: SearchSettings | None) -> bool:
    """Whether the validation rows choose something. Then what is told of the model comes from other rows."""
    return select == "best" or patience > 0 or search is not None


@dataclass(frozen=True)
class Recipe:
    """A checked recipe. ``data`` and ``base`` are asset names, party/asset; ``adapter`` is None where weights leave.

    ``max_steps`` only ever shortens: a contract that bounds the epochs can't be passed by a larger step count.
    ``checkpoint_steps`` 0 writes no checkpoints, ``max_gradient_norm`` 0 never shortens a gradient.
    """

    task: str
    method: str
    data: str
    base: str
    columns: Columns
    general: str | None
    validation: Decimal
    test: Decimal | None
    epochs: int
    max_steps: int | None
    learning_rate: Decimal
    schedule: str
    batch_size: int
    gradient_accumulation: int
    optimizer: str
    max_gradient_norm: Decimal
    max_length: int
    warmup_ratio: Decimal
    weight_decay: Decimal
    adapter: Adapter | None
    pooling: str
    template: str | None
    packing: str
    compile: str
    gradient_checkpointing: bool
    evaluate_steps: int
    select: str
    patience: int
    processes: int
    sharding: str
    seed: int
    checkpoint_steps: int
    checkpoint_minutes: int
    precision: str
    threads: int | None
    script: ScriptSettings | None
    dpo: DpoSettings | None
    privacy: PrivacySettings | None
    replay: ReplaySettings | None
    ewc: EwcSettings | None
    search: SearchSettings | None

    @property
    def form(self) -> str:
        """What leaves, as contracts name it: ``adapter`` or ``weights``."""
        return METHODS[self.method].form

    @property
    def lora(self) -> LoraSettings | None:
        return self.adapter if isinstance(self.adapter, LoraSettings) else None

    def to_document(self) -> dict[str, Any]:
        """The canonical form, every default written out, decimals as text."""
        out: dict[str, Any] = {"kind": KIND, "columns": dict(self.columns.by_role)}
        for name in KEYS:
            out[name] = _plain(getattr(self, name))
        others = {name: getattr(self, name) for name in _OTHERS}
        for name, settings in ({self.method: self.adapter} | others).items():
            if settings is not None:
                out[name] = {key: _plain(getattr(settings, key)) for key in SECTIONS[name].keys}
                if "targets" in out[name]:
                    out[name]["targets"] = out[name]["targets"] or "auto"
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


def parse_recipe(source: str | bytes | Mapping[str, Any], changes: Iterable[str] = ()) -> Recipe:
    """Check a recipe given as YAML or as a mapping. ``changes``, each "key=value" or "section.key=value", come on top.

    Raises Misuse (``recipe.key`` unknown, ``recipe.missing``, ``recipe.value``, ``recipe.combination``) and Malformed
    (``recipe.yaml.*``).
    """
    given = _changed(read_yaml(source) if isinstance(source, str | bytes) else dict(source), changes)
    _known(given, [*KEYS, "columns", *SECTIONS], "recipe")
    given = {name: value for name, value in given.items() if value is not None}
    for name in ("task", "method"):
        if name not in given:
            raise _missing(name)
    task, method = (KEYS[name].reader.read(name, given[name]) for name in ("task", "method"))
    check_pair(task, method)
    read = {name: _read(name, given, task, method) for name in KEYS}
    settings = _settings(task, method, given)
    if read["test"] is None and chooses(read["select"], read["patience"], settings.get("search")):
        read["test"] = Decimal("0.1")
    others: dict[str, Any] = {name: settings.get(name) for name in _OTHERS}
    recipe = Recipe(
        **read,
        columns=_columns(task, given.get("columns")),
        adapter=settings.get(method) if METHODS[method].form == "adapter" else None,
        **others,
    )
    check_combination(recipe)
    return recipe


def _changed(given: dict[str, Any], changes: Iterable[str]) -> dict[str, Any]:
    """An empty value gives a key its default. What the keys mean is checked with all others."""
    for change in changes:
        key, equals, value = change.partition("=")
        *sections, name = key.split(".")
        if not equals or len(sections) > 1 or not all([*sections, name]):
            raise Misuse("recipe.change", "A change to a recipe is written key=value, or section.key=value.")
        target = given
        for section in sections:
            inner = given.get(section)
            target = given[section] = dict(inner) if isinstance(inner, Mapping) else {}
        target[name] = value or None
    return given


def _read(name: str, given: Mapping[str, Any], task: str, method: str) -> Any:
    value = given[name] if name in given else default(name, task, method)
    if value is REQUIRED:
        raise _missing(name)
    return None if value is UNSET else KEYS[name].reader.read(name, value)


def _missing(name: str) -> Misuse:
    return Misuse("recipe.missing", f"The recipe lacks '{name}'; add it.", key=name)


def _known(given: Mapping[Any, Any], valid: Iterable[str], what: str) -> None:
    names = list(valid)
    for name in given:
        if name in names:
            continue
        shown = name if isinstance(name, str) and re.fullmatch(r"[\w.-]{1,40}", name) else "(not a plain name)"
        near = difflib.get_close_matches(str(name)[:40], names, n=1, cutoff=0.0)[0]
        raise Misuse("recipe.key", f"The {what} has no key '{shown}'; the nearest valid key is '{near}'.", key=shown)


def _columns(task: str, given: Any) -> Columns:
    roles, required = TASKS[task].roles, TASKS[task].required
    if not roles and given is None:
        return Columns(())
    if not isinstance(given, Mapping):
        optional = "".join(f", and {role} if there is one" for role in TASKS[task].optional)
        raise Misuse(
            "recipe.missing",
            f"The recipe lacks 'columns'; name {' and '.join(required)}{optional} there.",
            key="columns",
        )
    _known(given, roles, "recipe's columns")
    found = [(role, given[role]) for role in roles if given.get(role) is not None]
    for role, name in found:
        if not isinstance(name, str) or not 0 < len(name) <= _MAX_COLUMN:
            raise Misuse(
                "recipe.value", f"The recipe's 'columns.{role}' must be a column's name.", key=f"columns.{role}"
            )
    columns = Columns(tuple(found))
    for role in required:
        if columns.get(role) is None:
            raise _missing(f"columns.{role}")
    if len(set(columns.names())) < len(found):
        raise Misuse("recipe.value", "The recipe's 'columns' name one column twice.", key="columns")
    return columns


def _settings(task: str, method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the recipe's task and method, by section; those of others are refused."""
    for name, section in SECTIONS.items():
        if name in given and not section.belongs(name, task, method):
            other = f"method is {method}" if section.task is None else f"task is {task}"
            raise Misuse("recipe.value", f"The recipe has '{name}' settings but its {other}; remove them.", key=name)
    belong = [name for name, section in SECTIONS.items() if section.belongs(name, task, method)]
    wanted = [name for name in belong if name in given or not SECTIONS[name].optional]
    return {name: _section(name, given.get(name, {})) for name in wanted}


def _section(name: str, values: Any) -> Any:
    section = SECTIONS[name]
    if not isinstance(values, Mapping):
        raise Misuse(
            "recipe.value", f"The recipe's '{name}' must hold keys such as {next(iter(section.keys))}.", key=name
        )
    _known(values, section.keys, f"recipe's {name}")
    read = {}
    for key, (reader, usual, _) in section.keys.items():
        value = values.get(key)
        read[key] = reader.read(f"{name}.{key}", usual if value is None else value)
    return section.made(**read)


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return decimal_text(value)
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value
