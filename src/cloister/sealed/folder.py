"""The folder in which a sealed object lies: names, careful opening, and durable writing."""

from __future__ import annotations

import errno
import io
import mmap
import os
import stat
from pathlib import Path

from ..crypto import Envelope
from ..errors import Malformed, Unavailable, Untrusted
from .models import LIMITS

__all__ = [
    "MANIFEST_NAME",
    "MAX_ENVELOPE",
    "FolderSource",
    "MemberFile",
    "OwnFolder",
    "member_name",
    "open_member",
    "parse_envelope",
    "read_envelope",
    "sync_folder",
]

MANIFEST_NAME = "manifest.json"
MAX_ENVELOPE = 2 * LIMITS.manifest  # base64 and signatures


def member_name(index: int) -> str:
    """``0000.sealed`` for the manifest's first file."""
    return f"{index:04d}.sealed"


class MemberFile(io.FileIO):
    """A file of ciphertext that several threads may read at once: ``crypto.streaming.SharedFile``."""

    def read_at(self, offset: int, buffer: memoryview) -> int:
        return os.preadv(self.fileno(), [buffer], offset)


_POPULATE_READ = 22  # MADV_POPULATE_READ of Linux 5.14, which Python 3.11 doesn't name
_AHEAD = 8 << 20
_RESIDENT = 32 << 20


class _MappedFile(MemberFile):
    """``crypto.streaming.StableFile``: decrypted straight from the page cache."""

    def __init__(self, fd: int, mode: str) -> None:
        super().__init__(fd, mode)
        self._map = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
        self._view = memoryview(self._map)
        self._ready = (-1, -1)
        self._ahead = 0
        self._resident = 0

    def window(self, offset: int, length: int) -> memoryview:
        """Pages are mapped before they are touched, so that a bad disk is an OSError here and not a SIGBUS later, and
        unmapped after some megabytes, so that a file's length doesn't show in this process's memory. Another
        thread that still reads an unmapped page just faults it in again."""
        start, end = self._ready
        if not (start <= offset and offset + length <= end):
            # Who reads on from where the last window ended gets ever larger ones, who reads at random gets no more.
            self._ahead = min(2 * self._ahead, _AHEAD) if offset == end else length // 2
            end = min(offset + max(self._ahead, length), len(self._map))
            if self._resident > _RESIDENT:
                self._map.madvise(mmap.MADV_DONTNEED)
                self._resident = 0
            first = offset - offset % mmap.PAGESIZE
            self._populate(first, end - first)
            self._resident += end - first
            self._ready = (offset, end)
        return self._view[offset : offset + length]

    def _populate(self, start: int, length: int) -> None:
        try:
            self._map.madvise(_POPULATE_READ, start, length)
        except OSError as error:
            if error.errno != errno.EINVAL:  # an older kernel maps pages when they are touched
                raise

    def close(self) -> None:
        # The mapping itself goes with its last view: closing it under a reader's feet would end the process.
        self._view = memoryview(b"")
        super().close()


def open_member(folder: Path, name: str, size: int | None = None, *, mapped: bool = False) -> MemberFile:
    """Open a regular file for reading, without following a link or waiting at a pipe that a hostile host put there.

    Raises Untrusted if it is missing, special, or not of ``size`` bytes; Unavailable on other errors.
    """
    try:
        fd = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Untrusted("sealed.incomplete", "A file of the sealed object is missing; fetch it again.") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _special() from None
        raise Unavailable("storage.open", "A file of the sealed object can't be opened; check the storage.") from None
    found = os.fstat(fd)
    if stat.S_ISREG(found.st_mode) and size in (None, found.st_size):
        return _MappedFile(fd, "rb") if mapped and found.st_size else MemberFile(fd, "rb")
    os.close(fd)
    if not stat.S_ISREG(found.st_mode):
        raise _special()
    raise Untrusted("sealed.size", "A file of the sealed object has not the size that its manifest names.")


def _special() -> Untrusted:
    return Untrusted("sealed.special", "A file of the sealed object is a link or a special file; fetch it again.")


class FolderSource:
    """``ObjectSource`` over a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def envelope(self) -> bytes:
        if not os.path.lexists(self._folder / MANIFEST_NAME):
            raise Malformed("sealed.no_manifest", "The folder holds no sealed object; check the path.")
        with open_member(self._folder, MANIFEST_NAME) as file:
            try:
                return file.read(MAX_ENVELOPE + 1)
            except OSError:
                raise Unavailable(
                    "storage.read", "A manifest can't be read; check the storage and try again."
                ) from None

    def open(self, name: str, size: int) -> MemberFile:
        return open_member(self._folder, name, size)


class OwnFolder(FolderSource):
    """A folder on this machine's own disk that nobody but its user, and whom it trusts anyway, can write to.

    Blocks are then decrypted straight from the mapped file, uncopied. Never for what lies on a host's or a network's
    storage (virtiofs, NFS, 9p, DAX, a disk that an untrusted host provides): who can change the file while it
    is being decrypted could pass one text to the check of the tag and another to the decryption. Then ``FolderSource``
    is right, and it is what ``open_sealed`` takes for a path.
    """

    def open(self, name: str, size: int) -> MemberFile:
        return open_member(self._folder, name, size, mapped=True)


def read_envelope(folder: Path) -> Envelope:
    """The signed manifest, parsed but not verified. Raises Malformed, also when there is none."""
    return parse_envelope(FolderSource(folder).envelope())


def parse_envelope(data: bytes) -> Envelope:
    return Envelope.from_bytes(data, limit=MAX_ENVELOPE)


def sync_folder(folder: Path) -> None:
    """Make names in a folder durable; without it a crash may lose a file that was itself synced."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
