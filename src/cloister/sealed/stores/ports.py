"""What a store of sealed objects does, and what it needs of the place where their bytes lie."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..ports import ObjectSource

__all__ = ["Bucket", "Found", "Store", "Upload"]


class Store(Protocol):
    """Sealed objects, each under its digest of 32 bytes. Methods may be called by several threads at once.

    A store decides nothing: who reads names a digest that a contract or the owner's broker gave, and the reader checks
    every byte against it. So a store can withhold an object, never change it or pass off another version for it.

    All methods raise Unavailable (it can't be reached, or is full), Denied (it refuses the credentials) and Misuse
    (there is no such bucket). What they raise besides stands with each.
    """

    def put(self, folder: Path, digest: bytes, *, recheck: bool = False) -> None:
        """Keep a copy of the object in ``folder``. Its roots are checked on the way, and its manifest counts last.

        Doing it again is harmless, and goes on with a put that broke off. ``recheck`` also hashes all that is there.
        Raises Untrusted if the folder does not hold exactly that object.
        """
        ...

    def take(self, folder: Path, digest: bytes) -> None:
        """As ``put``, but uses the folder up. The caller has checked it; a store on the same disk only renames it."""
        ...

    def source(self, digest: bytes) -> ObjectSource:
        """Where ``open_sealed`` reads from. Nothing is fetched yet, so a missing object shows at the first read, as
        Untrusted (``sealed.incomplete``)."""
        ...

    def fetch(self, digest: bytes, dest: Path) -> None:
        """Copy the object into the new folder ``dest``, checked against ``digest`` and its roots, all of it or nothing.

        Raises Misuse if ``dest`` exists, Untrusted if the object is missing or is not what its digest names.
        """
        ...

    def digests(self) -> Iterator[bytes]:
        """Of every whole object, in no order."""
        ...

    def has(self, digest: bytes) -> bool:
        """Whether the object's manifest is there: then all of it was."""
        ...

    def delete(self, digest: bytes) -> None:
        """Remove the object, its manifest first; harmless if it isn't there."""
        ...

    def sweep(self, *, before: int) -> int:
        """Remove what broken puts and deletes left before the time ``before`` (unix seconds); returns how many."""
        ...


@dataclass(frozen=True)
class Found:
    """What a listing says of one file: bytes, and unix seconds of its last change."""

    size: int
    modified: float


class Upload(Protocol):
    """One file on its way. Nothing of it is visible before ``finish``, or what is visible has another size."""

    part_size: int

    def write(self, part: bytes) -> None:
        """All parts but the last have exactly ``part_size`` bytes."""
        ...

    def finish(self) -> None: ...

    def abort(self) -> None:
        """Leave nothing; harmless after ``finish``. Never raises: the error that led here matters more."""
        ...


class Bucket(Protocol):
    """Named bytes under one prefix, ``folder/name``. No operation needs to be conditional or atomic with another.

    Raises FileNotFoundError for a name that isn't there, and the errors of ``Store``.
    """

    url: str  # names the place; holds no credentials

    def read(self, folder: str, name: str, start: int, length: int) -> bytes:
        """At most ``length`` bytes from ``start`` on; fewer only where the file ends."""
        ...

    def listing(self, folder: str) -> dict[str, Found]:
        """The files of one folder by their names; empty if there is none."""
        ...

    def everything(self) -> Iterator[tuple[str, str, Found]]:
        """(folder, name, what was found) of every file that lies in a folder of the prefix."""
        ...

    def write(self, folder: str, name: str, data: bytes) -> None:
        """One small file, replaced if it is there."""
        ...

    def upload(self, folder: str, name: str, size: int) -> Upload: ...

    def remove(self, folder: str, name: str) -> None:
        """Harmless if it isn't there."""
        ...

    def abort_uploads(self, *, before: int) -> int:
        """End uploads that began before ``before`` (unix seconds) and never finished; returns how many."""
        ...

    def close(self) -> None: ...
