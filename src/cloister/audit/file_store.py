"""A log in a folder of this machine: journal, tiles, head. One process at a time, which the folder's lock sees to.

A commit signs the new head, writes entries and head to the journal, syncs that once, and stores what became full. What
a server of static files needs beside that, the checkpoint and the partial tiles, follows from the journal, and is
stored when the journal is made anew and when the log is closed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..crypto import Signer
from ..errors import CloisterError, Misuse
from .checkpoint import Checkpoint, sign_checkpoint
from .files import make_folders, writing
from .growth import Growth, extend
from .limits import LIMITS
from .ports import Head, StillSound
from .recovery import Recovered, recover
from .storage import LogFolder
from .tiles import WIDTH, Edge, TreeReader

__all__ = ["FileStore"]


class FileStore:
    """``LogStore`` over a ``LogFolder``. ``create`` once, ``open`` from then on."""

    defers = True

    def __init__(self, folder: LogFolder, origin: str, signer: Signer, found: Recovered) -> None:
        """Private: ``create`` and ``open`` have checked what is passed here."""
        self._folder = folder
        self._origin = origin
        self._signer = signer
        self._edge: Edge = found.growth.edge
        self._asides = found.asides
        note = self._sign(found.growth)
        # What was read may be in the page cache only (a sync may have failed before), so it is written anew.
        folder.prepare()
        folder.new_journal(found.base, found.entries, note, found.asides)
        folder.store_full(found.growth.tiles, found.growth.bundles)
        self._head = self._as_head(found.growth, note)
        self._resting: Head | None = None
        self._rest()

    @classmethod
    def create(cls, folder: Path, *, origin: str, signer: Signer) -> FileStore:
        """A new, empty log in ``folder``, which is made if needed. Misuse("log.exists") if there is one there."""
        with writing():
            make_folders(folder.absolute(), Path(folder.absolute().anchor))
        place = LogFolder.locked(folder)
        try:
            if not place.is_pristine():
                raise Misuse("log.exists", "There is an audit log in that folder already; open it instead.")
            return cls(place, origin, signer, Recovered(0, (), extend(Edge(), (), ()), {}))
        except BaseException:
            place.close()
            raise

    @classmethod
    def open(cls, folder: Path, *, origin: str, signer: Signer) -> FileStore:
        """Open and, after a crash, recover; see ``AuditLog.open``."""
        place = LogFolder.existing(folder)
        try:
            found = recover(place, origin, signer.public)
            store = cls(place, origin, signer, found)
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

    def commit(self, entries: tuple[bytes, ...], asides: Mapping[int, bytes]) -> int:
        head = self._head
        if not entries:
            return head.size
        growth = extend(self._edge, head.tail, entries)
        try:
            note = self._sign(growth)
        except CloisterError as error:
            raise StillSound(error) from None  # nothing was written
        self._make_room()
        new = {head.size + place: aside for place, aside in asides.items()}
        # Until this returns nobody is shown the new head: the tree that it covers may yet be lost.
        self._folder.journal.append(entries, note, new)
        self._folder.store_full(growth.tiles, growth.bundles)
        self._asides = {**self._asides, **new}
        self._edge, self._head = growth.edge, self._as_head(growth, note)
        return head.size

    def _sign(self, growth: Growth) -> str:
        root = growth.tree(self._folder.full_tile).root()
        return sign_checkpoint(Checkpoint(self._origin, growth.edge.size, root), self._signer)

    def _as_head(self, growth: Growth, note: str) -> Head:
        """Once the full tiles are stored."""
        return Head(growth.edge.size, note, TreeReader(growth.edge, self._folder.full_tile), growth.tail)

    def _make_room(self) -> None:
        journal = self._folder.journal
        unneeded = journal.aside - sum(map(len, self._asides.values()))
        if journal.count >= WIDTH or unneeded > LIMITS.asides:
            self._renew()

    def _renew(self) -> None:
        """A new journal, without what full bundles hold, under a checkpoint that covers them."""
        self._rest()
        head = self._head
        self._folder.new_journal(head.size - len(head.tail), head.tail, head.note, self._asides)

    def _rest(self) -> None:
        """Store what follows from the journal: then the folder is a tlog-tiles log at the newest head.

        The checkpoint comes after the tiles that it needs, and what it leaves behind is removed for good before the
        journal moves past it.
        """
        if self._resting is self._head:
            return
        self._folder.store_partials(self._edge, self._head.tail)
        self._folder.store_checkpoint(self._head.note)
        self._folder.tidy()
        self._resting = self._head

    @property
    def asides(self) -> Mapping[int, bytes]:
        return self._asides

    def forget_asides(self, end: int) -> None:
        self._asides = {index: aside for index, aside in self._asides.items() if index >= end}

    def entries(self, head: Head, start: int, end: int) -> list[bytes]:
        found: list[bytes] = []
        whole = head.size - len(head.tail)
        for index in range(start, end):
            number, place = divmod(index, WIDTH)
            found.append(head.tail[index - whole] if index >= whole else self._folder.bundle(number)[place])
        return found

    def close(self, *, sound: bool) -> None:
        try:
            if sound:
                self._rest()
                if self._folder.journal.aside and not self._asides:
                    self._renew()  # so that a log at rest holds nothing but the log
        finally:
            self._folder.close()
