"""The tables of a log in a database, and reading and writing rows of them. Nothing here decides what a log is.

``log_hashes`` holds the hashes of all tile levels, one a row: an append adds one row, and one more for each tile that
it fills. Nothing is ever rewritten but the head, so appending costs the same however long the log is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    and_,
    insert,
    or_,
    select,
    update,
)

from ..crypto import Signer
from ..crypto.merkle import EMPTY_ROOT, leaf_hash
from ..errors import Untrusted
from .checkpoint import Checkpoint, sign_checkpoint, verify_checkpoint
from .growth import grow
from .tiles import HEIGHT, WIDTH, Edge, Tile, TreeReader

__all__ = [
    "create_log",
    "edge_at",
    "entries_at",
    "hashes_at",
    "insert_rows",
    "newest",
    "put_head",
    "restore_log",
    "stored_head",
]

METADATA = MetaData()
_ENTRIES = Table(
    "log_entries",
    METADATA,
    Column("place", BigInteger, primary_key=True, autoincrement=False),
    Column("entry", LargeBinary, nullable=False),
)
_HASHES = Table(
    "log_hashes",
    METADATA,
    Column("level", Integer, primary_key=True, autoincrement=False),
    Column("place", BigInteger, primary_key=True, autoincrement=False),
    Column("hash", LargeBinary, nullable=False),
)
_HEAD = Table(
    "log_head",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("size", BigInteger, nullable=False),
    Column("note", Text, nullable=False),
)
_NEWEST = select(_HEAD.c.size, _HEAD.c.note).where(_HEAD.c.id == 1)


def create_log(connection: Connection, *, origin: str, signer: Signer) -> None:
    """The tables of a new, empty log, within the caller's transaction."""
    METADATA.create_all(connection, checkfirst=False)
    note = sign_checkpoint(Checkpoint(origin, 0, EMPTY_ROOT), signer)
    connection.execute(insert(_HEAD).values(id=1, size=0, note=note))


def restore_log(connection: Connection, note: str, batches: Iterable[Sequence[bytes]]) -> bytes:
    """The tables of a log that was elsewhere, with all its entries in order and its signed head, within the caller's
    transaction. Returns the root that the entries give: the caller compares it with the head's."""
    METADATA.create_all(connection, checkfirst=False)
    edge = Edge()
    for entries in batches:
        grown, full = grow(edge, map(leaf_hash, entries))
        insert_rows(connection, edge, grown, full, entries)
        edge = grown
    connection.execute(insert(_HEAD).values(id=1, size=edge.size, note=note))

    def full_tile(level: int, index: int) -> tuple[bytes, ...]:
        return hashes_at(connection, [(level, index * WIDTH, WIDTH)])[0]

    return TreeReader(edge, full_tile).root()


def stored_head(connection: Connection, origin: str, key: bytes) -> Checkpoint:
    """The signed head in a database, verified, and nothing else of it."""
    return verify_checkpoint(newest(connection)[1], origin, key)


def put_head(connection: Connection, size: int, note: str) -> None:
    """Replace the signed head. The caller has its lock."""
    connection.execute(update(_HEAD).where(_HEAD.c.id == 1).values(size=size, note=note))


def entries_at(connection: Connection, start: int, end: int) -> list[bytes]:
    """Entries [start, end), not verified; Untrusted where one is missing."""
    query = select(_ENTRIES.c.entry).where(_ENTRIES.c.place >= start, _ENTRIES.c.place < end)
    found = [bytes(entry) for entry in connection.execute(query.order_by(_ENTRIES.c.place)).scalars()]
    if len(found) != end - start:
        raise Untrusted("log.missing_row", "The database lacks entries of the log; restore it from a copy.")
    return found


def newest(connection: Connection, *, lock: bool = False) -> tuple[int, str]:
    row = connection.execute(_NEWEST.with_for_update() if lock else _NEWEST).one_or_none()
    if row is None:
        raise Untrusted("log.missing_row", "The database has no head of a log; restore it from a copy.")
    return int(row[0]), str(row[1])


def edge_at(connection: Connection, size: int) -> Edge:
    """The partial tiles of the first ``size`` entries, in one query."""
    levels = range(-(-size.bit_length() // HEIGHT))
    spans = [(level, size >> HEIGHT * (level + 1) << HEIGHT, (size >> HEIGHT * level) % WIDTH) for level in levels]
    return Edge(size, tuple(hashes_at(connection, spans)))


def hashes_at(connection: Connection, spans: Sequence[tuple[int, int, int]]) -> list[tuple[bytes, ...]]:
    """For each (level, first, count) exactly those hashes; Untrusted where one is missing."""
    wanted = [
        and_(_HASHES.c.level == level, _HASHES.c.place >= first, _HASHES.c.place < first + count)
        for level, first, count in spans
        if count
    ]
    found: dict[int, list[bytes]] = {level: [] for level, _, _ in spans}
    if wanted:
        query = select(_HASHES.c.level, _HASHES.c.hash).where(or_(*wanted)).order_by(_HASHES.c.level, _HASHES.c.place)
        for level, digest in connection.execute(query):
            found[level].append(bytes(digest))
    if any(len(found[level]) != count or any(len(h) != 32 for h in found[level]) for level, _, count in spans):
        raise Untrusted("log.missing_row", "The database lacks hashes of the log; restore it from a copy.")
    return [tuple(found[level]) for level, _, _ in spans]


def insert_rows(connection: Connection, old: Edge, new: Edge, tiles: Sequence[Tile], entries: Sequence[bytes]) -> None:
    rows = [{"place": place, "entry": entry} for place, entry in enumerate(entries, old.size)]
    connection.execute(insert(_ENTRIES), rows)
    connection.execute(insert(_HASHES), list(_new_hashes(old, new, tiles)))


def _new_hashes(old: Edge, new: Edge, tiles: Sequence[Tile]) -> Iterator[dict[str, int | bytes]]:
    """Rows for what ``new`` has and ``old`` lacks, on every level."""
    full = {(tile.level, tile.index): tile.hashes for tile in tiles}
    for level, tail in enumerate(new.tails):
        for place in range(old.size >> HEIGHT * level, new.size >> HEIGHT * level):
            hashes = full.get((level, place >> HEIGHT), tail)
            yield {"level": level, "place": place, "hash": hashes[place % WIDTH]}
