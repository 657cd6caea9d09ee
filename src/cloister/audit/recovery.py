"""Opening a log: from the signed head, the journal and the right edge to the state in memory. Writes nothing.

Why no acknowledged entry can be lost, and none un-signed: an entry is acknowledged after (1) the journal that holds
it, (2) the tiles it filled, and (3) the checkpoint that covers it are synced, in this order; a journal drops entries
only after all three. So whatever a crash leaves, the journal reaches at least as far as the checkpoint. Whole frames
beyond the checkpoint are kept, never dropped: perhaps a head over them was signed, and signing another tree of the
same size later would be a fork. Only a torn frame beyond the checkpoint, which nothing signed covers, is dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import Untrusted
from .checkpoint import Checkpoint, verify_checkpoint
from .growth import Growth, extend
from .storage import LogFolder
from .tiles import HEIGHT, WIDTH, Edge, TreeReader, tile_root

__all__ = ["Recovered", "recover"]

_FullTile = Callable[[int, int], tuple[bytes, ...]]


@dataclass(frozen=True)
class Recovered:
    """``entries`` are the journal's, from ``base`` on; ``growth`` is what they make of the edge at ``base``."""

    base: int
    entries: tuple[bytes, ...]
    growth: Growth


def recover(folder: LogFolder, origin: str, key: bytes) -> Recovered:
    """Raises Untrusted: ``log.truncated``, ``log.rollback``, ``log.root``, or what a damaged file gives.

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
    if journal.base > checkpoint.size:
        raise Untrusted(
            "log.rollback",
            "The log's checkpoint is older than its journal: an old head was put in its place.",
            signed=checkpoint.size,
            journal=journal.base,
        )
    for trust_partials in (True, False):
        edge = _edge_at(folder, journal.base, trust_partials)
        growth = extend(edge, (), journal.entries)
        if _root_at(growth, folder.full_tile, checkpoint) == checkpoint.root:
            return Recovered(journal.base, journal.entries, growth)
    raise Untrusted(
        "log.root",
        "The log on disk does not hash to its signed head: it was changed; restore it from a copy.",
        size=checkpoint.size,
    )


def _root_at(growth: Growth, stored: _FullTile, checkpoint: Checkpoint) -> bytes:
    """The root at the checkpoint's size, counting tiles that the journal fills but that may not be stored yet."""
    fresh = {(tile.level, tile.index): tile.hashes for tile in growth.tiles}

    def full_tile(level: int, index: int) -> tuple[bytes, ...]:
        return fresh.get((level, index)) or stored(level, index)

    return TreeReader(growth.edge, full_tile).root(checkpoint.size)


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
