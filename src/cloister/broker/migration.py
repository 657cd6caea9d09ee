"""Moving a broker from its home to a PostgreSQL: every row and every log entry, checked before anything counts.

The log keeps its entries, its indexes and its signed head, so that receipts and whatever anybody kept of it hold. The
home's own state and log are set aside afterwards: from then on they would be a second truth.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from sqlalchemy import insert, select

from ..audit import AuditLog, verify_checkpoint
from ..audit.rows import restore_log, stored_head
from ..errors import Internal, Misuse, Unavailable, Untrusted
from .clock import Clock
from .config import Settings
from .database import PostgresDatabase
from .startup import Opened, open_home
from .state import State, has_tables, taken
from .tables import METADATA

__all__ = ["Migrated", "migrate"]

_PAGE = 4096


@dataclass(frozen=True)
class Migrated:
    """What was moved; ``aside``: where the home's own state and log lie now, until somebody removes them."""

    rows: int
    entries: int
    aside: tuple[Path, ...]


def migrate(settings: Settings, passphrase: bytes, *, clock: Clock) -> Migrated:
    """Move the broker in ``settings.home`` into the empty database that ``settings.database`` names.

    No broker may run in the home. All is copied in one transaction and compared before it is committed, with the root
    that was signed; then the new place is opened as a start would. Until then, and after any error, the home is as it
    was. Raises what ``open_home`` raises, and Misuse("state.taken") for a database with a broker in it.
    """
    if settings.database is None:
        raise Misuse("state.address", "Name the file with the URL of the database to move to.")
    own = open_home(replace(settings, database=None), passphrase)
    try:
        database = PostgresDatabase(settings.database, settings.limits)
        try:
            rows = _copy(own, database)
        finally:
            database.close()
        size = own.record.log.size
    finally:
        own.close()
    aside = _set_aside(settings)
    moved = open_home(settings, passphrase)
    try:
        if moved.record.log.size != size:
            raise Internal("migration.size", "The moved log has another size than it had; nothing was served from it.")
        details: dict[str, str | int] = {"entries": size, "from": "home", "rows": rows, "to": "database"}
        moved.ledger(clock, settings.limits).append("state.migrated", target=moved.card.name, details=details)
    finally:
        moved.close()
    return Migrated(rows, size, aside)


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
    """The log last: while it is there, the home can still be opened as it was, if the names are given back."""
    found = [settings.state, *settings.home.glob("state.db-*"), settings.log]
    aside: list[Path] = []
    try:
        for path in found:
            if path.exists():
                aside.append(path.with_name(f"{path.name}.migrated"))
                path.rename(aside[-1])
    except OSError:
        raise Unavailable(
            "migration.aside", "The home's old state can't be renamed; rename state.db and log there before starting."
        ) from None
    return tuple(aside)
