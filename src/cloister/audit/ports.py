"""Where a log can lie: the port that ``AuditLog`` stands on. ``file_store`` is a folder, ``database_store`` a database.

Stores keep bytes; what is in a log, what its tree says and what a receipt proves is decided above them, once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from ..errors import CloisterError, Unavailable
from .tiles import TreeReader

if TYPE_CHECKING:  # a workload checks receipts, and has no database
    from sqlalchemy import Connection

__all__ = ["Database", "Head", "LogStore", "OutcomeUnknown", "StillSound"]

T = TypeVar("T")


@dataclass(frozen=True)
class Head:
    """One immutable state of a log. Readers take it once and are never disturbed by commits.

    ``tail``: in a folder, the entries that no full bundle holds.
    """

    size: int
    note: str
    tree: TreeReader
    tail: tuple[bytes, ...] = ()


class StillSound(Exception):
    """A commit failed and the store knows what it holds: it goes on. ``reason`` is what the callers are told."""

    def __init__(self, reason: CloisterError) -> None:
        super().__init__(reason.code)
        self.reason = reason


class OutcomeUnknown(Unavailable):
    """The database went away while it committed: perhaps it did, perhaps not. Whoever gets this must find out."""


class LogStore(Protocol):
    """One log. Reads may come from any thread, ``commit`` from one at a time."""

    @property
    def origin(self) -> str: ...

    @property
    def defers(self) -> bool:
        """Whether an entry may wait in memory for the next commit: only where nobody else appends, and where a commit
        that failed with ``StillSound`` wrote nothing."""
        ...

    def head(self) -> Head:
        """The newest stored head, also where another process stored it."""
        ...

    def known_head(self) -> Head:
        """The newest head that this process has seen; costs nothing. What lies under it never changes."""
        ...

    def commit(self, entries: tuple[bytes, ...], asides: Mapping[int, bytes]) -> int:
        """Make ``entries`` (perhaps none) durable under a new signed, stored head; the index of the first.

        ``asides``, by the place in ``entries``: kept beside an entry, durable with it, until ``forget_asides``. Where
        changes and entries share a transaction, there are none.

        Raises ``StillSound`` where nothing may have to be mended. After any other exception the log takes nothing more.
        """
        ...

    def entries(self, head: Head, start: int, end: int) -> list[bytes]:
        """Stored entries [start, end) under ``head``, not verified yet. Untrusted where they are missing."""
        ...

    @property
    def asides(self) -> Mapping[int, bytes]:
        """What is kept beside entries, by their indexes. A commit makes a new mapping, and leaves this as it is."""
        ...

    def forget_asides(self, end: int) -> None:
        """Nobody needs what is kept beside entries below ``end`` any more. Never during a commit."""
        ...

    def close(self, *, sound: bool) -> None:
        """Give back what was taken. ``sound``: no commit failed."""
        ...


class Database(Protocol):
    """A database that several processes share. Both raise Unavailable where it can't be reached."""

    def read(self, query: Callable[[Connection], T]) -> T:
        """What ``query`` gives, each of whose statements sees the newest committed state. It may be called twice."""
        ...

    def transaction(self) -> AbstractContextManager[Connection]:
        """Committed durably when the block ends, rolled back when it raises. Raises ``OutcomeUnknown`` where the commit
        itself failed."""
        ...
