"""Checks that every format shares: which columns exist, and what counts as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import Malformed, Misuse
from .forms import Form, list_cell, messages_cell, number_cell
from .models import Limits

__all__ = ["cell_text", "check_columns"]


def check_columns(name: str, columns: Sequence[str], existing: Sequence[str]) -> None:
    """Misuse if one of ``columns`` is missing; Malformed for a duplicate."""
    if len(set(existing)) != len(existing):
        raise Malformed("data.header", f"The file {name} names two columns alike; rename one.")
    missing = [c for c in columns if c not in existing]
    if missing:
        # What there is isn't named: without a header the first line is a row, and JSON keys can be data.
        raise Misuse("data.column", f"The file {name} has no column '{missing[0]}'; compare it with the sealed file.")


def cell_text(name: str, row: int, column: str, value: Any, limits: Limits, form: Form = Form.TEXT) -> str:
    """A cell as text. Whole numbers are taken as their digits, since labels are often numbered; nothing else is, but
    for columns of another ``form``."""
    if form is Form.NUMBER:
        return number_cell(name, row, column, value)
    if form is Form.MESSAGES:
        value = messages_cell(name, row, column, value)
    elif form is not Form.TEXT:
        parts = [value] if isinstance(value, str) or not isinstance(value, Sequence) else value
        for part in parts:  # each is judged as a text is, before their list becomes one
            cell_text(name, row, column, part, limits)
        value = list_cell(name, row, column, value, form)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise Malformed("data.text", f"Row {row} of {name} has no text in column '{column}'; give text there.")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise Malformed("data.text", f"Row {row} of {name} has a broken character in column '{column}'; mend it.")
    if len(value) > limits.cell_characters:
        raise Malformed(
            "data.cell", f"Row {row} of {name} exceeds {limits.cell_characters} characters in column '{column}'."
        )
    return value
