"""What tests of the keys' life need of a broker in this process: many assets, all keys, an old copy, a sudden end."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

import cloister.keys.vault
from cloister.audit import AuditLog
from cloister.broker.state import State
from cloister.broker.wrapped import is_gone
from cloister.crypto import parse_canonical
from cloister.errors import Denied, Unavailable
from cloister.keys import KeyVault, WrappedKey
from tests.broker_party import Party

__all__ = ["Killed", "copy_state", "deks", "dies_at", "disk_full", "many", "openable"]


def many(party: Party, folder: Path, count: int, name: str = "hospital/set", **options: Any) -> list[bytes]:
    """Digests of that many new assets, each of its own name."""
    found = []
    for _ in range(count):
        number = len(list(folder.glob("many-*")))
        sealed = party.seal(folder / f"many-{number}", f"{name}-{number}", "dataset", **options)
        found.append(sealed.digest)
    return found


def deks(party: Party, skip: Collection[str] = ()) -> dict[str, bytes]:
    """Every data key that this broker can open, by digest."""
    rows = [row for row in party.tables()["assets"] if row["shredded"] is None and row["digest"] not in skip]
    assets = party.broker.core.assets
    return {row["digest"]: assets.unwrap_secret_dek(bytes.fromhex(row["digest"])) for row in rows}


def copy_state(home: Path, to: Path) -> Path:
    """As a thief or a backup takes it: with its write-ahead log, while the broker runs."""
    to.mkdir(parents=True)
    for name in ("state.db", "state.db-wal", "state.db-shm"):
        if (home / name).exists():
            shutil.copy(home / name, to / name)
    return to / "state.db"


def openable(state: Path, vault: KeyVault) -> dict[str, bytes]:
    """What of any wrapped key in a copy of the database the vault still opens, by asset digest or task. Reads the file
    by itself, tables and announced changes alike: nothing of the broker's code decides what is looked at."""
    with sqlite3.connect(state) as database:
        rows = database.execute("SELECT digest, digest, wrapped FROM assets").fetchall()
        rows += database.execute("SELECT task, context, wrapped FROM tasks").fetchall()
        for (text,) in database.execute("SELECT changes FROM intents").fetchall():
            for change in json.loads(text):
                row = change["row"]
                if change["table"] == "assets":
                    rows.append((row["digest"], row["digest"], row["wrapped"]))
                if change["table"] == "tasks":
                    rows.append((row["task"], row["context"], row["wrapped"]))
    database.close()
    found = {}
    for name, context, wrapped in rows:
        if wrapped is None:
            continue
        try:
            key = WrappedKey.from_document(parse_canonical(wrapped.encode()))
            found[name] = vault.unwrap(key, bytes.fromhex(context))
        except Denied as error:
            if not is_gone(error):
                raise
    return found


class Killed(BaseException):
    """The process ends here. Nothing may catch it."""


@contextmanager
def dies_at(number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The ``number``-th durable step raises ``Killed``: odd ones before they are done, even ones right after.

    A step is a change of the vault's file, an announcement, a log entry, or an applied change. Yields the steps' names.
    """
    steps: list[str] = []

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **more: Any) -> Any:
            if steps and steps[-1] == "dead":
                raise Killed  # whatever runs on in a handler or a thread can't do any more, either
            steps.append(name)
            if 2 * len(steps) - 1 == number:
                steps.append("dead")
                raise Killed
            done = real(*args, **more)
            if 2 * len(steps) == number:
                steps.append("dead")
                raise Killed
            return done

        return step

    with monkeypatch.context() as patch:
        patch.setattr(State, "intend", wrap("intend", State.intend))
        patch.setattr(State, "apply", wrap("apply", State.apply))
        patch.setattr(AuditLog, "append", wrap("log", AuditLog.append))
        patch.setattr(cloister.keys.vault, "replace_file", wrap("vault", cloister.keys.vault.replace_file))
        yield steps


def disk_full(*_: object, **__: object) -> NoReturn:
    """In place of whatever writes."""
    raise Unavailable("storage.full", "The disk is full; free space, then try again.")
