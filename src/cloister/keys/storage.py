"""Reading and replacing the vault file so that a crash leaves the old file or the new one, never a mixture."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..crypto import random_bytes
from ..errors import Misuse, Unavailable
from .document import MAX_VAULT

__all__ = ["create_file", "locked", "read_file", "replace_file"]


def read_file(path: Path) -> bytes:
    """At most one byte more than a vault may have, so that the parser can refuse it."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_VAULT + 1)
    except FileNotFoundError:
        raise Misuse("vault.missing", "There is no vault at that path; check the path or create one.") from None
    except OSError:
        raise Unavailable("vault.read", "The vault file can't be read; check its permissions and the disk.") from None


def create_file(path: Path, data: bytes) -> None:
    """Write a new file that only its owner can read. Raises Misuse if the path is taken, also by a race."""
    with _storage_errors():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _temporary(path, data) as temporary:
            os.link(temporary, path)  # unlike a rename, this never replaces
        _sync(path.parent)


def replace_file(path: Path, data: bytes) -> None:
    """Only while ``locked``: what other temporary files there are then belong to nobody alive."""
    with _storage_errors():
        for abandoned in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            abandoned.unlink(missing_ok=True)
        with _temporary(path, data) as temporary:
            os.replace(temporary, path)
        _sync(path.parent)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes from changing the file meanwhile. The folder is locked: the file itself gets replaced."""
    with _storage_errors():
        fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(fd)


@contextmanager
def _temporary(path: Path, data: bytes) -> Iterator[Path]:
    temporary = path.parent / f".{path.name}.{random_bytes(8).hex()}.tmp"
    # Private from its first moment on: O_EXCL and the mode leave no time in which another user could open it.
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def _storage_errors() -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise Misuse("vault.exists", "There is a file at that path; a vault is never overwritten.") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise Unavailable("storage.full", "The disk is full; free space, then try again.") from None
        raise Unavailable("vault.write", "The vault file can't be written; check its folder and the disk.") from None
