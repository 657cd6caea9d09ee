"""Recipes on the owner's side: a draft to start from, and what each key is for. No key and no network is needed."""

from __future__ import annotations

import difflib

from ..contracts.recipe import KEYS, METHODS, SECTIONS, TASKS, default_words, recipe_schema
from ..errors import Misuse

__all__ = ["explain_recipe", "recipe_draft", "recipe_schema"]


def recipe_draft(task: str, method: str) -> str:
    """YAML of the keys that every recipe needs, with a comment beside each. Misuse for an unknown task or method."""
    for what, name, known in (("task", task, TASKS), ("method", method, METHODS)):
        if name not in known:
            raise Misuse(f"recipe.{what}", f"There is no {what} of that name; there are: {', '.join(known)}.")
    roles = ", ".join(f"{role}: {role}" for role in TASKS[task].roles)
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
