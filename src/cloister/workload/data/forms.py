"""What a column's cells are, by the role that a recipe gives the column: text, a number, or a list of texts.

A list cell is kept as the JSON text of its list, so that a table holds nothing but text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from enum import Enum
from typing import Any

from ...contracts.recipe import Columns
from ...errors import Malformed

__all__ = ["Form", "column_forms", "items", "list_cell", "messages_cell", "number_cell"]

_NUMBER = re.compile(r"\s*\+?(\d{1,9}(\.\d{0,12})?|\.\d{1,12})\s*")


class Form(Enum):
    TEXT = "text"
    NUMBER = "a number"
    WORDS = "a list of texts, or one text with spaces between its words"
    LABELS = "a list of texts, or one text with | between its labels"
    MESSAGES = "a list of {role, content}, or its JSON text"


_ROLES = {
    "labels": Form.LABELS,
    "tokens": Form.WORDS,
    "tags": Form.WORDS,
    "relevance": Form.NUMBER,
    "messages": Form.MESSAGES,
}


def column_forms(columns: Columns) -> dict[str, Form]:
    """The form of each named column, text ones included."""
    return {name: _ROLES.get(role, Form.TEXT) for role, name in columns.by_role}


def list_cell(name: str, row: int, column: str, value: Any, form: Form) -> str:
    """The JSON text of a list cell. ``value``: text, which is split, or a list (of JSON or Parquet) of texts or whole
    numbers. An empty text, and an empty list, hold nothing. Malformed (``data.list``) for anything else."""
    if isinstance(value, str):
        parts = value.split() if form is Form.WORDS else [part.strip() for part in value.split("|")]
        return json.dumps([] if parts == [""] else parts)
    good = isinstance(value, Sequence) and all(isinstance(v, str | int) and not isinstance(v, bool) for v in value)
    if not good:
        raise Malformed("data.list", f"Row {row} of {name} must hold {form.value} in column '{column}'.")
    return json.dumps([str(v) for v in value])


def messages_cell(name: str, row: int, column: str, value: Any) -> Any:
    """A list of messages as its JSON text; anything else as it is. What the messages hold is checked by who reads them.
    Malformed (``data.list``) for values that JSON doesn't know."""
    if not isinstance(value, list):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        raise Malformed("data.list", f"Row {row} of {name} must hold a list of messages in '{column}'.") from None


def number_cell(name: str, row: int, column: str, value: Any) -> str:
    """A number's text, from 0 to below a billion. Malformed (``data.number``) for anything else."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    text = f"{value:.12f}" if number and 0 <= value < 1e9 else value
    if not isinstance(text, str) or not _NUMBER.fullmatch(text):
        raise Malformed("data.number", f"Row {row} of {name} has no number from 0 up in column '{column}'.")
    return text.strip()


def items(cells: Sequence[str]) -> list[list[str]]:
    """The lists of a list column."""
    return [json.loads(cell) for cell in cells]
