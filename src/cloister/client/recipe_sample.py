"""Which tokens of a few rows a recipe learns, on the owner's machine: nothing is sent, and no torch is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..contracts.recipe import Recipe
from ..errors import Malformed, Misuse

__all__ = ["sample_tokens"]

_MOST_BYTES = 4 << 20
_MOST_ROWS = 100
_MOST_FILE = 64 << 20
_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "config.json",
          "generation_config.json")  # fmt: skip


def sample_tokens(recipe: Recipe, tokenizer: Path, sample: Path) -> list[list[dict[str, Any]]]:
    """``id``, ``text``, ``learned`` of each token, a list a row. ``tokenizer``: the base's folder; ``sample``: JSONL.

    Raises Misuse (``extra.missing``, ``file.*``, ``data.column``, ``recipe.sample``) and Malformed, as training does.
    """
    try:
        from ..workload.text import explain_rows
    except ModuleNotFoundError:
        raise Misuse("extra.missing", "Showing tokens needs two more packages; install 'cloister[check]'.") from None
    rows = _rows(sample)
    columns: dict[str, list[str]] = {}
    for name in recipe.columns.names():
        if any(name not in row for row in rows):
            raise Misuse("data.column", f"A row of the sample has no '{name}'; compare it with the recipe's columns.")
        columns[name] = [_cell(row[name]) for row in rows]
    files = {name: _read(tokenizer / name, _MOST_FILE) for name in _FILES if (tokenizer / name).is_file()}
    return [
        [{"id": token.id, "learned": token.learned, "text": token.text} for token in row]
        for row in explain_rows(recipe, files, columns)
    ]


def _rows(sample: Path) -> list[dict[str, Any]]:
    lines = [line for line in _read(sample, _MOST_BYTES).splitlines() if line.strip()][:_MOST_ROWS]
    try:
        rows = [json.loads(line.decode("utf-8")) for line in lines]
    except (ValueError, RecursionError):
        rows = [None]
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise Malformed("data.json", "The sample is not JSON objects, one a line; mend it.")
    return rows


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _read(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError:
        raise Misuse("file.read", f"The file {path} can't be read; name another.") from None
    if len(data) > most:
        raise Misuse("file.size", f"The file {path} is too large; give a sample of a few rows.")
    return data
