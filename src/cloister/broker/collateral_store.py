"""An owner's collateral on disk: a bounded cache that is filled by fetching or by importing, and trusted by nobody.

One file a piece, written anew and renamed into place, so that a crash leaves the piece before or the piece after. A
file that is not whole is passed over and named in ``damaged``. What the vendors sign is verified where it is used;
besides, a piece that is older than what is here, or whose signature does not hold, never takes its place: else whoever
brings a bundle could bring back a revocation list from before a revocation. Writers take turns, also between processes,
and each looks at what is there before it judges.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from base64 import b64encode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from ..attestation.collateral import CollateralSet, Item
from ..crypto import canonical_json, frame, parse_canonical, sha256
from ..errors import CloisterError, Malformed, Misuse, Unavailable
from ..fields import Fields
from .collateral_facts import PINNED, Pinned, check_displaces

__all__ = ["MAX_BUNDLE", "MAX_ITEMS", "CollateralStore", "Kept", "read_bundle", "write_bundle"]

MAX_ITEMS: Final = 4096
MAX_BYTES: Final = 64 * 1024 * 1024
"""Of all pieces together."""
MAX_BUNDLE: Final = 16 * 1024 * 1024
_MAX_FILE: Final = 4 * 1024 * 1024
_MAX_MISSED: Final = 64
_LOOK_SECONDS: Final = 1.0
_TURN_SECONDS: Final = 30.0
_TURN_PAUSE: Final = 0.05
_SUFFIX: Final = ".collateral"
_BUNDLE: Final = "collateral-bundle/v1"


@dataclass(frozen=True)
class Kept:
    """A piece with what only the cache knows: ``etag``, by which a vendor says whether it has a newer one, and
    ``request``, the question that it is the answer to (OCSP), so that it can be asked again. Both must come from this
    cache's own fetching: an old list beside the present one's ETag would be called the newest for ever."""

    item: Item
    etag: str = ""
    request: bytes = b""


class CollateralStore:
    """See ``attestation.collateral.Collateral``: ``find`` answers from memory, and notices within a second that another
    process wrote to the folder, as an import does. Any thread may call.

    Raises Unavailable ``collateral.unreadable`` for a folder that can't be read.
    """

    def __init__(self, folder: Path, *, pinned: Pinned = PINNED) -> None:
        self.pinned = pinned
        self._folder = folder
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, str], Kept] = {}
        self._missed: dict[tuple[str, str], None] = {}
        self._looked, self._changed = time.monotonic(), 0
        self.damaged: tuple[str, ...] = ()
        self.reload()

    def reload(self) -> None:
        """Read the folder again: another process may have written to it."""
        kept: dict[tuple[str, str], Kept] = {}
        damaged = []
        changed = self._last_change()
        try:
            paths = sorted(self._folder.glob(f"*{_SUFFIX}")) if self._folder.is_dir() else []
            for path in paths[:MAX_ITEMS]:
                try:
                    found = _read(path)
                except CloisterError:
                    damaged.append(path.name)
                    continue
                kept[found.item.kind, found.item.name] = found
        except OSError as error:
            raise Unavailable(
                "collateral.unreadable", "The folder of collateral can't be read; look at its permissions."
            ) from error
        with self._lock:
            self._kept, self.damaged, self._changed = kept, tuple(damaged), changed

    def _last_change(self) -> int:
        """When a name in the folder changed last; every piece is renamed into place."""
        try:
            return self._folder.stat().st_mtime_ns
        except OSError:
            return 0  # not there yet

    def _notice(self) -> None:
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        if self._last_change() != self._changed:
            with contextlib.suppress(Unavailable):  # what is in memory stays as good as it was
                self.reload()

    def find(self, kind: str, name: str) -> Item | None:
        """The piece of that kind and name. What is asked for in vain is remembered, for whoever fetches."""
        self._notice()
        with self._lock:
            kept = self._kept.get((kind, name))
            if kept is None and len(self._missed) < _MAX_MISSED:
                self._missed[kind, name] = None
        return None if kept is None else kept.item

    def missed(self) -> list[tuple[str, str]]:
        """Kind and name of what verifiers asked for in vain since the last call; a bounded number."""
        with self._lock:
            found, self._missed = list(self._missed), {}
        return found

    def kept(self) -> list[Kept]:
        """Everything, by kind and name."""
        with self._lock:
            return [self._kept[key] for key in sorted(self._kept)]

    def snapshot(self) -> CollateralSet:
        return CollateralSet(kept.item for kept in self.kept())

    def put(self, pieces: Iterable[Kept], *, now: int) -> list[Kept]:
        """Take over what is as good as what is here or better; what was taken. All are judged before any is written,
        against what is in the folder then, also if another process wrote it this moment.

        Raises Untrusted for the first that is not: ``collateral.future`` (obtained later than ``now``, or good only
        after it by more than half a day), ``collateral.older`` (than the piece here), ``collateral.unchecked`` (unlike
        the piece here), ``collateral.other`` (than its name says), or what its signature fails with; Misuse
        ``collateral.full``; Unavailable.
        """
        offered = list(pieces)
        if not self._folder.exists():
            self._judge(offered, now)  # what is refused does not make a folder
        with self._turn():
            self.reload()
            taken = self._judge(offered, now)
            for kept in taken:
                self._write(kept)
            with self._lock:
                self._kept.update({(kept.item.kind, kept.item.name): kept for kept in taken})
        return taken

    def _judge(self, offered: Iterable[Kept], now: int) -> list[Kept]:
        with self._lock:
            present = dict(self._kept)
        taken = [_beside(kept, present.get((kept.item.kind, kept.item.name))) for kept in offered]
        after = {**present, **{(kept.item.kind, kept.item.name): kept for kept in taken}}
        if len(after) > MAX_ITEMS or sum(_size(kept.item) for kept in after.values()) > MAX_BYTES:
            raise Misuse("collateral.full", "There is more collateral than is kept here; remove what nobody needs.")
        beside = CollateralSet([*(kept.item for kept in present.values()), *(kept.item for kept in taken)])
        for kept in taken:
            known = present.get((kept.item.kind, kept.item.name))
            before = None if known is None else known.item
            check_displaces(kept.item, before, beside, now=now, pinned=self.pinned)
        return taken

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Alone among all writers, threads and processes. Who waits too long gives up: Unavailable."""
        with _writing():
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _take(fd)
            yield
        finally:
            os.close(fd)  # whoever waits is next

    def remove(self, kind: str, name: str) -> None:
        if not self._folder.exists():
            return
        with self._turn():
            with _writing():
                self._path(kind, name).unlink(missing_ok=True)
            with self._lock:
                self._kept.pop((kind, name), None)

    def _path(self, kind: str, name: str) -> Path:
        return self._folder / _file_name(kind, name)

    def _write(self, kept: Kept) -> None:
        path = self._path(kept.item.kind, kept.item.name)
        draft = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.new")
        with _writing():
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(canonical_json(_document(kept)))
                file.flush()
                os.fsync(file.fileno())
            draft.rename(path)
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


class _writing:
    """An operating system that refuses becomes Unavailable."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: object) -> None:
        if isinstance(error, OSError):
            raise Unavailable(
                "collateral.unwritable", "The collateral can't be written; look at the disk and at permissions."
            ) from error


def _take(fd: int) -> None:
    end = time.monotonic() + _TURN_SECONDS
    while not _taken(fd):
        if time.monotonic() >= end:
            raise Unavailable(
                "collateral.busy", "Another process is writing collateral and does not end; try again later."
            )
        time.sleep(_TURN_PAUSE)


def _taken(fd: int) -> bool:
    with _writing():
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _beside(kept: Kept, known: Kept | None) -> Kept:
    """With what this cache knows of the same piece: an import brings neither ETag nor question. The same data keeps its
    ETag, and the chain by which it is checked; an OCSP response also keeps the chain of an earlier one, for its name is
    the hash of the certificate that both are about."""
    if known is None:
        return kept
    item, asked = kept.item, kept.item.kind == "nvidia-ocsp"
    same = item.data == known.item.data
    if (same or asked) and not item.chain:
        item = replace(item, chain=known.item.chain)
    request = kept.request or known.request if asked else b""
    return Kept(item, kept.etag or (known.etag if same else ""), request)


def _size(item: Item) -> int:
    return len(item.data) + len(item.chain)


def _file_name(kind: str, name: str) -> str:
    """Names of collateral come from vendors and bundles; none of their characters reaches a path."""
    return sha256(frame("cloister/collateral-file/v1", kind, name)).hex()[:32] + _SUFFIX


def _document(kept: Kept) -> dict[str, Any]:
    item = kept.item
    return {
        "chain": b64encode(item.chain).decode(),
        "data": b64encode(item.data).decode(),
        "etag": kept.etag,
        "kind": item.kind,
        "name": item.name,
        "obtained": item.obtained,
        "request": b64encode(kept.request).decode(),
    }


def _from_document(value: Any) -> Kept:
    f = Fields(value, "piece of collateral")
    item = Item(
        kind=f.text("kind", limit=64),
        name=f.text("name", limit=256),
        data=f.base64("data", limit=1 << 21),
        obtained=f.integer("obtained"),
        chain=f.base64("chain", limit=1 << 21),
    )
    kept = Kept(item, f.text("etag", limit=256), f.base64("request", limit=4096))
    f.done()
    return kept


def _read(path: Path) -> Kept:
    with path.open("rb") as file:
        data = file.read(_MAX_FILE + 1)
    kept = _from_document(parse_canonical(data, limit=_MAX_FILE))
    if path.name != _file_name(kept.item.kind, kept.item.name):
        raise Malformed("collateral.place", "A file of collateral lies where another one belongs.")
    return kept


def write_bundle(pieces: Iterable[Kept]) -> bytes:
    """One file to carry into a closed site. Nothing signs it: every piece is its vendor's. ETags and OCSP questions
    stay here, for ``read_bundle`` believes nobody's."""
    return canonical_json({"items": [_document(Kept(kept.item)) for kept in pieces], "type": _BUNDLE})


def read_bundle(data: bytes) -> list[Kept]:
    """The pieces of a bundle; each key at most once. ETags and questions in it are dropped: a vendor's signature does
    not cover them. Raises Malformed."""
    f = Fields(parse_canonical(data, limit=MAX_BUNDLE), "bundle of collateral")
    f.text("type", choices=(_BUNDLE,))
    pieces = [Kept(kept.item) for kept in f.items("items", _from_document, limit=MAX_ITEMS)]
    f.done()
    keys = {(kept.item.kind, kept.item.name) for kept in pieces}
    if len(keys) != len(pieces):
        raise Malformed("collateral.twice", "A bundle of collateral holds one piece twice.")
    return pieces
