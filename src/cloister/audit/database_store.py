"""A log in a database that several processes share: rows for entries and for hashes, and one row for the signed head.

Whoever appends locks the head's row first, so all processes append to one log, one after the other; a head that is not
the newest can't be built on. Entries, hashes and head come in one transaction: there is no state in between to recover
from, and what else changes in that transaction is in step with the log by itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from sqlalchemy import Connection

from ..crypto import Signer
from ..crypto.merkle import leaf_hash, verify_consistency
from ..errors import CloisterError, Internal, Unavailable, Untrusted
from .checkpoint import Checkpoint, sign_checkpoint, verify_checkpoint
from .growth import grow
from .ports import Database, Head, OutcomeUnknown, StillSound
from .rows import edge_at, entries_at, hashes_at, insert_rows, newest, put_head
from .tiles import WIDTH, Edge, Tile, TreeReader

__all__ = ["DatabaseStore", "Grown"]

_PAUSE = 0.2  # seconds between looks for a database that went away


@dataclass(frozen=True)
class _Known:
    head: Head
    edge: Edge


@dataclass(frozen=True)
class Grown:
    """What an append made, within a transaction that is not committed yet. ``first``: the first entry's index."""

    first: int
    leaves: tuple[bytes, ...]
    head: Head
    edge: Edge


class DatabaseStore:
    """``LogStore`` over a shared database. ``signer`` is every replica's: they are one party with one log key."""

    defers = False
    asides: Mapping[int, bytes] = MappingProxyType({})

    def __init__(self, database: Database, *, origin: str, signer: Signer, patience: float) -> None:
        """Checks the stored head against the key and the tree; reads a bounded amount. ``patience``: seconds in which
        a database that went away amid a commit is looked for.

        Raises Untrusted (``log.*``, ``note.*``) for a head that we did not sign or that the tree does not give.
        """
        self._database = database
        self._origin = origin
        self._signer = signer
        self._patience = patience
        self._lock = threading.Lock()
        self.full_tile = lru_cache(maxsize=256)(self._read_full_tile)  # neither ever changes
        self._bundle = lru_cache(maxsize=4)(self._read_bundle)
        empty = Edge()
        self._known = _Known(Head(0, "", TreeReader(empty, self.full_tile)), empty)
        self.head()

    @property
    def origin(self) -> str:
        return self._origin

    # Reading.

    def head(self) -> Head:
        known = self._known
        return self._database.read(lambda connection: self._caught_up(connection, known, *newest(connection))).head

    def known_head(self) -> Head:
        return self._known.head

    def entries(self, head: Head, start: int, end: int) -> list[bytes]:
        found: list[bytes] = []
        whole = head.size - head.size % WIDTH
        while start < min(end, whole):
            number, place = divmod(start, WIDTH)
            stop = min(end - number * WIDTH, WIDTH)
            found += self._bundle(number)[place:stop]
            start = number * WIDTH + stop
        return found + self._read_entries(start, end) if start < end else found

    def _read_bundle(self, number: int) -> list[bytes]:
        return self._read_entries(number * WIDTH, (number + 1) * WIDTH)

    def _read_entries(self, start: int, end: int) -> list[bytes]:
        return self._database.read(lambda connection: entries_at(connection, start, end))

    def _read_full_tile(self, level: int, index: int) -> tuple[bytes, ...]:
        return self._database.read(lambda connection: hashes_at(connection, [(level, index * WIDTH, WIDTH)]))[0]

    def _caught_up(self, connection: Connection, known: _Known, size: int, note: str) -> _Known:
        """What the database has, taken over only if it is ours and extends what was ``known`` here before it was read.

        Another replica appends to the same log, so this is how its entries are met. A head that does not extend the one
        known here was put back from an older copy, or a standby without the last commits took over.
        """
        if note == known.head.note:
            return known
        checkpoint = verify_checkpoint(note, self._origin, self._signer.public)
        if checkpoint.size != size or size < known.head.size:
            raise _rolled_back()
        edge = edge_at(connection, size)
        tree = TreeReader(edge, self.full_tile)
        if tree.root() != checkpoint.root:
            raise Untrusted(
                "log.root",
                "The database's log does not hash to its signed head; restore it from a copy.",
                size=size,
            )
        try:
            proof = tree.consistency(known.head.size, size)
            verify_consistency(known.head.size, size, proof, known.head.tree.root(), checkpoint.root)
        except Untrusted:
            raise _rolled_back() from None
        return self._adopted(_Known(Head(size, note, tree), edge))

    def _adopted(self, newer: _Known) -> _Known:
        with self._lock:
            if newer.head.size > self._known.head.size or not self._known.head.note:
                self._known = newer
        return newer

    # Appending.

    def commit(self, entries: tuple[bytes, ...], asides: Mapping[int, bytes]) -> int:
        if asides:
            raise Internal("audit.aside", "A log in a database keeps nothing aside; report this.")
        grown: Grown | None = None
        try:
            if not entries:
                return self.head().size
            with self._database.transaction() as connection:
                grown = self.grow_within(connection, entries)
            self.adopt(grown)
        except OutcomeUnknown as unknown:
            if grown is None or not self._was_committed(grown, unknown):
                raise StillSound(unknown) from None
        except CloisterError as error:
            raise StillSound(error) from None
        return grown.first

    def grow_within(self, connection: Connection, entries: Sequence[bytes]) -> Grown:
        """Append within the caller's transaction, which holds the head's lock from here until it ends.

        Nothing of it counts, and no receipt may leave, before that transaction is committed and ``adopt`` was called.
        """
        known = self._known
        size, note = newest(connection, lock=True)
        known = self._caught_up(connection, known, size, note)
        leaves = tuple(map(leaf_hash, entries))
        edge, tiles = grow(known.edge, leaves)
        tree = TreeReader(edge, self._with(tiles))
        note = sign_checkpoint(Checkpoint(self._origin, edge.size, tree.root()), self._signer)
        insert_rows(connection, known.edge, edge, tiles, entries)
        put_head(connection, edge.size, note)
        return Grown(size, leaves, Head(edge.size, note, tree), edge)

    def adopt(self, grown: Grown) -> None:
        """The transaction was committed."""
        self._adopted(_Known(grown.head, grown.edge))

    def find_out(self, grown: Grown) -> bool:
        """Whether a transaction whose commit failed took place after all; if so, it is adopted.

        The head's lock is free only when that transaction has ended, and entries are salted, so that equal leaves are
        the same entries. Raises ``OutcomeUnknown`` where the database does not come back in time.
        """
        end = time.monotonic() + self._patience
        while True:
            try:
                with self._database.transaction() as connection:
                    size, _ = newest(connection, lock=True)
                    count = len(grown.leaves)
                    stored = hashes_at(connection, [(0, grown.first, count)])[0] if size >= grown.first + count else ()
            except Unavailable as away:
                if time.monotonic() > end:
                    raise OutcomeUnknown(
                        "state.outcome", "The database went away while it committed; whether it did is not known yet."
                    ) from away
                time.sleep(_PAUSE)
                continue
            if stored == grown.leaves:
                self.adopt(grown)
                return True
            return False

    def _was_committed(self, grown: Grown, unknown: OutcomeUnknown) -> bool:
        try:
            return self.find_out(grown)
        except OutcomeUnknown:
            raise StillSound(unknown) from None

    def _with(self, tiles: Sequence[Tile]) -> _FullTile:
        """Full tiles, among them those that this append fills and that no other connection can see yet."""
        fresh = {(tile.level, tile.index): tile.hashes for tile in tiles}
        return _FullTile(fresh, self)

    def forget_asides(self, end: int) -> None:
        """There are none."""

    def close(self, *, sound: bool) -> None:  # noqa: ARG002 - a database needs no tidying, sound or not
        self.full_tile.cache_clear()
        self._bundle.cache_clear()


@dataclass(frozen=True)
class _FullTile:
    fresh: dict[tuple[int, int], tuple[bytes, ...]]
    store: DatabaseStore

    def __call__(self, level: int, index: int) -> tuple[bytes, ...]:
        return self.fresh.get((level, index)) or self.store.full_tile(level, index)


def _rolled_back() -> Untrusted:
    return Untrusted(
        "audit.rollback", "The log in the database is older than what this broker has seen of it: it was rolled back."
    )
