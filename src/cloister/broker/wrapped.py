"""Wrapped data keys in the broker's tables: which rows carry one, what each is bound to, and how it is put in a row."""

from __future__ import annotations

from typing import Any

from ..crypto import canonical_json, parse_canonical
from ..errors import Denied
from ..keys import KeyVault, WrappedKey
from .state import Change, Row

__all__ = ["CARRIERS", "is_gone", "rewrapped", "unwrap_secret", "wrapped_columns"]

# Every table that has columns ``wrapped`` and ``epoch``: its key, and the column that holds what a key is bound to. A
# rotation goes through all of them; a table that was forgotten here would lose its keys with the old KEK.
CARRIERS = {"assets": ("digest", "digest"), "tasks": ("task", "context")}
_GONE = frozenset({"wrap.epoch", "wrap.gone"})


def wrapped_columns(wrapped: WrappedKey) -> dict[str, Any]:
    return {"epoch": wrapped.epoch, "wrapped": canonical_json(wrapped.to_document()).decode()}


def unwrap_secret(vault: KeyVault, table: str, row: Row) -> bytes:
    """The data key in a row. Raises what the vault raises."""
    return vault.unwrap(_wrapped(row), bytes.fromhex(row[CARRIERS[table][1]]))


def rewrapped(vault: KeyVault, table: str, row: Row) -> Change:
    """The row with the same data key under the newest KEK."""
    anew = vault.rewrap(_wrapped(row), bytes.fromhex(row[CARRIERS[table][1]]))
    return Change(table, {**row, **wrapped_columns(anew)})


def is_gone(error: Denied) -> bool:
    """Whether the KEK of a wrapped key does not exist any more: then no rotation can save it, nor need it wait."""
    return error.code in _GONE


def _wrapped(row: Row) -> WrappedKey:
    return WrappedKey.from_document(parse_canonical(row["wrapped"].encode()))
