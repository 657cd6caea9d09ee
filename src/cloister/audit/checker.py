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

_MAGICS = {1: b"cloister/journal/v1", 2: b"cloister/journal/v2"}
_LIMIT = 256 * 65_537
# A head of ours has few lines: so few bytes that looking for one stays cheap, whatever is there.
_HEAD_FRAME = re.compile(rb"(?=\x02(\0\0[\0-\x0f].)(.{8})[^\0-\x20]{1,1024}+\n([0-9]{1,16})\n)", re.DOTALL)


@dataclass(frozen=True)
class LogReport:
    """What was checked. ``kinds`` counts entries by event kind ("other": not an event of ours)."""

    checkpoint: Checkpoint  # the newest: of the file of this name, or of the journal
    kinds: Mapping[str, int]
    tiles: int
    bundles: int
    unacknowledged: int  # whole entries beyond the signed head: written, but a crash came before their head
    torn_bytes: int  # bytes after them, of a write that a crash cut short
    missing_partials: int  # partial tiles of the stored checkpoint that the folder lacks; they follow from the rest


def check_log(folder: Path, origin: str, log_key: bytes, *, older: str | None = None) -> LogReport:
    """Check all of it against the pinned ``origin`` and ``log_key``, and against ``older``, a head kept by somebody.

    Raises Untrusted (or Malformed, for a checkpoint that isn't one) at the first problem, with ``where``.
    """
    stored = verify_checkpoint(_read(folder, "checkpoint").decode(errors="replace"), origin, log_key)
    kept = verify_checkpoint(older, origin, log_key) if older is not None else None
    journal = _read_journal(folder, stored.size) if (folder / "journal").exists() else None
    heads = [stored]
    for size, note in journal.heads if journal else ():
        head = verify_checkpoint(note.decode(errors="replace"), origin, log_key)
        if head.size != size:
            raise _problem("log.head", "The journal holds a signed head in another place than its own", f"entry {size}")
        heads.append(head)
    if kept and kept.size > max(head.size for head in heads):
        raise _problem("log.rollback", "The log is shorter than a head that it once signed", "checkpoint")
    return _Check(folder, heads, kept, journal).run()


@dataclass(frozen=True)
class _Journal:
    base: int
    entries: list[bytes]
    heads: list[tuple[int, bytes]]  # how many entries each covers, and the note
    torn: int


class _Check:
    def __init__(
        self, folder: Path, heads: list[Checkpoint], kept: Checkpoint | None, journal: _Journal | None
    ) -> None:
        self.folder = folder
        self.stored = heads[0]
        self.checkpoint = max(heads, key=lambda head: head.size)
        self.signed: dict[int, set[bytes]] = {}
        for head in heads:
            self.signed.setdefault(head.size, set()).add(head.root)
        self.kept = kept
        self.journal = journal
        self.kinds: Counter[str] = Counter()
        self.tree = RootHasher()
        self.levels: list[list[bytes]] = []  # per level, the hashes of the tile that is being filled
        self.bundle: list[bytes] = []
        self.seen: set[str] = set()
        self.missing_partials = 0

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
            self.journal.torn if self.journal else 0,
            self.missing_partials,
        )

    def at_size(self, size: int) -> None:
        """Recompute the heads at all sizes that somebody signed: stronger than a consistency proof."""
        if self.kept and size == self.kept.size and self.tree.root() != self.kept.root:
            raise _problem("log.inconsistent", "The log was rewritten after a head that somebody kept", "older head")
        if size in self.signed and self.signed[size] != {self.tree.root()}:
            raise _problem("log.root", "The entries do not hash to the signed head", f"the first {size} entries")

    def entries(self) -> Iterator[bytes]:
        """Full bundles up to the journal's base, then the journal; without a journal (an export), bundles only."""
        if self.journal is not None:
            for number in range(self.journal.base // 256):
                yield from self.read_bundle(number, 256)
            yield from self.journal.entries
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
        """The partial tiles of the newest state."""
        size = self.tree.size
        self.compare("entries", size // 256, _join_bundle(self.bundle), [2 + len(entry) for entry in self.bundle])
        for level, tile in enumerate(self.levels):
            self.compare(str(level), size >> 8 * (level + 1), b"".join(tile), [32] * len(tile))

    def compare(self, kind: str, number: int, expected: bytes, sizes: list[int]) -> None:
        """Whatever the folder has of this tile, full or partial, must begin as recomputed; what must be there, is."""
        level = 0 if kind == "entries" else int(kind)
        # Hashes of it under the stored checkpoint; what only the journal's heads cover may follow from the journal.
        signed = min((self.stored.size >> 8 * level) - 256 * number, 256)
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


def _read_journal(folder: Path, stored: int) -> _Journal:
    """``stored``: size of the stored checkpoint, which a journal reaches at least to."""
    data = _read(folder, "journal", 8 * _LIMIT)
    base = int.from_bytes(data[20:28], "big")
    version = 1 if data.startswith(_MAGICS[1]) else 2
    if data[:20] != _MAGICS[version] + b"\n" or data[28:44] != _check_bytes(version, 0, base, b"") or base % 256:
        raise _problem("log.journal", "The journal's header is damaged", "journal")
    if base > stored:
        raise _problem("log.rollback", "The checkpoint is older than the journal", "checkpoint")
    entries: list[bytes] = []
    heads: list[tuple[int, bytes]] = []
    at = 44
    while at < len(data):
        # Version 1: a length of two bytes and an entry. Version 2: a kind, a length of four, and what the kind says.
        kind, body_at = (1, at + 2) if version == 1 else (data[at], at + 5)
        length = int.from_bytes(data[body_at - (2 if version == 1 else 4) : body_at], "big")
        body, end = data[body_at : body_at + length], body_at + length + 16
        index = base + len(entries)
        if length < {1: 1, 2: 8, 3: 8}.get(kind, 2**32) or data[end - 16 : end] != _check_bytes(
            version, kind, index, body
        ):
            break
        if kind == 1:
            entries.append(body)
        elif kind == 2:
            heads.append((index, body[8:]))
        at = end
    reached = base + len(entries)
    # One commit is one write that ends with its head, and nothing is written after one that was not synced. So behind
    # what a crash cut short stands no head, or that of the commit which began where the last whole one ends.
    torn = {heads[-1][0]} if heads else set()
    if at < len(data) and (reached < stored or _later_commits(data[at:], version) - torn):
        raise _problem("log.journal", "A journal entry under the signed head is damaged", f"entry {reached}")
    return _Journal(base, entries, heads, len(data) - at)


def _later_commits(torn: bytes, version: int) -> set[int]:
    """First entries of the commits whose heads are whole in it: a note shows by itself how many entries precede it."""
    found = set()
    for match in _HEAD_FRAME.finditer(torn) if version == 2 else ():
        start = match.start() + 5
        end = start + int.from_bytes(match[1], "big")
        if torn[end : end + 16] == _check_bytes(2, 2, int(match[3]), torn[start:end]):
            found.add(int.from_bytes(match[2], "big"))
    return found


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


def _check_bytes(version: int, kind: int, index: int, body: bytes) -> bytes:
    place = (index.to_bytes(8, "big"), body)
    parts = (_MAGICS[version], *place) if version == 1 else (_MAGICS[version], kind.to_bytes(8, "big"), *place)
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
