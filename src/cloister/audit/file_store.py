"""A log in a folder of this machine: journal, tiles, head. One process at a time, which the folder's lock sees to.

A commit syncs the journal, stores what became full, signs the new head over durable entries only, and stores it.
"""

from __future__ import annotations

from pathlib import Path

from ..crypto import Signer
from ..errors import CloisterError, Misuse
from .checkpoint import Checkpoint, sign_checkpoint
from .files import make_folders, writing
from .growth import Growth, extend
from .ports import Head, StillSound
from .recovery import recover
from .storage import LogFolder
from .tiles import WIDTH, Edge, TreeReader

__all__ = ["FileStore"]


class FileStore:
    """``LogStore`` over a ``LogFolder``. ``create`` once, ``open`` from then on."""

    def __init__(self, folder: LogFolder, origin: str, signer: Signer, growth: Growth) -> None:
        """Private: ``create`` and ``open`` have checked and stored what is passed here."""
        self._folder = folder
        self._origin = origin
        self._signer = signer
        self._edge: Edge = growth.edge
        # Durable in the journal and under no head yet, because the signer was away. It comes before anything else.
        self._owed: Growth | None = None
        tree = self._derive(growth)
        note = sign_checkpoint(Checkpoint(origin, growth.edge.size, tree.root()), signer)
        self._head = self._store_head(growth, tree, note)

    @classmethod
    def create(cls, folder: Path, *, origin: str, signer: Signer) -> FileStore:
        """A new, empty log in ``folder``, which is made if needed. Misuse("log.exists") if one is there already."""
        with writing():
            make_folders(folder.absolute(), Path(folder.absolute().anchor))
        place = LogFolder.locked(folder)
        try:
            if not place.is_pristine():
                raise Misuse("log.exists", "There is an audit log in that folder already; open it instead.")
            place.prepare()
            place.new_journal(0, ())
            return cls(place, origin, signer, extend(Edge(), (), ()))
        except BaseException:
            place.close()
            raise

    @classmethod
    def open(cls, folder: Path, *, origin: str, signer: Signer) -> FileStore:
        """Open and, after a crash, recover; see ``AuditLog.open``."""
        place = LogFolder.existing(folder)
        try:
            found = recover(place, origin, signer.public)
            place.prepare()
            # What was read may be in the page cache only (a sync may have failed before), so it is written anew.
            place.new_journal(found.base, found.entries)
            store = cls(place, origin, signer, found.growth)
            place.find_stale(found.base, found.growth.edge)
            place.tidy()
            return store
        except BaseException:
            place.close()
            raise

    @property
    def origin(self) -> str:
        return self._origin

    def head(self) -> Head:
        return self._head

    known_head = head  # nobody else stores one

    def commit(self, entries: tuple[bytes, ...]) -> int:
        self._pay()
        if not entries:
            return self._edge.size
        head = self._head
        self._folder.tidy()
        if self._folder.journal.count >= WIDTH:
            # Full bundles and a stored head cover these entries, so the journal may drop them.
            self._folder.new_journal(head.size - len(head.tail), head.tail)
        self._folder.journal.append(entries)
        self._owed = extend(self._edge, head.tail, entries)
        self._pay()
        return self._edge.size - len(entries)

    @property
    def owing(self) -> bool:
        return self._owed is not None

    def _pay(self) -> None:
        """Store and sign what the journal holds beyond the head; may be repeated until the signer answers."""
        growth = self._owed
        if growth is None:
            return
        tree = self._derive(growth)
        head = Checkpoint(self._origin, growth.edge.size, tree.root())
        try:
            note = sign_checkpoint(head, self._signer)
        except CloisterError as error:
            raise StillSound(error) from None
        self._head = self._store_head(growth, tree, note)
        self._edge, self._owed = growth.edge, None

    def _derive(self, growth: Growth) -> TreeReader:
        """The entries are durable in the journal: store what derives from them."""
        self._folder.store_full(growth.tiles, growth.bundles)
        self._folder.store_partials(growth.edge, growth.tail)
        return TreeReader(growth.edge, self._folder.full_tile)

    def _store_head(self, growth: Growth, tree: TreeReader, note: str) -> Head:
        self._folder.store_checkpoint(note)
        return Head(growth.edge.size, note, tree, growth.tail)

    def entries(self, head: Head, start: int, end: int) -> list[bytes]:
        found: list[bytes] = []
        whole = head.size - len(head.tail)
        for index in range(start, end):
            number, place = divmod(index, WIDTH)
            found.append(head.tail[index - whole] if index >= whole else self._folder.bundle(number)[place])
        return found

    def close(self, *, sound: bool) -> None:
        try:
            if sound and self._owed is None:
                self._folder.tidy()
        finally:
            self._folder.close()
