"""Restoring a vault from recovery shares: offline, on the vault's file, with people's words and nothing else."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import Misuse, Unavailable
from ..keys import DriverConfig
from ..keys.recovery import restore_root

__all__ = ["restore_secret_root"]

_ALONE = (
    "No broker's state lies beside this file: if there is one, restore the backup again in the party's folder, beside "
    "state.db, or its broker refuses the file as an older copy."
)
_MOST_EPOCH = 2**53 - 2  # the file must be able to say the next one
_EPOCHS = """
    SELECT epoch FROM assets WHERE epoch BETWEEN 1 AND ?1 UNION SELECT epoch FROM tasks WHERE epoch BETWEEN 1 AND ?1
"""


def restore_secret_root(
    vault: Path, shares: Sequence[str], credential: str, *, driver: str | None = None, options: Sequence[str] = ()
) -> dict[str, Any]:
    """Give the vault file a new passphrase (or, with ``driver``, a device's credential); what came back.

    Where the broker's state lies beside it, the file counts as the newest from now on: whoever holds the shares may
    decide that. Raises Misuse("recovery.running") if the broker runs, and what ``keys.recovery.restore_root`` raises.
    """
    config = None if driver is None else DriverConfig(driver, _options(options))
    # The broker's lock lies in the log's folder, or in the home where its record is in a database.
    with _stopped(vault.parent / "log"), _stopped(vault.parent):
        known = _remembered(vault.parent / "state.db")
        restored = restore_root(
            vault,
            shares,
            credential.encode(),
            driver=config,
            least_revision=0 if known is None else known.revision,
            used_epochs=() if known is None else known.epochs,
        )
    notes = restored.notes if known is not None else (*restored.notes, _ALONE)
    return {**asdict(restored), "notes": notes, "vault": str(vault)}


@contextmanager
def _stopped(folder: Path) -> Iterator[None]:
    """Whoever has the record open, the broker, holds this lock; while it is held here, no broker starts."""
    if not (folder / "lock").is_file():
        yield  # no broker keeps a lock here
        return
    try:
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        raise Unavailable("recovery.log", "The log beside the vault can't be opened; check its permissions.") from None
    try:
        _take(lock)
        yield
    finally:
        os.close(lock)


def _take(lock: int) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Misuse("recovery.running", "The broker of this folder runs; stop it, then restore its vault.") from None


def _options(texts: Sequence[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    if any(not name or not equals for name, equals, _ in pairs):
        raise Misuse("recovery.option", "Give a driver's option as NAME=VALUE.")
    return {name: value for name, _, value in pairs}


@dataclass(frozen=True)
class _Known:
    """What a broker's state says of its vault: the newest revision, and the epochs that keys are wrapped under."""

    revision: int
    epochs: frozenset[int]


def _remembered(state: Path) -> _Known | None:
    """None where there is no state.

    Read only, and without the broker's code: this is for the day on which nothing else runs.
    """
    if not state.is_file():
        return None
    try:
        connection = sqlite3.connect(f"{state.resolve().as_uri()}?mode=ro", uri=True, timeout=5)
        try:
            row = connection.execute("SELECT value FROM facts WHERE name = 'vault_revision'").fetchone()
            epochs = connection.execute(_EPOCHS, (_MOST_EPOCH,)).fetchall()
        finally:
            connection.close()
        return _Known(0 if row is None else int(row[0]), frozenset(int(epoch) for (epoch,) in epochs))
    except (sqlite3.Error, ValueError):
        raise Unavailable(
            "recovery.state", "The broker's state beside the vault can't be read; restore it from the same backup."
        ) from None
