"""What the first process hands to the others, in memory: model, rows and settings, and the checkpoint to go on from.

It is anonymous memory (memfd_create(2)) that is sealed against every change before anybody else sees it. It is read
with pickle, which runs what it is told to: so it is only ever read from such a descriptor, which only the first process
can have made, and its seals are looked at. The tensors in it are not copied: all processes have the same pages, until
one writes to a page and gets its own.
"""

from __future__ import annotations

import fcntl
import io
import os
from collections.abc import Iterable, Mapping
from contextlib import closing
from typing import Any, BinaryIO

import torch

from ....errors import Misuse
from ..looks import BEST
from ..ports import CheckpointSink

__all__ = ["READY", "FirstSink", "Handed", "read_inputs", "seal_inputs"]

READY = b"+"  # what a process says once it has its inputs
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def seal_inputs(inputs: Any) -> int:
    """A descriptor of memory that holds ``inputs`` and that nobody can change."""
    fd = os.memfd_create("inputs", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with os.fdopen(os.dup(fd), "wb") as file:
            torch.save(inputs, file)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_inputs(fd: int) -> Any:
    """What ``seal_inputs`` was given. Tensors stay in the shared memory; a page is copied when it is written to."""
    if fcntl.fcntl(fd, fcntl.F_GET_SEALS) != _SEALS:
        raise Misuse("distributed.inputs", "The inputs of a training process are not sealed; start it by a recipe.")
    return torch.load(f"/proc/self/fd/{fd}", mmap=True, weights_only=False)


def _bytes(file: BinaryIO) -> torch.Tensor:
    with file:
        return torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)


class Handed:
    """A checkpoint that the first process read, in a form in which the others can have it: their sink's newest one."""

    def __init__(self, step: int, files: Mapping[str, torch.Tensor]) -> None:
        self._step, self._files = step, files

    @classmethod
    def of(cls, sink: CheckpointSink) -> Handed | None:
        found = sink.latest()
        if found is None:
            return None
        step, files = found
        with closing(files):
            return cls(step, {path: _bytes(files.open(path)) for path in files.paths()})

    def shared(self) -> Handed:
        """Without the best weights so far: only the first process chooses."""
        return Handed(self._step, {p: f for p, f in self._files.items() if not p.startswith(f"{BEST}-")})

    def latest(self) -> tuple[int, Handed]:
        return self._step, self

    def paths(self) -> Iterable[str]:
        return self._files

    def open(self, path: str) -> BinaryIO:
        return io.BytesIO(self._files[path].numpy().tobytes())

    def close(self) -> None:
        """The memory goes when nobody holds it any more."""


class FirstSink:
    """The first process's sink: what it read once already is not read again."""

    def __init__(self, sink: CheckpointSink, handed: Handed | None) -> None:
        self.save = sink.save
        self._handed = handed

    def latest(self) -> tuple[int, Handed] | None:
        handed, self._handed = self._handed, None
        return None if handed is None else handed.latest()
