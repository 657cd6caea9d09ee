"""Opening a log: from the signed heads, the journal and the right edge to the state in memory. Writes nothing.

Why no acknowledged entry can be lost, and none un-signed: an entry is acknowledged after (1) the journal that holds it
and the head over it, and (2) the tiles it filled are synced, in this order; a journal drops entries only after both,
and after a checkpoint over them is synced. So whatever a crash leaves, the journal reaches at least to the checkpoint.
A head is signed before its entries are written, and shown to nobody before they are durable with it. Whole frames
beyond the newest head are kept, never dropped: a head over them was signed, and signing another tree of the same size
later would be a fork, even if nobody can have seen the first. Only the torn end of the last write is dropped, which no
head that was shown covers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import Malformed, Untrusted
from .checkpoint import Checkpoint, verify_checkpoint
from .growth import Growth, extend
from .journal import JournalContents
from .storage import LogFolder
from .tiles import HEIGHT, WIDTH, Edge, tile_root

__all__ = ["Recovered", "recover"]


@dataclass(frozen=True)
class Recovered:
    """``entries`` are the journal's, from ``base`` on; ``growth`` is what they make of the edge at ``base``.

    ``asides``: what the journal keeps for entries, by their indexes.
    """

    base: int
    entries: tuple[bytes, ...]
    growth: Growth
    asides: Mapping[int, bytes]


def recover(folder: LogFolder, origin: str, key: bytes) -> Recovered:
    """Raises Untrusted: ``log.truncated``, ``log.rollback``, ``log.head``, ``log.root``, or what a damaged file gives.

    It reads the checkpoint, the journal, and per level one partial tile (or, where that is missing or wrong, the at
    most 255 full tiles below it): never all entries, however long the log is.
    """
    checkpoint = verify_checkpoint(folder.read_checkpoint(), origin, key)
    journal = folder.read_journal()
    end = journal.base + len(journal.entries)
    if end < checkpoint.size:
        raise Untrusted(
            "log.truncated",
            "The log is shorter than its signed head says: entries were removed; restore it from a copy.",
            signed=checkpoint.size,
            found=end,
        )
    if journal.damaged:
        raise Untrusted(
            "log.journal",
            "The log's journal is damaged between entries that were acknowledged; restore it from a copy.",
            found=end,
        )
    if journal.base > checkpoint.size:
        raise Untrusted(
            "log.rollback",
            "The log's checkpoint is older than its journal: an old head was put in its place.",
            signed=checkpoint.size,
            journal=journal.base,
        )
    signed = [checkpoint, *_last_head(journal, origin, key)]
    for trust_partials in (True, False):
        growth = extend(_edge_at(folder, journal.base, trust_partials), (), journal.entries)
        tree = growth.tree(folder.full_tile)  # the journal may fill tiles that are not stored yet
        if all(tree.root(head.size) == head.root for head in signed):
            return Recovered(journal.base, journal.entries, growth, journal.asides)
    raise Untrusted(
        "log.root",
        "The log on disk does not hash to its signed head: it was changed; restore it from a copy.",
        size=signed[-1].size,
    )


def _last_head(journal: JournalContents, origin: str, key: bytes) -> list[Checkpoint]:
    """The newest head that the journal holds. The ones before it cover less, and whoever kept one can still tell."""
    if journal.head is None:
        return []
    size, note = journal.head
    try:
        head = verify_checkpoint(note.decode(), origin, key)
    except UnicodeDecodeError:
        raise Malformed("note.text", "The head in the log's journal is not valid UTF-8.") from None
    if head.size != size:
        raise Untrusted(
            "log.head",
            "The log's journal holds a signed head in another place than its own; restore the log from a copy.",
            signed=head.size,
            found=size,
        )
    return [head]


def _edge_at(folder: LogFolder, size: int, trust_partials: bool) -> Edge:
    """The edge of the first ``size`` entries, a multiple of 256: from partial tiles, else from the full tiles below.

    A partial tile isn't synced when it is written, so a crash may have lost it; the root decides whether it holds.
    """
    tails: list[tuple[bytes, ...]] = []
    level = 0
    while size >> HEIGHT * level:
        width = (size >> HEIGHT * level) % WIDTH
        index = size >> HEIGHT * (level + 1)
        tails.append(_tail(folder, level, index, width, trust_partials) if width else ())
        level += 1
    return Edge(size, tuple(tails))


def _tail(folder: LogFolder, level: int, index: int, width: int, trust_partials: bool) -> tuple[bytes, ...]:
    if trust_partials:
        try:
            return folder.read_partial_tile(level, index, width)
        except Untrusted:
            trust_partials = False  # missing or cut short by a crash: work it out from what was synced
    below = range(index * WIDTH, index * WIDTH + width)
    return tuple(tile_root(folder.full_tile(level - 1, i)) for i in below)
