"""Restoring a vault from recovery shares: offline, on the vault's file, with people's words and nothing else."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import Misuse, Unavailable
from ..keys import DriverConfig
from ..keys.recovery import restore_root

__all__ = ["restore_secret_root"]


def restore_secret_root(
    vault: Path, shares: Sequence[str], credential: str, *, driver: str | None = None, options: Sequence[str] = ()
) -> dict[str, Any]:
    """Give the vault file a new passphrase (or, with ``driver``, a device's credential); what came back.

    Where the broker's state lies beside it, the file counts as the newest from now on: whoever holds the shares may
    decide that. The broker must not run. Raises what ``keys.recovery.restore_root`` raises.
    """
    config = None if driver is None else DriverConfig(driver, _options(options))
    least = _remembered(vault.parent / "state.db")
    restored = restore_root(vault, shares, credential.encode(), driver=config, least_revision=least)
    return {**asdict(restored), "vault": str(vault)}


def _options(texts: Sequence[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    if any(not name or not equals for name, equals, _ in pairs):
        raise Misuse("recovery.option", "Give a driver's option as NAME=VALUE.")
    return {name: value for name, _, value in pairs}


def _remembered(state: Path) -> int:
    """The vault's revision that the broker of this home saw last; 0 where there is no state.

    Read only, and without the broker's code: this is for the day on which nothing else runs.
    """
    if not state.is_file():
        return 0
    try:
        connection = sqlite3.connect(f"{state.resolve().as_uri()}?mode=ro", uri=True, timeout=5)
        try:
            row = connection.execute("SELECT value FROM facts WHERE name = 'vault_revision'").fetchone()
        finally:
            connection.close()
        return 0 if row is None else int(row[0])
    except (sqlite3.Error, ValueError):
        raise Unavailable(
            "recovery.state", "The broker's state beside the vault can't be read; restore it from the same backup."
        ) from None
