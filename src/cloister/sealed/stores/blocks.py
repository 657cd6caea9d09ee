"""Blocks of ciphertext on a local disk, never more than was allowed, each checked when it is read."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ...crypto import constant_time_equal, frame, random_bytes
from ...errors import Misuse
from .layout import BLOCK
from .staging import disk_errors

__all__ = ["BlockCache", "CacheCounts"]

_TAG = 32
_KEY = 32
_LABEL = "cloister/cached-block/v1"
_ROOM = 0.9  # a full cache is emptied to this part of its bound, so that not every block that comes scans the folder
_NAME = re.compile(r"[0-9a-f]{64}\.(?:manifest\.json|[0-9]{4}\.sealed)\.[0-9a-f]{8}")


@dataclass
class CacheCounts:
    """What happened since this process opened the cache."""

    hits: int = 0
    misses: int = 0
    damaged: int = 0  # blocks that were not what was put there; each was removed and is a miss as well
    refused: int = 0  # blocks that the disk did not take; nobody notices but in speed


class BlockCache:
    """A folder of blocks, least recently used out first. Several processes may share it.

    A block lies in a file of its own behind a keyed BLAKE2b tag (RFC 7693 §2.9) over object, file, number and bytes:
    what a crash tore, a disk spoiled or somebody swapped is found at once, removed, and fetched anew. The tag is for
    that, not for secrecy or trust: who can read the folder's key can forge it, and then the reader's own checks refuse
    the block.

    The bound holds at every moment: under a lock on the folder the size is counted up before a block is written, and
    a count that is too high, after a crash, is set right by the next scan.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        """Raises Misuse if the folder is another user's or open to others, or the bound is below 16 MiB."""
        if most_bytes < 16 * BLOCK:
            raise Misuse("cache.bound", "A cache needs room for at least 16 MiB.")
        self._blocks, self._most = folder / "blocks", most_bytes
        self.counts = CacheCounts()
        with disk_errors():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = os.lstat(folder)
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
                raise Misuse("cache.folder", "The cache's folder must be yours, and nobody else may write to it.")
            self._blocks.mkdir(mode=0o700, exist_ok=True)
            # One descriptor for each thread: flock belongs to the open file, not to the thread.
            self._lock_path, self._thread = folder / "size", threading.Lock()
            with self._locked() as fd:
                self._key = _shared_key(folder / "key")
                self._shrink(fd, self._most)

    # --- reading ---------------------------------------------------------------------------------------------------

    def get(self, digest: bytes, name: str, number: int) -> bytearray | None:
        """The block, if it is here and unchanged. ``name`` is a member's, ``number`` counts its blocks from 0."""
        place = self._place(digest, name, number)
        data = _read(place)
        if data is None:
            self.counts.misses += 1
            return None
        block = data[_TAG:]
        if not constant_time_equal(bytes(data[:_TAG]), self._tag(digest, name, number, block)):
            self.counts.damaged += 1
            self.counts.misses += 1
            with suppress(OSError):  # it is refused either way; the count is set right by the next scan
                place.unlink()
            return None
        self.counts.hits += 1
        with suppress(OSError):  # removed by another process just now: it was read all the same
            os.utime(place)
        return block

    def _place(self, digest: bytes, name: str, number: int) -> Path:
        return self._blocks / f"{digest.hex()}.{name}.{number:08x}"

    def _tag(self, digest: bytes, name: str, number: int, block: bytes | bytearray | memoryview) -> bytes:
        tag = hashlib.blake2b(frame(_LABEL, digest, name, number), key=self._key, digest_size=_TAG)
        tag.update(block)
        return tag.digest()

    # --- writing ---------------------------------------------------------------------------------------------------

    def add(self, digest: bytes, name: str, number: int, block: bytes | memoryview) -> None:
        """Keep a copy. A disk that doesn't take it is counted and otherwise ignored: the caller has the block."""
        size = _TAG + len(block)
        if size > self._most:
            return
        tag = self._tag(digest, name, number, block)
        try:
            with self._locked() as fd:
                self._write(fd, self._place(digest, name, number), tag, block)
        except OSError:
            self.counts.refused += 1

    def _write(self, fd: int, place: Path, tag: bytes, block: bytes | memoryview) -> None:
        size = _TAG + len(block)
        used = _counted(fd)
        if used is None or used + size > self._most:
            used = self._shrink(fd, min(int(self._most * _ROOM), self._most - size))
        _count(fd, used + size)  # before the file: a crash may only leave a count that is too high
        draft = place.with_name(f".{random_bytes(8).hex()}")
        try:
            # Not synced: what a crash tears has no tag that fits.
            with draft.open("xb", buffering=0) as file:
                for part in (tag, block):
                    rest = memoryview(part)
                    while rest:
                        rest = rest[file.write(rest) :]
            os.rename(draft, place)
        except OSError:
            draft.unlink(missing_ok=True)
            _count(fd, used)
            raise

    def forget(self, digest: bytes) -> None:
        """Remove every block of an object."""
        with disk_errors(), self._locked():
            for entry in self._entries():
                if entry.name.startswith(f"{digest.hex()}."):
                    os.unlink(entry.path)

    def used(self) -> int:
        """Bytes that lie in the folder now."""
        with disk_errors(), self._locked():
            return sum(entry.stat(follow_symlinks=False).st_size for entry in self._entries())

    def _shrink(self, fd: int, most: int) -> int:
        """Remove what was used longest ago, and what is no block, until at most ``most`` bytes are left."""
        entries = [(e.stat(follow_symlinks=False), e) for e in self._entries()]
        kept = []
        for found, entry in entries:
            if _NAME.fullmatch(entry.name) and stat.S_ISREG(found.st_mode):
                kept.append((found.st_mtime_ns, found.st_size, entry.path))
            elif not stat.S_ISDIR(found.st_mode):
                os.unlink(entry.path)  # of a writer that was killed: who writes now holds the lock, and that is we
        used = sum(size for _, size, _ in kept)
        for _, size, path in sorted(kept):
            if used <= most:
                break
            os.unlink(path)
            used -= size
        _count(fd, used)
        return used

    def _entries(self) -> list[os.DirEntry[str]]:
        with os.scandir(self._blocks) as found:
            return list(found)

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Alone among threads and processes; gives the descriptor of the file that holds the count."""
        with self._thread:
            fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                yield fd
            finally:
                os.close(fd)


def _counted(fd: int) -> int | None:
    data = os.pread(fd, 9, 0)
    return int.from_bytes(data, "big") if len(data) == 8 else None


def _count(fd: int, used: int) -> None:
    os.pwrite(fd, used.to_bytes(8, "big"), 0)


def _shared_key(place: Path) -> bytes:
    """The folder's key, made by whoever comes first; the caller holds the lock. One that was cut makes a new one: then
    no old tag fits, and the blocks are fetched anew."""
    data = _read(place)
    if data is not None and len(data) == _KEY:
        return bytes(data)
    key = random_bytes(_KEY)
    draft = place.with_name(f".{random_bytes(8).hex()}")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(key)
    os.rename(draft, place)
    return key


def _read(place: Path) -> bytearray | None:
    """A regular file of at most a block and its tag, or None. A link or a pipe in its place is none."""
    try:
        fd = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with open(fd, "rb", buffering=0) as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size > _TAG + 8 * BLOCK:
            return None
        data = bytearray(found.st_size)
        try:
            n = file.readinto(data)
        except OSError:
            return None
    return data[: n or 0]
