"""The folder in which a sealed object lies: names, careful opening, and durable writing."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path

from ..crypto import Envelope
from ..errors import Malformed, Unavailable, Untrusted
from .models import LIMITS

__all__ = ["MANIFEST_NAME", "member_name", "open_member", "read_envelope", "sync_folder"]

MANIFEST_NAME = "manifest.json"
_MAX_ENVELOPE = 2 * LIMITS.manifest  # base64 and signatures


def member_name(index: int) -> str:
    """``0000.sealed`` for the manifest's first file."""
    return f"{index:04d}.sealed"


def open_member(folder: Path, name: str, size: int | None = None) -> io.FileIO:
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
        return io.FileIO(fd, "rb")
    os.close(fd)
    if not stat.S_ISREG(found.st_mode):
        raise _special()
    raise Untrusted("sealed.size", "A file of the sealed object has not the size that its manifest names.")


def _special() -> Untrusted:
    return Untrusted("sealed.special", "A file of the sealed object is a link or a special file; fetch it again.")


def read_envelope(folder: Path) -> Envelope:
    """The signed manifest, parsed but not verified. Raises Malformed, also when there is none."""
    if not os.path.lexists(folder / MANIFEST_NAME):
        raise Malformed("sealed.no_manifest", "The folder holds no sealed object; check the path.")
    with open_member(folder, MANIFEST_NAME) as file:
        try:
            data = file.read(_MAX_ENVELOPE + 1)
        except OSError:
            raise Unavailable("storage.read", "A manifest can't be read; check the storage and try again.") from None
    return Envelope.from_bytes(data, limit=_MAX_ENVELOPE)


def sync_folder(folder: Path) -> None:
    """Make names in a folder durable; without it a crash may lose a file that was itself synced."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
