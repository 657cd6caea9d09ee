"""The newest head of the shared log that this home has seen, in a file of the home's own.

Whoever administers the database can put back a backup of it, log and state together; what is consistent with itself
shows nothing. The home is somebody else's to change, so it is asked as well, beside the peers.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from ..audit import AuditLog, verify_checkpoint
from ..crypto.merkle import verify_consistency
from ..errors import Unavailable, Untrusted
from ..sealed.folder import sync_folder

__all__ = ["SeenHead"]

_EVERY = 1.0  # seconds: what a sync for each release would cost is not worth the last second


class SeenHead:
    """``check`` at start, ``keep`` whenever the log has grown; one thread at a time."""

    def __init__(self, path: Path, log: AuditLog, log_key: bytes) -> None:
        self._path = path
        self._log = log
        self._log_key = log_key
        self._kept = 0.0

    def check(self) -> None:
        """Raises Untrusted("audit.rollback") if the log does not contain what this home saw of it. A new home saw
        nothing yet."""
        if not self.covered():
            raise Untrusted(
                "audit.rollback", "The database's log lacks what this home has seen of it: an older copy was put back."
            )

    def covered(self) -> bool:
        """Whether the log contains what this home saw of it. Raises Unavailable for a note that can't be read, and what
        verifying it raises."""
        try:
            note = self._path.read_text()
        except FileNotFoundError:
            return True
        except (OSError, UnicodeDecodeError):
            raise Unavailable(
                "replica.seen", "The home's note of the log's head can't be read; look at its disk."
            ) from None
        seen = verify_checkpoint(note, self._log.origin, self._log_key)
        head = verify_checkpoint(self._log.head(), self._log.origin, self._log_key)
        try:
            proof = self._log.prove_consistency(seen.size, head.size) if seen.size <= head.size else ()
            verify_consistency(seen.size, head.size, proof, seen.root, head.root)
        except Untrusted:
            return False
        return True

    def keep(self, note: str, *, now: bool = False) -> None:
        """Remember ``note``, durably, at most once a second unless ``now``. Best effort: an older note protects the
        next start as well, but for what came after it."""
        if not now and time.monotonic() < self._kept + _EVERY:
            return
        self._kept = time.monotonic()
        with suppress(OSError):  # a full disk of the home must not stop releases that the database has
            self._write(note)

    def must_keep(self, note: str) -> None:
        """``keep``, where nothing may go on without it. Raises Unavailable."""
        try:
            self._write(note)
        except OSError:
            raise Unavailable(
                "replica.seen", "The home can't be written; give its disk room, and start again."
            ) from None

    def _write(self, note: str) -> None:
        draft = self._path.with_suffix(".draft")
        with draft.open("w") as file:
            file.write(note)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._path)
        sync_folder(self._path.parent)
