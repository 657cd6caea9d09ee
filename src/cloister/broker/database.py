"""The database under a broker's state: a SQLite file of its own, or a PostgreSQL that its replicas share.

Where a PostgreSQL is, and the password for it, stands in a file that only the broker's user can read: what is in an
argument or the environment, other processes can see.
"""

from __future__ import annotations

import ipaddress
import os
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, DataError, DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from ..audit import OutcomeUnknown
from ..errors import CloisterError, Misuse, Unavailable
from .config import Limits
from .overdue import Overdue

__all__ = ["BEGIN", "PostgresDatabase", "SqliteDatabase", "committed", "reachable", "read_address"]

T = TypeVar("T")

_MAX_ADDRESS = 4096
_MOST_KEPT = 4  # fewer than the pool has, for the others
_OLDEST = 140_000  # PostgreSQL 14: idle_session_timeout, which ends a turn whose broker stands still
# Each statement sees the newest state, and those that matter come after the lock that orders them.
BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"
_BUSY = frozenset({"55P03", "57014"})  # lock_timeout, statement_timeout
_SETTINGS = (
    "SELECT current_setting('server_version_num')::int, current_setting('fsync'), current_setting('full_page_writes'), "
    "current_setting('synchronous_commit'), pg_is_in_recovery()"
)


class SqliteDatabase:
    """One file, one process. Writes come one after the other.

    Connections are kept at hand: taking one from the pool and giving it back takes longer than most reads. Of those
    that read each statement is a transaction of its own, so a kept one sees what was committed last, like any other.
    """

    def __init__(self, path: Path) -> None:
        self._engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 10})
        self._lazy = create_engine(f"sqlite:///{path}", connect_args={"timeout": 10}, pool_size=1)
        self._writing = threading.Lock()
        self._kept: list[Connection] = []
        self._most_kept = _MOST_KEPT
        self._lazily: Connection | None = None
        event.listen(self._engine, "connect", _durable)
        event.listen(self._lazy, "connect", _in_order)

    def read(self, query: Callable[[Connection], T]) -> T:
        with _sqlite_errors():
            try:
                connection = self._kept.pop()
            except IndexError:
                connection = self._engine.connect()
            try:
                found = query(connection)
                if connection.in_transaction():
                    connection.rollback()
            except BaseException:
                connection.close()
                raise
            if len(self._kept) < self._most_kept:
                self._kept.append(connection)
            else:
                connection.close()
            return found

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        with self._writing, _sqlite_errors(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def lazily(self) -> Iterator[Connection]:
        """A transaction that a loss of power may undo, together with all lazy ones after it, until the next one that
        is not lazy: all of them go to the one write-ahead log, and what syncs that syncs what it holds already."""
        with self._writing, _sqlite_errors():
            connection, self._lazily = self._lazily or self._lazy.connect(), None
            try:
                with connection.begin():
                    yield connection
            except BaseException:
                connection.close()
                raise
            self._lazily = connection

    def rewrite(self) -> None:
        """Everything is in the file itself, and durable, when this returns. Where a sync failed before, the kernel may
        have forgotten that the write-ahead log isn't on the disk; then a new sync would succeed, and mend nothing."""
        with self._writing, _sqlite_errors(), self._engine.connect() as connection:
            busy, *_ = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()
        if busy:
            raise _busy()

    def close(self) -> None:
        self._most_kept = 0
        while self._kept:
            self._kept.pop().close()
        if self._lazily is not None:
            self._lazily.close()
        self._lazy.dispose()
        self._engine.dispose()


class PostgresDatabase:
    """``audit.Database`` over a pool of connections, each checked to be durable before it is used."""

    def __init__(self, address: Path, limits: Limits) -> None:
        """Connects to nothing yet. ``address``: see ``read_address``, whose errors this raises."""
        try:
            self._engine = create_engine(
                read_address(address),
                isolation_level="AUTOCOMMIT",  # a read is one statement; ``committed`` begins and ends what is more
                pool_size=8,
                max_overflow=24,  # a server has 100 connections by default, and replicas share them
                pool_timeout=limits.database_seconds,
                pool_use_lifo=True,
                hide_parameters=True,  # they would show rows in an exception's text
                connect_args=_arguments(limits),
            )
        except ModuleNotFoundError:
            raise Misuse(
                "state.driver", "PostgreSQL needs its client here: install the extra, pip install 'cloister[postgres]'."
            ) from None
        event.listen(self._engine, "connect", _check_server)
        self._overdue = Overdue(self._engine, 4 * limits.database_seconds)  # later than the server's own bounds

    def read(self, query: Callable[[Connection], T]) -> T:
        """Asked once more where the connection was dead already, as after a restart of the server: it only looks."""
        with reachable():
            try:
                with self._engine.connect() as connection:
                    return query(connection)
            except DBAPIError as error:
                if not error.connection_invalidated:
                    raise
            with self._engine.connect() as connection:
                return query(connection)

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        with reachable(), self._begun() as connection, committed(connection):
            yield connection

    lazily = transaction  # here all is one commit anyway

    def rewrite(self) -> None:
        """The server's: it stops where a sync fails."""

    def _begun(self) -> Connection:
        """As ``read``: where the beginning fails, nothing has been done."""
        for last in (False, True):
            connection = self._engine.connect()
            try:
                connection.exec_driver_sql(BEGIN)
            except DBAPIError as error:
                connection.close()
                if last or not error.connection_invalidated:
                    raise
            else:
                break
        return connection

    def session(self) -> Connection:
        """A connection of the caller's own, each statement committed by itself. Call it within ``reachable``."""
        return self._engine.connect()

    def close(self) -> None:
        self._overdue.close()
        self._engine.dispose()


@contextmanager
def committed(connection: Connection) -> Iterator[None]:
    """The rest of a transaction of PostgreSQL after ``BEGIN``. ``OutcomeUnknown`` where the commit itself failed:
    perhaps only its answer was lost."""
    try:
        yield
    except BaseException:
        with suppress(SQLAlchemyError):  # a connection that is gone has rolled back
            connection.exec_driver_sql("ROLLBACK")
        raise
    try:
        connection.exec_driver_sql("COMMIT")
    except DBAPIError as error:
        connection.invalidate()
        raise OutcomeUnknown(
            "state.outcome", "The database went away while it committed; whether it did is not known yet."
        ) from error


@contextmanager
def reachable() -> Iterator[None]:
    """What PostgreSQL and the way to it refuse, as our errors. Their texts stay inside: they may quote rows."""
    try:
        yield
    except DataError as error:
        raise Misuse("state.value", "The database can't hold such a value; give plain text without NUL.") from error
    except DBAPIError as error:
        code = getattr(error.orig, "sqlstate", None)
        if code == "53100":
            raise Unavailable("storage.full", "The database's disk is full; free space, then try again.") from error
        if code in _BUSY:
            raise _busy() from error
        raise Unavailable(
            "state.unreachable", "The broker's database can't be reached or refuses; look at its log."
        ) from error
    except PoolTimeout as error:
        raise _busy() from error


def _busy() -> Unavailable:
    return Unavailable("state.busy", "Another process or request keeps the broker's database busy; try again.")


def read_address(path: Path) -> URL:
    """The URL in ``path``: ``postgresql://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=verify-full&sslrootcert=FILE``.

    Raises Misuse for a file that others can read, and for a way over a network without a verified certificate.
    """
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            text = file.read(_MAX_ADDRESS + 1)
    except OSError:
        raise Misuse("state.address", "The file with the database's URL can't be read.") from None
    if not stat.S_ISREG(found.st_mode) or found.st_mode & 0o077 or found.st_uid not in (0, os.geteuid()):
        raise Misuse(
            "state.address_mode",
            "The file with the database's URL may hold a password: make it this user's, mode 0600.",
        )
    try:
        url = make_url(text.decode().strip())
    except (ArgumentError, UnicodeDecodeError, ValueError):
        raise _no_url() from None
    if len(text) > _MAX_ADDRESS or url.drivername not in ("postgresql", "postgres") or not url.database:
        raise _no_url()
    if not all(_is_local(host) for host in _hosts(url)) and url.query.get("sslmode") != "verify-full":
        raise Misuse(
            "state.address_tls", "A database on another machine needs sslmode=verify-full (and sslrootcert) in its URL."
        )
    return url.set(drivername="postgresql+psycopg")


def _no_url() -> Misuse:
    return Misuse("state.address", "The file needs one line: postgresql://USER:PASSWORD@HOST:PORT/DATABASE")


def _hosts(url: URL) -> list[str]:
    """Everything that the client might connect to. An empty one stands for the local socket."""
    query = [url.query.get(name, ()) for name in ("host", "hostaddr", "service")]
    texts = [url.host or "", *(text for q in query for text in ((q,) if isinstance(q, str) else q))]
    return [host for text in texts for host in text.split(",")]


def _is_local(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host in ("", "localhost") or host.startswith("/")


def _arguments(limits: Limits) -> dict[str, Any]:
    """Nothing waits for ever: not for the network, nor for a lock, nor the server for a client that stands still."""
    seconds = max(1, int(limits.database_seconds))
    server = {
        "lock_timeout": 1000 * seconds,
        "statement_timeout": 3000 * seconds,
        "idle_in_transaction_session_timeout": int(1000 * limits.turn_seconds),
    }
    return {
        "application_name": "cloister-broker",
        "connect_timeout": max(2, seconds),
        "keepalives_idle": seconds,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": 1000 * seconds,
        "options": " ".join(f"-c {name}={value}" for name, value in server.items()),
    }


def _check_server(connection: Any, _: Any) -> None:
    """A commit that returned must survive a loss of power; a server that was set up otherwise is refused."""
    try:
        version, *settings, standby = connection.execute(_SETTINGS).fetchone()
        connection.rollback()
        for name, value in zip(("fsync", "full_page_writes"), settings, strict=False):
            if value != "on":
                raise _not_durable(name, "on")
        if settings[2] not in ("on", "remote_apply"):
            raise _not_durable("synchronous_commit", "on")
        if version < _OLDEST or standby:
            raise Misuse("state.server", "The database has to be the primary of a PostgreSQL 14 or newer.")
    except CloisterError:
        connection.close()
        raise


def _not_durable(name: str, value: str) -> Misuse:
    return Misuse(
        "state.durability", f"The database may lose what it committed: set {name}={value} in PostgreSQL.", setting=name
    )


@contextmanager
def _sqlite_errors() -> Iterator[None]:
    try:
        yield
    except DatabaseError as error:
        code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            raise Unavailable("storage.full", "The disk is full; free space, then try again.") from error
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise _busy() from error
        raise Unavailable(
            "state.unreachable", "The broker's state can't be read or written; look at the disk."
        ) from error


def _durable(connection: Any, _: Any) -> None:
    """FULL: a commit that returned survives a loss of power. The default of WAL mode would not promise that."""
    _set(connection, "FULL")


def _in_order(connection: Any, _: Any) -> None:
    """NORMAL: a commit survives the end of the process, and a loss of power at least leaves no gap: SQLite syncs the
    write-ahead log before it copies from it, and takes of it what is whole from its beginning."""
    _set(connection, "NORMAL")


def _set(connection: Any, synchronous: str) -> None:
    for setting in ("journal_mode=WAL", f"synchronous={synchronous}", "secure_delete=ON", "trusted_schema=OFF"):
        connection.execute(f"PRAGMA {setting}").close()
