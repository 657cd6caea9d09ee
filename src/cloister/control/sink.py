"""Where one uploaded file's bytes go: bounded by the manifest, durable, and complete or absent."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..crypto import random_bytes
from ..errors import Misuse, Unavailable, Untrusted

__all__ = ["FileSink", "storage_errors"]

_WRONG = ("object.length", "The uploaded file has not the size that its manifest names; upload it again.")


class FileSink:
    """Write, then ``finish``; or ``discard``. Two senders of one file don't meet: each writes a file of its own."""

    def __init__(self, target: Path, size: int) -> None:
        self._target, self._left = target, size
        self._draft = target.with_name(f".{target.name}.{random_bytes(8).hex()}")
        with _disk():
            self._file = self._draft.open("xb", buffering=0)

    def write(self, chunk: bytes) -> None:
        """Raises Untrusted as soon as there is more than the manifest says."""
        self._left -= len(chunk)
        if self._left < 0:
            raise Untrusted(*_WRONG)
        view = memoryview(chunk)
        with _disk():
            while view:
                view = view[self._file.write(view) :]

    def finish(self) -> None:
        """Make the file count. Raises Untrusted if it is short."""
        if self._left:
            raise Untrusted(*_WRONG)
        with _disk():
            os.fsync(self._file.fileno())
            self._file.close()
            os.rename(self._draft, self._target)

    def discard(self) -> None:
        """Leave nothing of an unfinished file; harmless after ``finish``."""
        self._file.close()
        self._draft.unlink(missing_ok=True)


@contextmanager
def _disk() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise Misuse(
            "object.checking", "The upload is being checked and takes no more; wait for its end."
        ) from None  # its folder has moved
    except OSError:
        raise Unavailable(
            "store.full", "The store's disk can't take the file; free space on it, then try again."
        ) from None


@contextmanager
def storage_errors() -> Iterator[None]:
    """Disk errors become Unavailable, without a path in the message."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Unavailable("store.full", "The store's disk is full; free space on it, then try again.") from None
        raise Unavailable("store.disk", "The store's disk failed; see the control plane's machine.") from None
