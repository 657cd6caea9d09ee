"""Moving a broker from its home to a PostgreSQL: every row and every log entry, checked before anything counts.

The log keeps its entries, its indexes and its signed head, so that receipts and whatever anybody kept of it hold. The
home's own state and log are set aside afterwards: from then on they would be a second truth.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from sqlalchemy import insert, select

from ..audit import AuditLog, verify_checkpoint
from ..audit.rows import restore_log, stored_head
from ..errors import Internal, Misuse, Unavailable, Untrusted
from ..sealed.folder import sync_folder
from .clock import Clock
from .config import Settings
from .database import PostgresDatabase
from .record import set_aside
from .seen import SeenHead
from .startup import Opened, open_home
from .state import State, has_tables, taken
from .tables import METADATA

__all__ = ["Migrated", "migrate"]

_PAGE = 4096
_ASIDE = ".migrated"


@dataclass(frozen=True)
class Migrated:
    """What was moved; ``aside``: where the home's own state and log lie now, until somebody removes them."""

    rows: int
    entries: int
    aside: tuple[Path, ...]


def migrate(settings: Settings, passphrase: bytes, *, clock: Clock) -> Migrated:
    """Move the broker in ``settings.home`` into the empty database that ``settings.database`` names.

    No broker may run in the home. All is copied in one transaction and compared before it is committed, with the root
    that was signed; then the home's own record is set aside, and the new place is opened as a start would. Until the
    commit, and after any error before it, the home is as it was. What was broken off, at whatever step, is gone on
    with. Raises what ``open_home`` raises, Misuse("state.taken") for a database with a broker in it, and
    Misuse("migration.done").
    """
    if settings.database is None:
        raise Misuse("state.address", "Name the file with the URL of the database to move to.")
    own = (settings.state, settings.log)
    here = [path.exists() for path in own]
    begun = any(set_aside(path).exists() for path in own)
    if begun and all(here):
        raise Misuse(
            "migration.leftovers", "Files of an earlier move (*.migrated) are in the home; put them elsewhere."
        )
    if not begun:
        return _begin(settings, settings.database, passphrase, clock)
    try:
        return _go_on(settings, passphrase, clock, rest=any(here))
    except Unavailable as locked:
        if locked.code == "replica.locked" and not any(here):
            raise _done() from None  # a broker runs here, from the database
        raise


def _begin(settings: Settings, where: Path, passphrase: bytes, clock: Clock) -> Migrated:
    with ExitStack() as held:
        own = open_home(replace(settings, database=None), passphrase)
        try:
            held.enter_context(_kept(own))
            database = PostgresDatabase(where, settings.limits)
            try:
                rows = _copy(own, database)
            finally:
                database.close()
            size = own.record.log.size
        finally:
            own.close()
        aside = _set_aside(settings)
    _announce(settings, passphrase, clock, size, rows)
    return Migrated(rows, size, aside)


def _go_on(settings: Settings, passphrase: bytes, clock: Clock, *, rest: bool) -> Migrated:
    """The database has the whole record, and a part of the home's own is set aside, which therefore can't have gone on.
    ``rest``: whether another part is not."""
    with ExitStack() as held:
        moved = open_home(settings, passphrase, moving=True)
        try:
            held.enter_context(_kept(moved))
            size = _contained(settings, moved)
            grown = moved.record.log.size > size
            rows = sum(len(moved.record.state.rows(table)) for table in METADATA.tables)
        finally:
            moved.close()
        if grown and not rest:
            raise _done()
        aside = _set_aside(settings)
    if not grown:
        _announce(settings, passphrase, clock, size, rows)
    return Migrated(rows, size, aside)


def _contained(settings: Settings, moved: Opened) -> int:
    """The size of the home's own log. Raises Untrusted("audit.rollback") unless the database has all of it."""
    folder = settings.log if settings.log.exists() else set_aside(settings.log)
    checkpoint, log, key = folder / "checkpoint", moved.record.log, moved.card.keys.receipt
    try:
        note = checkpoint.read_text()
    except (OSError, UnicodeDecodeError):
        raise Unavailable("migration.log", "The head of the home's own log can't be read; look at its disk.") from None
    SeenHead(checkpoint, log, key).check()
    return verify_checkpoint(note, log.origin, key).size


def _announce(settings: Settings, passphrase: bytes, clock: Clock, size: int, rows: int) -> None:
    """The first entry that only the database has. The home remembers it: from then on it refuses its own old record."""
    moved = open_home(settings, passphrase)
    try:
        log = moved.record.log
        if log.size != size:
            raise Internal("migration.size", "The moved log has another size than it had; nothing was served from it.")
        details: dict[str, str | int] = {"entries": size, "from": "home", "rows": rows, "to": "database"}
        moved.ledger(clock, settings.limits).append("state.migrated", target=moved.card.name, details=details)
        SeenHead(settings.home / "seen", log, moved.card.keys.receipt).must_keep(log.head())
    finally:
        moved.close()


def _kept(opened: Opened) -> IO[bytes]:
    """The home's lock, which stays when ``opened`` is closed: a lock lasts as long as one of its descriptors."""
    if opened.record.lock is None:
        raise Internal("migration.lock", "The home is not locked; nothing was moved.")
    return os.fdopen(os.dup(opened.record.lock.fileno()), "ab")


def _done() -> Misuse:
    return Misuse("migration.done", "The record lies in the database already; start the broker with --database.")


def _copy(own: Opened, database: PostgresDatabase) -> int:
    log, state = own.record.log, own.record.state
    key = own.card.keys.receipt
    head = verify_checkpoint(log.head(), log.origin, key)
    with database.transaction() as connection:
        if has_tables(connection):
            # An earlier attempt may have ended after its commit. What it copied still is all there is, or is refused.
            if stored_head(connection, log.origin, key) != head:
                raise taken()
            return sum(len(state.rows(table)) for table in METADATA.tables)
        State.create_shared(connection)
        root = restore_log(connection, log.head(), _leaves(log, head.size))
        if root != head.root:
            raise Untrusted("migration.root", "The log's entries do not hash to its signed head; the home is kept.")
        rows = 0
        for table in METADATA.sorted_tables:
            found = state.rows(table.name)
            if table.name == "intents" and found:
                raise Internal("migration.intents", "The state has something unfinished; start the broker once.")
            if found:
                connection.execute(table.delete())  # the first rows of ``progress``, which are replaced
                connection.execute(insert(table), found)
            copied = [dict(r) for r in connection.execute(select(table).order_by(*table.primary_key)).mappings()]
            if copied != found:
                raise Untrusted("migration.rows", f"The database changed rows of {table.name}; the home is kept.")
            rows += len(found)
    return rows


def _leaves(log: AuditLog, size: int) -> Iterator[list[bytes]]:
    for start in range(0, size, _PAGE):
        yield log.entries(start, min(start + _PAGE, size))


def _set_aside(settings: Settings) -> tuple[Path, ...]:
    """Rename what is left of the home's own record, durably, before anything is served from the database: else a loss
    of power could bring it back beside a record that has gone on."""
    beside = (path for path in settings.home.glob("state.db-*") if path.suffix != _ASIDE)
    found = [settings.state, *sorted(beside), settings.log]
    try:
        for path in found:
            if path.exists():
                _sync(path)
                _rename(path)
        sync_folder(settings.home)
    except OSError:
        raise Unavailable(
            "migration.aside", "The home's old state can't be renamed; look at its disk, and give the same move again."
        ) from None
    return tuple(sorted(settings.home.glob(f"*{_ASIDE}")))


def _sync(path: Path) -> None:
    """What ``_contained`` may read, too."""
    for file in (path, path / "checkpoint") if path.is_dir() else (path,):
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _rename(path: Path) -> None:
    path.rename(set_aside(path))
