"""``Bucket`` over any file system of fsspec."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from .patience import Patience, persist
from .ports import Found, Upload

__all__ = ["PART", "FsspecBucket"]

PART = 16 << 20


class FsspecBucket:
    """``fs`` is an fsspec file system, ``root`` the path in it under which everything lies.

    Enough for disks and for memory. A file system that shows half-written files is fine as well: what is not whole has
    no manifest beside it, and a put that goes on looks at sizes and roots.
    """

    def __init__(
        self, fs: Any, root: str, url: str, patience: Patience, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._fs, self._root, self.url = fs, root.rstrip("/"), url
        self._patience, self._sleep = patience, sleep

    def _path(self, folder: str, name: str) -> str:
        return f"{self._root}/{folder}/{name}"

    def _call(self, method: str, *arguments: Any, **named: Any) -> Any:
        """A method of the file system, with patience. Where it runs on fsspec's own thread, never longer than that."""
        if getattr(self._fs, "async_impl", False):
            named["timeout"] = self._patience.request
        return persist(lambda: getattr(self._fs, method)(*arguments, **named), self._patience, sleep=self._sleep)

    def read(self, folder: str, name: str, start: int, length: int) -> bytes:
        return bytes(self._call("cat_file", self._path(folder, name), start=start, end=start + length))

    def listing(self, folder: str) -> dict[str, Found]:
        try:
            infos = self._call("ls", f"{self._root}/{folder}", detail=True)
        except FileNotFoundError:
            return {}
        return {info["name"].rpartition("/")[2]: _found(info) for info in infos if info["type"] == "file"}

    def everything(self) -> Iterator[tuple[str, str, Found]]:
        try:
            infos = self._call("find", self._root, detail=True)
        except FileNotFoundError:
            return
        for path, info in infos.items():
            folder, _, name = path.rpartition("/")
            above, _, folder = folder.rpartition("/")
            if above.rstrip("/").endswith(self._root.strip("/")):
                yield folder, name, _found(info)

    def write(self, folder: str, name: str, data: bytes) -> None:
        self._make(folder)
        self._call("pipe_file", self._path(folder, name), data)

    def _make(self, folder: str) -> None:
        self._call("makedirs", f"{self._root}/{folder}", exist_ok=True)

    def upload(self, folder: str, name: str, size: int) -> Upload:
        del size
        self._make(folder)
        return _FileUpload(self._call("open", self._path(folder, name), "wb"), self._patience)

    def remove(self, folder: str, name: str) -> None:
        try:
            self._call("rm_file", self._path(folder, name))
        except FileNotFoundError:
            return

    def abort_uploads(self, *, before: int) -> int:
        """There are none: a file that broke off is a file without a manifest."""
        del before
        return 0

    def close(self) -> None:
        """Nothing of ours stays open."""


def _found(info: dict[str, Any]) -> Found:
    """Without a time, a file counts as new: a sweep leaves it alone."""
    for key in ("LastModified", "mtime", "created"):
        value = info.get(key)
        if value is not None:
            return Found(int(info["size"]), value if isinstance(value, int | float) else value.timestamp())
    return Found(int(info["size"]), float("inf"))


class _FileUpload:
    """An open file. Writing is not tried again: nobody could say how much of the last try was taken."""

    def __init__(self, file: Any, patience: Patience) -> None:
        self._file = file
        self._once = Patience(attempts=1, request=patience.request)
        self.part_size = PART

    def write(self, part: bytes) -> None:
        def whole() -> None:
            rest = memoryview(part)
            while rest:
                rest = rest[self._file.write(rest) :]

        persist(whole, self._once)

    def finish(self) -> None:
        persist(self._file.close, self._once)

    def abort(self) -> None:
        """What stays has the wrong size or root, and no manifest; the next put or a sweep removes it."""
        try:
            self._file.close()
        except Exception:  # noqa: BLE001  whatever a file system raises, the error that led here is the one to show
            self._file = None
