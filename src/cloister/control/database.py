"""SQLite under SQLAlchemy Core, brought up to date by Alembic. One process writes, so one lock orders it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError

from ..errors import Internal, Unavailable

__all__ = ["Database"]

_MIGRATIONS = Path(__file__).parent / "migrations"


def _pragmas(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=5000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


class Database:
    """``read()`` and ``write()`` give connections. A write is one transaction, committed when the block ends well."""

    def __init__(self, path: Path) -> None:
        # hide_parameters: an SQL error must not carry rows into a log.
        self.engine: Engine = create_engine(f"sqlite:///{path}", hide_parameters=True)
        event.listen(self.engine, "connect", _pragmas)
        self._writing = threading.Lock()
        self._migrate()

    def _migrate(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        config.attributes["quiet"] = True
        with self._guarded(), self.engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """SQL errors become ours: a full or locked disk is Unavailable, anything else a bug."""
        try:
            yield
        except DBAPIError as error:
            text = str(error.orig)
            if "full" in text or "locked" in text or "disk I/O" in text:
                raise Unavailable("store.database", "The catalogue can't be written; look for a full disk.") from None
            raise Internal("store.database", "The catalogue's database failed; see the control plane's log.") from error

    @contextmanager
    def read(self) -> Iterator[Connection]:
        with self._guarded(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        with self._guarded(), self._writing, self.engine.begin() as connection:
            yield connection

    def close(self) -> None:
        self.engine.dispose()
