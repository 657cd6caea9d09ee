"""The process that a party's program runs in. Started by ``host`` with one descriptor, the channel, as its argument."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType

from .channel import BODY_LIMIT, Channel
from .confine import confine
from .interface import Run

__all__ = ["main"]

_FAILED = 3


class _Program(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Imports the program's modules from memory, by their paths in its folder. They shadow nothing: this finder comes
    last."""

    def __init__(self, sources: Mapping[str, bytes]) -> None:
        self._sources = sources

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        del path, target
        found = self._path(fullname)
        if found is None:
            return None
        package = found.endswith("/__init__.py")
        return importlib.machinery.ModuleSpec(fullname, self, origin=found, is_package=package)

    def get_source(self, fullname: str) -> str:
        found = self._path(fullname)
        if found is None:
            raise ImportError(fullname)
        return self._sources[found].decode()

    def is_package(self, fullname: str) -> bool:
        return (self._path(fullname) or "").endswith("/__init__.py")

    def _path(self, fullname: str) -> str | None:
        plain = fullname.replace(".", "/")
        return next((p for p in (f"{plain}.py", f"{plain}/__init__.py") if p in self._sources), None)


def main(descriptor: int) -> int:
    """Exit status: 0 when the program returned, ``_FAILED`` when it raised. Its text stays here: it may quote data."""
    channel = Channel(socket.socket(fileno=descriptor))
    opening, saved = channel.receive(body_limit=BODY_LIMIT)
    # The image's own code, which may want for a moment what a program may not: some of it opens /dev/null to write.
    importlib.import_module("torch")
    confine()
    run = Run(channel, opening, saved)
    sources = {path: run.program.read(path) for path in run.program.paths() if path.endswith(".py")}
    sys.meta_path.append(_Program(sources))
    try:
        import main as program  # type: ignore[import-not-found]  # the program's own main.py

        program.train(run)
    except BaseException:  # noqa: BLE001 - whatever it was, its text may quote data
        return _FAILED
    channel.send({"op": "done"})
    return 0


if __name__ == "__main__":
    # As in the workload's own process: nothing is left to do, and what the program left behind must not run.
    os._exit(main(int(sys.argv[1])))
