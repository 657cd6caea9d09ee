"""The folder in which a sealed object lies: names, careful opening, and durable writing."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..crypto import Envelope
from ..errors import Malformed, Unavailable, Untrusted
from .members import MappedFile, MemberFile
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
    "storage_errors",
    "sync_folder",
]

MANIFEST_NAME = "manifest.json"
MAX_ENVELOPE = 2 * LIMITS.manifest  # base64 and signatures


def member_name(index: int) -> str:
    """``0000.sealed`` for the manifest's first file."""
    return f"{index:04d}.sealed"


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
        if mapped and found.st_size:
            with suppress(OSError):  # a file system or a limit that forbids it: then blocks are copied
                return MappedFile(fd, "rb")
        return MemberFile(fd, "rb")
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

    Blocks are then decrypted straight from the mapped file, uncopied, where it can be mapped. Never for what lies on a
    host's or a network's storage (virtiofs, NFS, 9p, DAX, a disk that an untrusted host provides): who can change the
    file while it is being decrypted could pass one text to the check of the tag and another to the decryption. Then
    ``FolderSource`` is right, and it is what ``open_sealed`` takes for a path.
    """

    def open(self, name: str, size: int) -> MemberFile:
        return open_member(self._folder, name, size, mapped=True)


def read_envelope(folder: Path) -> Envelope:
    """The signed manifest, parsed but not verified. Raises Malformed, also when there is none."""
    return parse_envelope(FolderSource(folder).envelope())


def parse_envelope(data: bytes) -> Envelope:
    return Envelope.from_bytes(data, limit=MAX_ENVELOPE)


@contextmanager
def storage_errors(when_full: str) -> Iterator[None]:
    """Errors of writing, in one sentence each. ``when_full`` says what to do about a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise Unavailable("storage.full", f"The storage is full; {when_full}") from None
        raise Unavailable("storage.write", "The sealed object can't be written; check the storage.") from None


def sync_folder(folder: Path) -> None:
    """Make names in a folder durable; without it a crash may lose a file that was itself synced."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
