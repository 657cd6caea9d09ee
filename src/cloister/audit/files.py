"""Writing to disk so that it stays there. Every failure becomes Unavailable("audit.unwritable").

After a failed fsync the kernel may have thrown the data away and forgotten the error, so nothing here retries:
the caller stops using the log until it is opened again, and opening rewrites what was in doubt into new files.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import Unavailable

__all__ = ["Scratch", "make_folders", "sync_folder", "write_all", "writing"]


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Turn the operating system's refusal to write into Unavailable, with its short name as a detail."""
    try:
        yield
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "EIO")
        raise Unavailable(
            "audit.unwritable",
            "The audit log can't be written, so nothing may be released; mend the disk and restart.",
            errno=name,
        ) from error


def write_all(fd: int, data: bytes) -> None:
    """All of it, however little one write takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folders(folder: Path, root: Path) -> None:
    """Create ``folder`` below ``root``, each new name durable in its parent."""
    if folder == root or folder.is_dir():
        return
    make_folders(folder.parent, root)
    folder.mkdir(mode=0o700, exist_ok=True)
    sync_folder(folder.parent)


class Scratch:
    """Files are written under ``tmp/`` and renamed into place, so a reader never sees half of one."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folder = root / "tmp"
        self._count = 0

    def prepare(self) -> None:
        """Make the folder, and drop what a crash left in it: nothing there was ever part of the log."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for left in self._folder.iterdir():
            left.unlink()

    def place(self, path: Path, data: bytes, *, durable: bool) -> int:
        """Put ``data`` at ``path`` atomically and return an open descriptor for appending to it.

        With ``durable`` the contents are synced before the name exists; the name itself is durable once the caller
        has synced the folder.
        """
        self._count += 1
        temporary = self._folder / str(self._count)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            write_all(fd, data)
            if durable:
                os.fsync(fd)
            make_folders(path.parent, self._root)
            temporary.rename(path)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def put(self, path: Path, data: bytes, *, durable: bool) -> None:
        """``place`` for a file that nobody appends to."""
        os.close(self.place(path, data, durable=durable))
