"""A sealed object as a read-only fsspec file system, so that pandas and pyarrow open its files with random access."""

from __future__ import annotations

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
