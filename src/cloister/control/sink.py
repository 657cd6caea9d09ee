"""Where one uploaded file's bytes go: bounded by the manifest, durable, and complete or absent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..crypto import random_bytes
from ..errors import Unavailable, Untrusted

__all__ = ["FileSink"]

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
    except OSError:
        raise Unavailable(
            "store.full", "The store's disk can't take the file; free space on it, then try again."
        ) from None
