"""A folder that appears under its name whole, by one rename, or not at all."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...crypto import random_bytes
from ...errors import Misuse, Unavailable
from ..folder import sync_folder

__all__ = ["disk_errors", "remove_staged", "staged", "write_durably"]


@contextmanager
def staged(dest: Path) -> Iterator[Path]:
    """A new folder beside ``dest``, which becomes ``dest`` if the block ends without an error, and else is removed.

    It is locked while its writer lives, so that others can tell what a killed one left. Raises Misuse if ``dest``
    exists by then, Unavailable if the disk fails.
    """
    with disk_errors():
        dest.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_staged(dest.parent, dest.name)
        folder, lock = _locked(dest)
    try:
        yield folder
        with disk_errors():
            sync_folder(folder)
            _rename(folder, dest)
            sync_folder(dest.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # gone after the rename; what stays, the next writer removes
        os.close(lock)


def remove_staged(parent: Path, name: str | None = None, *, before: float | None = None) -> int:
    """Remove staged folders that nobody holds any more, of one ``name`` or of all; returns how many."""
    removed = 0
    for folder in parent.glob(f".{'*' if name is None else glob.escape(name)}.*.partial"):
        try:
            if before is not None and folder.stat().st_mtime >= before:
                continue
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue  # finished just now, or no folder of ours
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
            removed += not folder.exists()
        except BlockingIOError:
            continue  # its writer is alive
        finally:
            os.close(lock)
    return removed


def _locked(dest: Path) -> tuple[Path, int]:
    while True:
        folder = dest.parent / f".{dest.name}.{random_bytes(8).hex()}.partial"
        folder.mkdir(mode=0o700)
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # another writer removed it before it was locked
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return folder, lock
        os.close(lock)


def _rename(folder: Path, dest: Path) -> None:
    try:
        os.rename(folder, dest)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise Misuse("sealed.exists", "The folder to write exists by now; name another.") from None
        raise


def write_durably(place: Path, data: bytes) -> None:
    with disk_errors(), place.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def disk_errors() -> Iterator[None]:
    """Errors of the local disk become Unavailable, without a path in the message."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise Unavailable("store.full", "The store's disk is full; free space on it, then try again.") from None
        raise Unavailable("store.disk", "The store's disk failed; check it, then try again.") from None
