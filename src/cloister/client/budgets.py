"""Privacy budgets of datasets: the owner sets one and sees what was spent. The party's own broker keeps it."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from ..contracts import decimal_text
from ..errors import Misuse
from ..fields import Fields
from .supervisor import Home

__all__ = ["privacy_budget", "set_privacy_budget"]

_NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{0,12})?([eE]-[0-9]{1,2})?|\.[0-9]{1,12}([eE]-[0-9]{1,2})?", re.ASCII)


def privacy_budget(home: Home, name: str) -> dict[str, Any]:
    """``budget`` (None where none is set), and ``jobs``: every run that used the data, with what it may have spent."""
    return home.agent(_owner(name)).budget(name)


def set_privacy_budget(
    home: Home, name: str, *, epsilon: str | None = None, delta: str | None = None, unit: str | None = None
) -> dict[str, Any]:
    """Set the budget, or a part of it, for all runs together. Returns what ``privacy_budget`` does.

    Numbers as people write them, also 1e-5. Raises Misuse, or Malformed for what no budget can be.
    """
    texts = {key: _plain(key, text) for key, text in (("epsilon", epsilon), ("delta", delta)) if text is not None}
    return home.agent(_owner(name)).set_budget({"name": name, **texts, **({} if unit is None else {"unit": unit})})


def _plain(key: str, text: str) -> str:
    """In the spelling that brokers read."""
    if not _NUMBER.fullmatch(text):
        raise Misuse("budget.number", f"Give --{key} as a number, such as 8 or 0.00001.")
    return decimal_text(Decimal(text))


def _owner(name: str) -> str:
    return Fields({"name": name}, "command").asset("name").partition("/")[0]
