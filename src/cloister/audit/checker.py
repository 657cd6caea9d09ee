"""The independent checker: reads a log's folder (or a copy of it) and works everything out again from the entries.

It shares no code with what writes the log: it has its own reader of bundles, tiles and the journal, and uses only
the RFC 6962 tree and the verification of signed checkpoints. It never writes, takes no lock, keeps constant memory,
and stops at the first thing that is wrong, saying what and where.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..crypto.merkle import RootHasher, leaf_hash, root_of
from ..errors import Malformed, Untrusted
from .checkpoint import Checkpoint, verify_checkpoint
from .events import parse_event

__all__ = ["LogReport", "check_log"]

_MAGIC = b"cloister/journal/v1\n"
_LIMIT = 256 * 65_537


@dataclass(frozen=True)
class LogReport:
    """What was checked. ``kinds`` counts entries by event kind ("other": not an event of ours)."""

    checkpoint: Checkpoint
    kinds: Mapping[str, int]
    tiles: int
    bundles: int
    unacknowledged: int  # whole entries beyond the signed head: written, but a crash came before their head
    torn_bytes: int  # bytes after them, of a write that a crash cut short
    missing_partials: int  # partial tiles of this head that the folder lacks; they follow from the rest


def check_log(folder: Path, origin: str, log_key: bytes, *, older: str | None = None) -> LogReport:
    """Check all of it against the pinned ``origin`` and ``log_key``, and against ``older``, a head kept by somebody.

    Raises Untrusted (or Malformed, for a checkpoint that isn't one) at the first problem, with ``where``.
    """
    checkpoint = verify_checkpoint(_read(folder, "checkpoint").decode(errors="replace"), origin, log_key)
    kept = verify_checkpoint(older, origin, log_key) if older is not None else None
    if kept and kept.size > checkpoint.size:
        raise _problem("log.rollback", "The log is shorter than a head that it once signed", "checkpoint")
    return _Check(folder, checkpoint, kept).run()


class _Check:
    def __init__(self, folder: Path, checkpoint: Checkpoint, kept: Checkpoint | None) -> None:
        self.folder = folder
        self.checkpoint = checkpoint
        self.kept = kept
        self.kinds: Counter[str] = Counter()
        self.tree = RootHasher()
        self.levels: list[list[bytes]] = []  # per level, the hashes of the tile that is being filled
        self.bundle: list[bytes] = []
        self.seen: set[str] = set()
        self.missing_partials = self.torn = 0

    def run(self) -> LogReport:
        self.at_size(0)
        for entry in self.entries():
            if self.tree.size < self.checkpoint.size:
                self.kinds[_kind(entry)] += 1
            self.add(entry)
            self.at_size(self.tree.size)
        if self.tree.size < self.checkpoint.size:
            raise _problem("log.truncated", "The log ends before its signed head", f"entry {self.tree.size}")
        self.right_edge()
        self.no_strays()
        entry_files = sum(path.startswith("tile/entries/") for path in self.seen)
        return LogReport(
            self.checkpoint,
            dict(sorted(self.kinds.items())),
            len(self.seen) - entry_files,
            entry_files,
            self.tree.size - self.checkpoint.size,
            self.torn,
            self.missing_partials,
        )

    def at_size(self, size: int) -> None:
        """Recompute the heads at the two sizes that somebody signed: stronger than a consistency proof."""
        if self.kept and size == self.kept.size and self.tree.root() != self.kept.root:
            raise _problem("log.inconsistent", "The log was rewritten after a head that somebody kept", "older head")
        if size == self.checkpoint.size and self.tree.root() != self.checkpoint.root:
            raise _problem("log.root", "The entries do not hash to the signed head", f"the first {size} entries")

    def entries(self) -> Iterator[bytes]:
        """Full bundles up to the journal's base, then the journal; without a journal (an export), bundles only."""
        if (self.folder / "journal").exists():
            base, pending = self.journal()
            for number in range(base // 256):
                yield from self.read_bundle(number, 256)
            yield from pending
            return
        whole, rest = divmod(self.checkpoint.size, 256)
        for number in range(whole):
            yield from self.read_bundle(number, 256)
        if rest:
            yield from self.read_bundle(whole, rest)

    def read_bundle(self, number: int, width: int) -> list[bytes]:
        path = _name("entries", number, width)
        entries = _split_bundle(_read(self.folder, path))
        if len(entries) != width:
            raise _problem("log.bundle", "An entry bundle does not hold the entries that it should", path)
        return entries

    def journal(self) -> tuple[int, list[bytes]]:
        data = _read(self.folder, "journal", 8 * _LIMIT)
        base = int.from_bytes(data[20:28], "big")
        if data[:20] != _MAGIC or data[28:44] != _check_bytes(base, b"") or base % 256:
            raise _problem("log.journal", "The journal's header is damaged", "journal")
        if base > self.checkpoint.size:
            raise _problem("log.rollback", "The checkpoint is older than the journal", "checkpoint")
        entries: list[bytes] = []
        at = 44
        while at < len(data):
            end = at + 2 + int.from_bytes(data[at : at + 2], "big")
            entry = data[at + 2 : end]
            if not entry or data[end : end + 16] != _check_bytes(base + len(entries), entry):
                break
            entries.append(entry)
            at = end + 16
        self.torn = len(data) - at
        if self.torn and base + len(entries) < self.checkpoint.size:
            raise _problem(
                "log.journal", "A journal entry under the signed head is damaged", f"entry {base + len(entries)}"
            )
        return base, entries

    def add(self, entry: bytes) -> None:
        digest = leaf_hash(entry)
        self.tree.add_leaf_hash(digest)
        self.bundle.append(entry)
        if len(self.bundle) == 256:
            self.compare(
                "entries", self.tree.size // 256 - 1, _join_bundle(self.bundle), [2 + len(e) for e in self.bundle]
            )
            self.bundle = []
        level = 0
        while True:
            if level == len(self.levels):
                self.levels.append([])
            tile = self.levels[level]
            tile.append(digest)
            if len(tile) < 256:
                return
            self.compare(str(level), (self.tree.size >> 8 * (level + 1)) - 1, b"".join(tile), [32] * 256)
            self.levels[level] = []
            digest, level = root_of(tile), level + 1

    def right_edge(self) -> None:
        """The partial tiles of the newest state; the signed head's own must be there."""
        size = self.tree.size
        self.compare("entries", size // 256, _join_bundle(self.bundle), [2 + len(entry) for entry in self.bundle])
        for level, tile in enumerate(self.levels):
            self.compare(str(level), size >> 8 * (level + 1), b"".join(tile), [32] * len(tile))

    def compare(self, kind: str, number: int, expected: bytes, sizes: list[int]) -> None:
        """Whatever the folder has of this tile, full or partial, must begin as recomputed; what must be there, is."""
        level = 0 if kind == "entries" else int(kind)
        signed = min((self.checkpoint.size >> 8 * level) - 256 * number, 256)  # hashes of it under the signed head
        have = False
        for path, width in self.files_of(kind, number):
            self.seen.add(path)
            # A partial tile is a prefix of what the tile holds now; one that goes beyond the entries is made up.
            if width > len(sizes) or _read(self.folder, path) != expected[: sum(sizes[:width])]:
                raise _problem("log.tile", "A tile or bundle does not hold what the entries give", path)
            have = have or width == signed
        if signed == 256 and not have:
            raise _problem("log.missing_file", "A full tile or bundle is missing", _name(kind, number, 256))
        self.missing_partials += 0 < signed < 256 and not have

    def files_of(self, kind: str, number: int) -> Iterator[tuple[str, int]]:
        full = _name(kind, number, 256)
        if (self.folder / full).is_file():
            yield full, 256
        for path in sorted((self.folder / f"{full}.p").glob("*")):
            if not re.fullmatch(r"[1-9][0-9]{0,2}", path.name) or int(path.name) > 255:
                raise _problem("log.stray", "The folder holds a file that no log writes", f"{full}.p")
            yield f"{full}.p/{path.name}", int(path.name)

    def no_strays(self) -> None:
        """Nothing under tile/ may be left unchecked: a reader of the tiles might be given it."""
        for path in sorted((self.folder / "tile").rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if not path.is_dir() and name not in self.seen:
                raise _problem("log.stray", "The folder holds a tile that the entries do not give", name)


def _problem(code: str, what: str, where: str) -> Untrusted:
    return Untrusted(code, f"{what} ({where}); compare with another copy of the log.", where=where)


def _read(folder: Path, name: str, limit: int = _LIMIT) -> bytes:
    try:
        with open(folder / name, "rb") as file:
            data = file.read(limit + 1)
    except OSError:
        raise _problem("log.missing_file", "A file of the log is missing or can't be read", name) from None
    if len(data) > limit:
        raise _problem("log.oversize", "A file of the log is longer than any log writes", name)
    return data


def _name(kind: str, number: int, width: int) -> str:
    text = str(number).zfill(3 * max(1, -(-len(str(number)) // 3)))
    groups = re.findall("...", text)
    path = "/".join(["tile", kind, *(f"x{group}" for group in groups[:-1]), groups[-1]])
    return path if width == 256 else f"{path}.p/{width}"


def _check_bytes(index: int, entry: bytes) -> bytes:
    parts = (b"cloister/journal/v1", index.to_bytes(8, "big"), entry)
    return hashlib.sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).digest()[:16]


def _split_bundle(data: bytes) -> list[bytes]:
    """Entries of a bundle; empty if its lengths don't add up."""
    entries: list[bytes] = []
    at = 0
    while at < len(data):
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        entries.append(data[at + 2 : end])
        at = end
    return entries if at == len(data) and all(entries) else []


def _join_bundle(entries: list[bytes]) -> bytes:
    return b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)


def _kind(entry: bytes) -> str:
    try:
        return parse_event(entry).kind
    except Malformed:
        return "other"
