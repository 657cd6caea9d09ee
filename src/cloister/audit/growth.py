"""How a log grows: what a commit adds to the tree, worked out before anything is written. Pure.

Only full tiles are hashed into the level above, so full tiles never change, and everything that does change is one
partial tile a level: the ``Edge``. Appending touches one hash a level, so it costs O(log n) however long the log is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..crypto.merkle import leaf_hash
from .tiles import HEIGHT, WIDTH, Edge, Tile, TreeReader, tile_root

__all__ = ["Growth", "extend", "grow"]


def grow(edge: Edge, leaf_hashes: Iterable[bytes]) -> tuple[Edge, list[Tile]]:
    """Append leaves: the new edge, and the tiles that became full, lower levels first where they depend."""
    tails = [list(tail) for tail in edge.tails]
    size, full = edge.size, []
    for leaf in leaf_hashes:
        size += 1
        digest, level = leaf, 0
        while True:
            if level == len(tails):
                tails.append([])
            tails[level].append(digest)
            if len(tails[level]) < WIDTH:
                break
            tile = Tile(level, (size >> HEIGHT * (level + 1)) - 1, tuple(tails[level]))
            full.append(tile)
            tails[level] = []
            digest, level = tile_root(tile.hashes), level + 1
    return Edge(size, tuple(tuple(tail) for tail in tails)), full


@dataclass(frozen=True)
class Growth:
    """The log after a commit (``edge``; ``tail``: the entries of its partial bundle) and what became full in it."""

    edge: Edge
    tail: tuple[bytes, ...]
    tiles: list[Tile]
    bundles: dict[int, tuple[bytes, ...]]

    def tree(self, stored: Callable[[int, int], tuple[bytes, ...]]) -> TreeReader:
        """The tree as it will be, with the tiles that became full and that ``stored`` does not know yet."""
        fresh = {(tile.level, tile.index): tile.hashes for tile in self.tiles}
        return TreeReader(self.edge, lambda level, index: fresh.get((level, index)) or stored(level, index))


def extend(edge: Edge, tail: Sequence[bytes], entries: Sequence[bytes]) -> Growth:
    """Append ``entries`` to a log with this ``edge`` and partial bundle ``tail``."""
    grown, tiles = grow(edge, map(leaf_hash, entries))
    pending = (*tail, *entries)
    first = (edge.size - len(tail)) // WIDTH
    whole = len(pending) // WIDTH
    bundles = {first + i: pending[i * WIDTH : (i + 1) * WIDTH] for i in range(whole)}
    return Growth(grown, pending[whole * WIDTH :], tiles, bundles)
