"""Geometry of a tiled log (C2SP tlog-tiles): names, tiles, entry bundles and hashes of subtrees. Pure.

A tile at level L holds up to 256 hashes; each is the root over 256**L entries. A bundle holds up to 256 entries.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ..crypto.merkle import EMPTY_ROOT, consistency_proof, inclusion_proof, node_hash
from ..errors import Malformed, Misuse
from .limits import LIMITS

__all__ = [
    "HEIGHT",
    "WIDTH",
    "Edge",
    "Tile",
    "TreeReader",
    "decode_bundle",
    "decode_hashes",
    "encode_bundle",
    "parse_resource",
    "resource_path",
    "tile_root",
]

HEIGHT = 8
WIDTH = 256

_PATH = re.compile(r"tile/(entries|[0-9]|[1-5][0-9]|6[0-3])/((?:x[0-9]{3}/){0,5}[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?")


@dataclass(frozen=True)
class Tile:
    """A full tile: 256 hashes at ``level``, the ``index``-th of that level."""

    level: int
    index: int
    hashes: tuple[bytes, ...]


@dataclass(frozen=True)
class Edge:
    """The right edge of a tree of ``size``: ``tails[level]`` holds the hashes of that level's partial tile."""

    size: int = 0
    tails: tuple[tuple[bytes, ...], ...] = ()


@lru_cache(maxsize=512)
def _pyramid(hashes: tuple[bytes, ...]) -> tuple[tuple[bytes, ...], ...]:
    """All complete subtrees over a tile's hashes: row r holds those of height r.

    Cached, since tiles recur; and made in steps of 16 hashes, since a tile that grows recurs but for its end.
    """
    start = (len(hashes) - 1) // 16 * 16
    before = _pyramid(hashes[:start]) if start > 0 else ()
    rows = [hashes]
    while len(rows[-1]) > 1:
        row = rows[-1]
        known = before[len(rows)] if len(before) > len(rows) else ()
        new = range(2 * len(known), len(row) - 1, 2)
        rows.append((*known, *(node_hash(row[i], row[i + 1]) for i in new)))
    return tuple(rows)


def tile_root(hashes: tuple[bytes, ...]) -> bytes:
    """The root over a full tile, which is one hash of the level above."""
    return _pyramid(hashes)[HEIGHT][0]


class TreeReader:
    """Hashes and proofs of one tree. ``full_tile(level, index)`` fetches full tiles; partial ones are in ``edge``."""

    def __init__(self, edge: Edge, full_tile: Callable[[int, int], tuple[bytes, ...]]) -> None:
        self._edge = edge
        self._full_tile = full_tile

    def tile(self, level: int, index: int) -> tuple[bytes, ...]:
        """All hashes that this tree has in the tile; Misuse if it has none."""
        full = self._edge.size >> HEIGHT * (level + 1)
        if index < full:
            return self._full_tile(level, index)
        tails = self._edge.tails
        if index > full or level >= len(tails) or not tails[level]:
            raise Misuse("log.tile", "The log has no such tile.")
        return tails[level]

    def subtree(self, start: int, end: int) -> bytes:
        """The root over leaves [start, end) of a proof: ``start`` is a multiple of the size rounded up to 2**k."""
        size = end - start
        if size & (size - 1) == 0:
            return self._node(size.bit_length() - 1, start // size)
        middle = start + (1 << (size.bit_length() - 1))
        return node_hash(self.subtree(start, middle), self.subtree(middle, end))

    def _node(self, height: int, index: int) -> bytes:
        """The root of the ``index``-th complete subtree of 2**height leaves."""
        level, row = divmod(height, HEIGHT)
        first = index << row  # its first hash at that tile level
        return _pyramid(self.tile(level, first >> HEIGHT))[row][(first & (WIDTH - 1)) >> row]

    def root(self, size: int | None = None) -> bytes:
        """The root over the first ``size`` leaves (default: all)."""
        size = self._edge.size if size is None else size
        return self.subtree(0, size) if size else EMPTY_ROOT

    def inclusion(self, index: int, size: int | None = None) -> tuple[bytes, ...]:
        """RFC 6962 §2.1.1 path of leaf ``index`` in the first ``size`` leaves."""
        return tuple(inclusion_proof(index, self._within(size), self.subtree))

    def consistency(self, old: int, new: int) -> tuple[bytes, ...]:
        """RFC 6962 §2.1.2 proof between the first ``old`` and the first ``new`` leaves."""
        return tuple(consistency_proof(old, self._within(new), self.subtree))

    def _within(self, size: int | None) -> int:
        if size is None:
            return self._edge.size
        if not 0 <= size <= self._edge.size:
            raise Misuse("log.size", "A proof was asked for a tree larger than the log; ask within its size.")
        return size


def resource_path(level: int | None, index: int, width: int = WIDTH) -> str:
    """Path of a tile, or of an entry bundle where ``level`` is None; ``width`` under 256 names a partial one."""
    digits = f"{index:03d}"
    digits = digits.zfill(-(-len(digits) // 3) * 3)
    groups = [digits[i : i + 3] for i in range(0, len(digits), 3)]
    name = "/".join([*(f"x{group}" for group in groups[:-1]), groups[-1]])
    return f"tile/{'entries' if level is None else level}/{name}" + (f".p/{width}" if width < WIDTH else "")


def parse_resource(path: str) -> tuple[int | None, int, int]:
    """(level or None for entries, index, width) of a path that ``resource_path`` writes; Malformed otherwise."""
    match = _PATH.fullmatch(path)
    if match:
        kind, name, partial = match.groups()
        found = (None if kind == "entries" else int(kind), int(re.sub("[x/]", "", name)), int(partial or WIDTH))
        if resource_path(*found) == path:
            return found
    raise Malformed("log.resource", "The path names neither a tile nor an entry bundle.")


def encode_bundle(entries: Sequence[bytes]) -> bytes:
    """Each entry preceded by its length as a big-endian uint16."""
    return b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)


def decode_bundle(data: bytes, count: int) -> tuple[bytes, ...]:
    """Exactly ``count`` entries, none empty, nothing after them. Raises Malformed."""
    entries: list[bytes] = []
    at = 0
    while at < len(data) and len(entries) < count:
        length = int.from_bytes(data[at : at + 2], "big")
        entries.append(data[at + 2 : at + 2 + length])
        at += 2 + length
        if not entries[-1]:
            break
    if at != len(data) or len(entries) != count or not all(entries):
        raise Malformed("log.bundle", "An entry bundle does not hold the entries that its name says.")
    return tuple(entries)


def decode_hashes(data: bytes, count: int) -> tuple[bytes, ...]:
    """Exactly ``count`` hashes of 32 bytes. Raises Malformed."""
    if len(data) != 32 * count or count > LIMITS.tree:
        raise Malformed("log.tile", "A tile does not hold the hashes that its name says.")
    return tuple(data[i : i + 32] for i in range(0, len(data), 32))
