"""Which ciphertext was really read, and whether it is the ciphertext that the manifest commits to.

An owner could craft two ciphertexts that open under one key, and a host could serve one to whoever checks roots and
the other to whoever reads. So both write the hashes of the blocks they saw into one table, where a block that has
two hashes is an attack, and the root is computed from that table.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from ..crypto import constant_time_equal
from ..crypto.merkle import leaf_hash, root_of
from ..crypto.streaming import AES256_GCM_HKDF_1MB, Observer
from ..errors import CloisterError, Misuse, Untrusted
from .models import FileEntry

__all__ = ["RootLedger"]

_HASH = 32


class _Table:
    """The block hashes of one file: 32 bytes for each MiB, and which of them are known."""

    def __init__(self, entry: FileEntry) -> None:
        self.root = entry.root
        self.blocks = AES256_GCM_HKDF_1MB.blocks(entry.ciphertext_size)
        self.missing = self.blocks
        self.settled = False
        self._known = bytearray(self.blocks)
        self._hashes = bytearray(self.blocks * _HASH)

    def knows(self, number: int) -> bool:
        return bool(self._known[number])

    def enter(self, number: int, digest: bytes) -> None:
        place = slice(number * _HASH, (number + 1) * _HASH)
        if self._known[number]:
            if not constant_time_equal(bytes(self._hashes[place]), digest):
                raise Untrusted("sealed.changed", "A sealed file was changed while it was being read; stop using it.")
            return
        self._hashes[place] = digest
        self._known[number] = 1
        self.missing -= 1
        if self.missing == 0:
            self._settle()

    def _settle(self) -> None:
        found = root_of(bytes(self._hashes[i * _HASH : (i + 1) * _HASH]) for i in range(self.blocks))
        if not constant_time_equal(found, self.root):
            raise Untrusted(
                "sealed.root", "A sealed file is not the ciphertext that its manifest names; fetch it again."
            )
        self.settled = True


class RootLedger:
    """The tables of an object's files, filled by readers (on one thread in the background) and by ``check``.

    The first failure is kept for ever: once something didn't hold, ``require_complete`` never passes again.
    """

    def __init__(self, files: Sequence[FileEntry]) -> None:
        self._tables = [_Table(entry) for entry in files]
        self._lock = threading.Lock()
        self._failure: CloisterError | None = None
        # Hashing takes longer than decrypting; beside the reader's thread it costs the reader nothing.
        self._lane = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cloister-roots")

    def observer(self, file: int) -> Observer:
        """What a reader of the file shows its blocks to. A failure surfaces in the reader within two blocks."""

        def observe(number: int, block: memoryview) -> Callable[[], object]:
            try:
                return self._lane.submit(self.enter, file, number, block).result
            except RuntimeError:  # the lane is shut down; nothing may be read unobserved
                raise Misuse("sealed.closed", "The sealed object is closed; open it again.") from None

        return observe

    def enter(self, file: int, number: int, block: memoryview) -> None:
        """Hash one block and enter it. Raises Untrusted if the block was another one before, or the root is wrong."""
        digest = leaf_hash(block)
        with self._lock:
            try:
                self._tables[file].enter(number, digest)
            except Untrusted as error:
                self._failure = self._failure or error
                raise

    def fail(self, error: CloisterError) -> None:
        """Keep a failure that came up elsewhere, as in a check in the background."""
        with self._lock:
            self._failure = self._failure or error

    def missing(self, file: int) -> list[int]:
        """The blocks of a file that nobody has seen yet."""
        with self._lock:
            table = self._tables[file]
            return [n for n in range(table.blocks) if not table.knows(n)] if table.missing else []

    def require_intact(self) -> None:
        """Return if nothing that was read up to now was wrong; raises the first failure."""
        self._lane.submit(int).result()  # one worker, in order: all that was read before this is entered now
        with self._lock:
            if self._failure is not None:
                raise self._failure

    def require_complete(self) -> None:
        """Return only if every block of every file was seen, all roots are right, and no reader saw anything else.

        Raises the first failure, or Untrusted if something wasn't checked yet.
        """
        self.require_intact()
        with self._lock:
            if not all(table.settled for table in self._tables):
                raise Untrusted("sealed.unchecked", "Not all of the object was checked yet; run check_roots first.")

    def close(self) -> None:
        self._lane.shutdown()
