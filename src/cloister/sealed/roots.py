"""Which ciphertext was really read, and whether it is the ciphertext that the manifest commits to.

An owner could craft two ciphertexts that open under one key, and a host could serve one to whoever checks roots and
the other to whoever reads. So both leave a mark of each block that they saw in one table, and a block with two
different marks is an attack. The check also hashes the blocks and compares the root.

The mark is a fingerprint under a key that only this process knows (``crypto.gmac`` says why that is as good as
a hash here), because a reader that had to wait for SHA-256 would read at a quarter of its speed. A file of a few blocks
is hashed at once by whoever reads it: then a wrong file is noticed before it is used, and is not read twice.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from ..crypto import constant_time_equal
from ..crypto.gmac import FINGERPRINT_SIZE, Fingerprinter
from ..crypto.merkle import leaf_hash, root_of
from ..crypto.streaming import AES256_GCM_HKDF_1MB, Inspect
from ..errors import CloisterError, Misuse, Untrusted
from .models import FileEntry

__all__ = ["RootLedger"]

_FEW = 4  # blocks


class _Column:
    """One value of fixed length for each block of a file, entered once; ``missing`` counts what isn't there yet."""

    def __init__(self, blocks: int, width: int) -> None:
        self.missing = blocks
        self._width = width
        self._known = bytearray(blocks)
        self._values = bytearray(blocks * width)

    def knows(self, number: int) -> bool:
        return bool(self._known[number])

    def value(self, number: int) -> bytes:
        return bytes(self._values[number * self._width : (number + 1) * self._width])

    def enter(self, number: int, value: bytes) -> None:
        """Raises Untrusted if the block had another value before."""
        if not self._known[number]:
            self._values[number * self._width : (number + 1) * self._width] = value
            self._known[number] = 1
            self.missing -= 1
        elif not constant_time_equal(self.value(number), value):
            raise Untrusted("sealed.changed", "A sealed file was changed while it was being read; stop using it.")


class _Table:
    """What is known about the blocks of one file."""

    def __init__(self, entry: FileEntry) -> None:
        self.root = entry.root
        self.blocks = AES256_GCM_HKDF_1MB.blocks(entry.ciphertext_size)
        self.few = self.blocks <= _FEW
        self.hashes = _Column(self.blocks, 32)
        self.marks = _Column(self.blocks, FINGERPRINT_SIZE)
        self.settled = False

    def enter_hash(self, number: int, digest: bytes) -> None:
        """Raises Untrusted if the block had another hash before, or if this was the last and the root is wrong."""
        self.hashes.enter(number, digest)
        if self.hashes.missing or self.settled:
            return
        if not constant_time_equal(root_of(map(self.hashes.value, range(self.blocks))), self.root):
            raise Untrusted(
                "sealed.root", "A sealed file is not the ciphertext that its manifest names; fetch it again."
            )
        self.settled = True


class RootLedger:
    """The tables of an object's files, filled by readers and by the check, in any number of threads.

    The first failure is kept for ever: once something didn't hold, ``require_complete`` never passes again.
    ``stable`` says that nobody can change the files while they are open; then check and readers see the same bytes
    anyway, and readers leave no marks.
    """

    def __init__(self, files: Sequence[FileEntry], *, stable: bool = False) -> None:
        self._tables = [_Table(entry) for entry in files]
        self._fingerprints = None if stable else Fingerprinter()
        self._lock = threading.Lock()
        self._failure: CloisterError | None = None
        self._closed = False

    def observer(self, file: int) -> Inspect:
        """What a reader of the file shows its blocks to, before it uses them."""

        table, fingerprints = self._tables[file], self._fingerprints

        def inspect(number: int, block: memoryview) -> None:
            if self._closed:  # nothing may be read that could no longer be accounted for
                raise Misuse("sealed.closed", "The sealed object is closed; open it again.")
            if fingerprints is None:
                return
            if table.few:
                self._enter(table, number, leaf_hash(block), None)
            else:
                self._enter(table, number, None, fingerprints.of(file, number, block))

        return inspect

    def check(self, file: int, number: int, block: memoryview) -> None:
        """Hash one block, and compare it with what readers saw or will see. ``block`` is private memory.

        Raises Untrusted if the block was another one before, or the root is wrong.
        """
        table = self._tables[file]
        fingerprints = None if table.few else self._fingerprints
        mark = fingerprints.of(file, number, block) if fingerprints is not None else None
        self._enter(table, number, leaf_hash(block), mark)

    def _enter(self, table: _Table, number: int, digest: bytes | None, mark: bytes | None) -> None:
        with self._lock:
            try:
                if mark is not None:
                    table.marks.enter(number, mark)
                if digest is not None:
                    table.enter_hash(number, digest)
            except Untrusted as error:
                self._failure = self._failure or error
                raise

    def fail(self, error: CloisterError) -> None:
        """Keep a failure that came up elsewhere, as in a check in the background."""
        with self._lock:
            self._failure = self._failure or error

    def missing(self, file: int) -> list[int]:
        """The blocks of a file that nobody has hashed yet."""
        with self._lock:
            hashes = self._tables[file].hashes
            return [n for n in range(self._tables[file].blocks) if not hashes.knows(n)] if hashes.missing else []

    def require_intact(self) -> None:
        """Return if nothing that was read up to now was wrong; raises the first failure."""
        with self._lock:
            if self._failure is not None:
                raise self._failure

    def require_complete(self) -> None:
        """Return only if every block of every file was hashed, all roots are right, and no reader saw anything else.

        Raises the first failure, or Untrusted if something wasn't checked yet.
        """
        self.require_intact()
        with self._lock:
            if not all(table.settled for table in self._tables):
                raise Untrusted("sealed.unchecked", "Not all of the object was checked yet; run check_roots first.")

    def close(self) -> None:
        self._closed = True
