"""A log's folder: ``lock``, ``journal``, ``checkpoint``, ``tile/`` (C2SP tlog-tiles paths) and scratch ``tmp/``.

Reads are bounded and raise Untrusted where a file is missing or not what its name says. Writes raise Unavailable.
Full tiles and bundles are synced before anything refers to them. Partial ones are not: they can be worked out again
from the journal and the full tiles, and opening does so.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

from ..errors import Internal, Malformed, Misuse, Unavailable, Untrusted
from .files import Scratch, sync_folder, writing
from .journal import Journal, JournalContents, encode_journal, parse_journal
from .limits import LIMITS
from .tiles import HEIGHT, WIDTH, Edge, Tile, decode_bundle, decode_hashes, encode_bundle, resource_path

__all__ = ["LogFolder"]

_MAX_BUNDLE = WIDTH * (2 + LIMITS.entry)


class LogFolder:
    """One open folder. It holds the lock: no other process, and no second instance here, can open it."""

    def __init__(self, root: Path, lock: int) -> None:
        self.root = root
        self._lock = lock
        self._scratch = Scratch(root)
        self._journal: Journal | None = None
        self._partials: set[str] = set()
        self._stale: set[str] = set()
        # Full tiles never change, so what was read once may be kept.
        self.full_tile = lru_cache(maxsize=256)(self._read_full_tile)
        self.bundle = lru_cache(maxsize=4)(self._read_bundle)

    @classmethod
    def locked(cls, root: Path) -> LogFolder:
        """Take the lock, or raise Unavailable("audit.locked")."""
        with writing():
            lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise Unavailable("audit.locked", "Another process has this audit log open; stop it first.") from None
        return cls(root, lock)

    def close(self) -> None:
        if self._journal:
            self._journal.close()
        os.close(self._lock)  # closing the descriptor gives the lock back

    # Reading.

    def is_pristine(self) -> bool:
        """Whether there is no log here, not even a damaged one."""
        if (self.root / "checkpoint").exists() or (self.root / "tile").exists():
            return False
        return not (self.root / "journal").exists() or not self.read_journal().entries

    def read_checkpoint(self) -> str:
        try:
            return self._read("checkpoint", LIMITS.note).decode()
        except UnicodeDecodeError:
            raise Malformed("note.text", "The log's checkpoint is not valid UTF-8.") from None

    def read_journal(self) -> JournalContents:
        return parse_journal(self._read("journal", LIMITS.journal))

    def read_partial_tile(self, level: int, index: int, width: int) -> tuple[bytes, ...]:
        return self._read_hashes(level, index, width)

    def _read_full_tile(self, level: int, index: int) -> tuple[bytes, ...]:
        return self._read_hashes(level, index, WIDTH)

    def _read_hashes(self, level: int, index: int, width: int) -> tuple[bytes, ...]:
        path = resource_path(level, index, width)
        try:
            return decode_hashes(self._read(path, 32 * WIDTH), width)
        except Malformed:
            raise Untrusted("log.tile", "A tile of the log was changed or damaged on disk.", where=path) from None

    def _read_bundle(self, index: int) -> tuple[bytes, ...]:
        path = resource_path(None, index)
        try:
            return decode_bundle(self._read(path, _MAX_BUNDLE), WIDTH)
        except Malformed:
            raise Untrusted("log.bundle", "An entry bundle of the log was changed on disk.", where=path) from None

    def _read(self, name: str, limit: int) -> bytes:
        try:
            with open(self.root / name, "rb") as file:
                data = file.read(limit + 1)
        except FileNotFoundError:
            raise Untrusted(
                "log.missing_file", "A file of the log is missing; restore it from a copy.", where=name
            ) from None
        except OSError as error:
            raise Unavailable("audit.unreadable", "The audit log can't be read; look at the disk.") from error
        if len(data) > limit:
            raise Untrusted("log.oversize", "A file of the log is longer than any log writes.", where=name)
        return data

    # Writing.

    def prepare(self) -> None:
        with writing():
            self._scratch.prepare()

    def store_full(self, tiles: Iterable[Tile], bundles: Mapping[int, tuple[bytes, ...]]) -> None:
        """Full tiles and bundles, durable when this returns."""
        files = {resource_path(tile.level, tile.index): b"".join(tile.hashes) for tile in tiles}
        files |= {resource_path(None, index): encode_bundle(entries) for index, entries in bundles.items()}
        with writing():
            for path, data in files.items():
                self._scratch.put(self.root / path, data, durable=True)
            for folder in {(self.root / path).parent for path in files}:
                sync_folder(folder)

    def store_partials(self, edge: Edge, tail: tuple[bytes, ...]) -> None:
        """The partial tiles and bundle of this size. Older ones stay until ``tidy``."""
        wanted: dict[str, bytes] = {}
        if tail:
            wanted[resource_path(None, edge.size // WIDTH, len(tail))] = encode_bundle(tail)
        for level, hashes in enumerate(edge.tails):
            if hashes:
                wanted[resource_path(level, edge.size >> HEIGHT * (level + 1), len(hashes))] = b"".join(hashes)
        with writing():
            for path in wanted.keys() - self._partials:
                self._scratch.put(self.root / path, wanted[path], durable=False)
        self._stale |= self._partials - wanted.keys()
        self._partials = set(wanted)

    def find_stale(self, base: int, edge: Edge) -> None:
        """Note for ``tidy`` the partial tiles that an earlier run left beyond ``base``, where its journal began.

        They may be damaged: nothing syncs them.
        """
        for level in (None, *range(len(edge.tails))):
            shift = HEIGHT * ((level or 0) + 1)
            for index in range(base >> shift, (edge.size >> shift) + 1):
                folder = self.root / f"{resource_path(level, index)}.p"
                if folder.is_dir():
                    found = {str(path.relative_to(self.root)) for path in folder.iterdir()}
                    self._stale |= found - self._partials

    def tidy(self) -> None:
        """Remove superseded partial tiles: each is a prefix of the one that followed it.

        A folder of them that is done with is gone for good when this returns, so the journal may move past it.
        """
        with writing():
            for path in (self.root / name for name in sorted(self._stale)):
                path.unlink(missing_ok=True)
                if path.parent.is_dir() and not any(path.parent.iterdir()):
                    path.parent.rmdir()
                    sync_folder(path.parent.parent)
        self._stale.clear()

    def store_checkpoint(self, text: str) -> None:
        """The signed head, durable when this returns."""
        with writing():
            self._scratch.put(self.root / "checkpoint", text.encode(), durable=True)
            sync_folder(self.root)

    def new_journal(self, base: int, entries: tuple[bytes, ...], note: str, asides: Mapping[int, bytes]) -> None:
        """Replace the journal in one step. The caller has made durable whatever the new one leaves out."""
        with writing():
            data = encode_journal(base, entries, note, asides)
            fd = self._scratch.place(self.root / "journal", data, durable=True)
            aside = sum(map(len, asides.values()))
            old, self._journal = self._journal, Journal(fd, base, len(entries), aside)
            if old:
                old.close()
            sync_folder(self.root)

    @property
    def journal(self) -> Journal:
        """The open journal; ``new_journal`` makes the first."""
        if self._journal is None:
            raise Internal("audit.journal", "The log's journal is used before it was opened; report this.")
        return self._journal

    @classmethod
    def existing(cls, root: Path) -> LogFolder:
        """Lock a folder that should hold a log; Misuse if there is no such folder."""
        if not root.is_dir():
            raise Misuse("log.absent", "There is no audit log in that folder; create it first.")
        return cls.locked(root)
