"""A sealed object as a read-only fsspec file system, so that pandas and pyarrow open its files with random access."""

from __future__ import annotations

import contextlib
from typing import Any, NoReturn

from fsspec.spec import AbstractFileSystem

from ..errors import Misuse
from .reader import SealedFile, SealedObject

__all__ = ["SealedFileSystem"]


class SealedFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Paths are those of the manifest. A missing path raises FileNotFoundError, as callers of fsspec expect;
    everything that would write raises Misuse; reading raises what ``SealedObject.open`` raises.

    Instances are never cached: fsspec would keep the object, and with it the key, alive for ever.
    """

    protocol = "cloister"
    root_marker = ""
    cachable = False

    def __init__(self, sealed: SealedObject, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._sealed = sealed
        self._tree: dict[str, dict[str, dict[str, Any]]] = {"": {}}
        for path in sealed.paths():
            self._add(path, {"name": path, "size": sealed.entry(path).plaintext_size, "type": "file"})

    def _add(self, path: str, info: dict[str, Any]) -> None:
        parent = path.rpartition("/")[0]
        if parent not in self._tree:
            self._tree[parent] = {}
            self._add(parent, {"name": parent, "size": 0, "type": "directory"})
        self._tree[parent][path] = info

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path).strip("/")
        if path == "":
            return {"name": "", "size": 0, "type": "directory"}
        found = self._tree.get(path.rpartition("/")[0], {}).get(path)
        if found is None:
            raise FileNotFoundError(path)
        return dict(found)

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        path = self._strip_protocol(path).strip("/")
        own = self.info(path)
        entries = [dict(e) for e in self._tree[path].values()] if own["type"] == "directory" else [own]
        return entries if detail else [entry["name"] for entry in entries]

    def _open(self, path: str, mode: str = "rb", **_: Any) -> SealedFile:
        if mode != "rb":
            self._refuse()
        if self.info(path)["type"] != "file":
            raise IsADirectoryError(path)
        return self._sealed.open(self._strip_protocol(path).strip("/"))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """The file's bytes from ``start`` to ``end``; negative ones count from its end. Decrypts no other segments."""
        with self._open(path) as file:
            return _between(file, start, end)

    def cat_ranges(
        self,
        paths: list[str],
        starts: list[int] | int | None,
        ends: list[int] | int | None,
        max_gap: int | None = None,
        on_error: str = "return",
        **_: Any,
    ) -> list[Any]:
        """One ``bytes`` for each range; each file is opened once. Ranges are never merged: what lies in a gap between
        two of them was not asked for. With ``on_error="return"`` a range that fails is its exception, as fsspec
        has it; one that is not authentic is raised always."""
        if max_gap is not None:
            raise Misuse("sealed.gap", "Ranges of a sealed file are never merged; leave max_gap out.")
        begin, stop = (edge if isinstance(edge, list) else [edge] * len(paths) for edge in (starts, ends))
        if not len(paths) == len(begin) == len(stop):
            raise Misuse("sealed.ranges", "Give as many starts and ends as paths.")
        found: list[Any] = [None] * len(paths)
        with contextlib.ExitStack() as stack:
            opened: dict[str, SealedFile] = {}
            for at in sorted(range(len(paths)), key=lambda i: (paths[i], begin[i] or 0)):  # in each file's order
                try:
                    if paths[at] not in opened:
                        opened[paths[at]] = stack.enter_context(self._open(paths[at]))
                    found[at] = _between(opened[paths[at]], begin[at], stop[at])
                except OSError as error:
                    if on_error != "return":
                        raise
                    found[at] = error
        return found

    def created(self, path: str) -> int:
        """Unix seconds at which the object was sealed."""
        self.info(path)
        return self._sealed.manifest.created

    modified = created

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise Misuse("sealed.read_only", "A sealed object is read-only; seal a new version instead.")

    mkdir = makedirs = rmdir = rm = rm_file = _rm = cp_file = mv = touch = pipe_file = put_file = _refuse

    def __reduce__(self) -> NoReturn:
        raise TypeError("an open sealed object holds a key and is not pickled")


def _between(file: SealedFile, start: int | None, end: int | None) -> bytes:
    first, stop, _ = slice(start, end).indices(file.size)
    file.seek(first)
    return file.read(max(0, stop - first))
