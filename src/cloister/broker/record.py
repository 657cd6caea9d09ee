"""Where a broker's record lies: state and log in its home, or both in a PostgreSQL that its replicas share.

The vault and the card are always in the home. Whoever has a backup of the database therefore has no key of the vault,
and what was shredded with a KEK stays shredded in every old copy of the database.
"""

from __future__ import annotations

import fcntl
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from ..audit import AuditLog
from ..audit.database_store import DatabaseStore
from ..audit.rows import create_log
from ..contracts import Card
from ..crypto import Signer, sha256
from ..errors import Misuse, Unavailable, Untrusted
from ..keys import Vault
from ..sealed.folder import sync_folder
from .config import Settings
from .database import PostgresDatabase
from .seen import SeenHead
from .sequence import OwnSequence, Sequencer, reconcile
from .shared import SharedSequence, VaultMark
from .state import Intent, State, has_tables, taken

__all__ = ["Place", "Record", "place_of", "set_aside"]


@dataclass(frozen=True)
class Record:
    """What the broker knows and what it logged, and the sequence in which both change. ``lock``: of the home; None only
    right after creation."""

    state: State
    log: AuditLog
    sequence: Sequencer
    lock: IO[bytes] | None = None

    def reconcile(self, log_key: bytes) -> list[Intent]:
        """At start: what a crash left half-done is finished and returned. Raises as ``sequence.reconcile``."""
        if isinstance(self.sequence, OwnSequence):
            return reconcile(self.state, self.log, log_key)
        with self.sequence.turn():  # between two looks another replica may have gone on
            return reconcile(self.state, self.log, log_key)

    def close(self) -> None:
        with ExitStack() as closing:  # each of them, whatever another one raises
            if self.lock is not None:
                closing.callback(self.lock.close)
            closing.callback(self.state.close)
            closing.callback(self.log.close)
            if isinstance(self.sequence, OwnSequence | SharedSequence):
                self.sequence.close()


class Place(Protocol):
    """Nothing is read or made before one of these is called."""

    def check_vacant(self) -> None:
        """Raises Misuse where there is a broker, or a part of one."""
        ...

    def create(self, card: Card, vault: Vault, signer: Signer) -> Record:
        """A new, empty record."""
        ...

    def open_state(self) -> State:
        """The state alone: it tells which vault belongs to it."""
        ...

    def close(self) -> None:
        """After an error, where no record was made. Closing what a record closes, too, is fine."""
        ...

    def open(self, state: State, card: Card, vault: Vault, signer: Signer) -> Record:
        """The whole, with the state that was opened. ``signer``: of the log's heads."""
        ...


class _Home:
    """SQLite and a folder, which no other process has open."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def check_vacant(self) -> None:
        if self._settings.state.exists() or self._settings.log.exists():
            raise Misuse(
                "party.exists", "There is a party in this folder already, or a part of one; use an empty folder."
            )

    def create(self, card: Card, vault: Vault, signer: Signer) -> Record:  # noqa: ARG002 - only replicas mark a vault
        state = State.open(self._settings.state, create=True)
        try:
            log = AuditLog.create(self._settings.log, origin=card.log_origin, signer=signer)
        except BaseException:
            state.close()
            raise
        return Record(state, log, OwnSequence(state, log, signer.public))

    def open_state(self) -> State:
        _check_whole(self._settings)
        return State.open(self._settings.state, create=False)

    def open(self, state: State, card: Card, vault: Vault, signer: Signer) -> Record:  # noqa: ARG002 - as above
        # Before the log: while a record is set aside, nobody touches it.
        lock = _lock_home(self._settings.home, "audit.locked")
        log: AuditLog | None = None
        try:
            log = AuditLog.open(self._settings.log, origin=card.log_origin, signer=signer)
            if not SeenHead(self._settings.home / "seen", log, signer.public).covered():
                raise Untrusted(
                    "state.moved",
                    "This record went on in a database; put state.db and log elsewhere, and start with --database.",
                )
        except BaseException:
            if log is not None:
                log.close()
            lock.close()
            raise
        return Record(state, log, OwnSequence(state, log, signer.public), lock)

    def close(self) -> None:
        """Nothing is open but in a record."""


class _Shared:
    """One PostgreSQL for all replicas."""

    def __init__(self, settings: Settings, *, moving: bool) -> None:
        """``moving``: what is left of the home's own record is about to be set aside."""
        if settings.database is None:
            raise Misuse("state.address", "Name the file with the database's URL.")
        self._settings = settings
        self._moving = moving
        self._database = PostgresDatabase(settings.database, settings.limits)

    def check_vacant(self) -> None:
        self._check_home()
        if self._database.read(has_tables):
            raise taken()

    def _check_home(self) -> None:
        if self._moving:
            return
        _check_whole(self._settings)
        if self._settings.state.exists() or self._settings.log.exists():
            raise Misuse(
                "state.two_places",
                "This home has a state or log of its own beside the database; migrate it, or start without --database.",
            )

    def create(self, card: Card, vault: Vault, signer: Signer) -> Record:
        with self._database.transaction() as connection:
            State.create_shared(connection)
            create_log(connection, origin=card.log_origin, signer=signer)
        return self.open(State(self._database), card, vault, signer)

    def close(self) -> None:
        self._database.close()

    def open_state(self) -> State:
        self._check_home()
        return State.shared(self._database)

    def open(self, state: State, card: Card, vault: Vault, signer: Signer) -> Record:
        lock = _lock_home(self._settings.home)
        try:
            try:
                # A record that was set aside must not come back with a loss of power once this one has gone on.
                sync_folder(self._settings.home)
            except OSError:
                raise Unavailable("replica.home", "The home can't be written; look at its disk.") from None
            return self._open(state, card, vault, signer, lock)
        except BaseException:
            lock.close()
            raise

    def _open(self, state: State, card: Card, vault: Vault, signer: Signer, lock: IO[bytes]) -> Record:
        limits, path = self._settings.limits, self._settings.vault
        store = DatabaseStore(
            self._database, origin=card.log_origin, signer=signer, patience=2 * limits.turn_seconds
        )  # longer than the server lets a transaction rest whose client went away

        def mark() -> VaultMark:
            try:
                return vault.revision, sha256(path.read_bytes()).hex()
            except OSError:
                raise Unavailable("vault.read", "The vault file can't be read; look at the home's disk.") from None

        log = AuditLog(store)
        seen = SeenHead(self._settings.home / "seen", log, signer.public)
        seen.check()
        sequence = SharedSequence(self._database, state, store, signer.public, limits, mark=mark, seen=seen)
        vault.guard = sequence.alone
        return Record(state, log, sequence, lock)


def _lock_home(home: Path, code: str = "replica.locked") -> IO[bytes]:
    """A broker's home is one process's: its vault file, its admin socket, and the record that may lie in it."""
    try:
        lock = (home / "lock").open("ab")
    except OSError:
        raise Unavailable("replica.home", "The home can't be written; look at its disk.") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise Unavailable(
            code, "Another process runs in this home; stop it, or give each replica a home of its own."
        ) from None
    return lock


def set_aside(path: Path) -> Path:
    """Where a part of the home's own record lies once it was moved to a database."""
    return path.with_name(f"{path.name}.migrated")


def _check_whole(settings: Settings) -> None:
    """Raises Misuse in the middle of a move."""
    own = (settings.state, settings.log)
    if any(path.exists() for path in own) and any(set_aside(path).exists() and not path.exists() for path in own):
        raise Misuse(
            "migration.unfinished", "Moving this record to its database was broken off; give the same move again."
        )


def place_of(settings: Settings, *, moving: bool = False) -> Place:
    """Raises Misuse for a database's address that can't be used. ``moving``: see ``_Shared``."""
    return _Home(settings) if settings.database is None else _Shared(settings, moving=moving)
