"""Processes that are killed with SIGKILL: at a moment, at a byte on its way to a file, or at a step that changes
a folder.

They are forked in a process of their own (``Nursery``), which has loaded what they need and has no threads."""

from __future__ import annotations

import importlib
import io
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["Death", "Nursery", "Say", "fast_place", "nursery_of", "random_death", "set_scene"]

Say = Callable[..., None]
_LONGEST = 240.0  # seconds of one life; who lives longer hangs
_STEPS = ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir")


@dataclass(frozen=True)
class Death:
    """``seconds`` after it said that many ``lines``; or amid the write that reaches the ``byte``-th byte of all that it
    writes; or at a ``step``: odd ones right before a change of a folder or a sync, even ones right after."""

    lines: int = 0
    seconds: float = 0.0
    byte: int | None = None
    step: int | None = None


def random_death(chance: random.Random, number: int, *, seconds: float, size: int, steps: int) -> Death:
    """In turn by the clock, by a byte, and by a step; the other two never come to pass then."""
    if number % 3 == 0:
        return Death(lines=chance.randrange(7), seconds=chance.uniform(0, seconds))
    never = {"lines": 1 << 30, "seconds": 0.0}
    if number % 3 == 1:
        return Death(**never, byte=chance.randrange(size))
    return Death(**never, step=chance.randrange(1, steps))


@contextmanager
def fast_place() -> Iterator[Path]:
    """In memory where the machine has that: SIGKILL takes nothing from the page cache, so a disk would show no more."""
    shm = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="cloister-", dir=shm if shm.is_dir() else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


# -- the victim's side -------------------------------------------------------------------------------------------------


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class _Bytes:
    left = 0


class _DoomedFile(io.FileIO):
    """Writes up to the last byte that it may, and no further."""

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        if len(view) >= _Bytes.left:
            super().write(view[: _Bytes.left])
            _die()
        _Bytes.left -= len(view)
        return super().write(view) or 0


def _doom_bytes(byte: int) -> None:
    _Bytes.left, real = byte, io.open

    def opens(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **more: Any) -> Any:
        if "b" not in mode or not set(mode) & set("wxa"):
            return real(file, mode, buffering, *rest, **more)
        raw = _DoomedFile(file, mode)
        return raw if buffering == 0 else io.BufferedWriter(raw)

    io.open = opens  # type: ignore[assignment]  # what Path.open calls


def _doom_steps(last: int) -> None:
    passed = 0

    def wrap(name: str) -> None:
        real = getattr(os, name)

        def step(*args: Any, **more: Any) -> Any:
            nonlocal passed
            passed += 1
            if 2 * passed - 1 == last:
                _die()
            try:
                return real(*args, **more)
            finally:  # also where it failed, as mkdir does of what exists
                if 2 * passed == last:
                    _die()

        setattr(os, name, step)

    for name in _STEPS:
        wrap(name)


def _live(order: dict[str, Any], run: Callable[[Say, Path, int], None], writing: int) -> None:
    """The pipe takes each line at once, so what was said outlives the process."""

    def say(*line: Any) -> None:
        os.write(writing, json.dumps(line).encode() + b"\n")

    try:
        if order["byte"] is not None:
            _doom_bytes(order["byte"])
        if order["step"] is not None:
            _doom_steps(order["step"])
        run(say, Path(order["folder"]), order["seed"])
    except BaseException:
        say("failed", traceback.format_exc())
    finally:
        os._exit(0)


def set_scene(module: str) -> None:
    """The nursery's main: for every order on stdin, one life of one victim."""
    importlib.import_module(module)
    for line in sys.stdin:
        order = json.loads(line)
        run = getattr(importlib.import_module(module), order["victim"])
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            _live(order, run, writing)
        os.close(writing)
        heard = _listen(pid, reading, order)
        os.close(reading)
        _, status = os.waitpid(pid, 0)
        print(json.dumps([os.waitstatus_to_exitcode(status), heard.decode()]), flush=True)


def _listen(pid: int, reading: int, order: dict[str, Any]) -> bytes:
    """What it says until its end, which this brings about. It is this process's child: its number stays its own."""
    heard, end, killed = b"", time.monotonic() + _LONGEST, False
    killing = float("inf")
    while True:
        if killing == float("inf") and not killed and heard.count(b"\n") >= order["lines"]:
            killing = time.monotonic() + order["seconds"]
        wait = min(killing, end) - time.monotonic()
        if wait <= 0 and not killed:
            heard += b"" if killing < end else b'["failed", "it hangs"]\n'
            os.kill(pid, signal.SIGKILL)
            killed, killing, end = True, float("inf"), time.monotonic() + _LONGEST
            continue
        if select.select([reading], [], [], max(0.0, wait))[0]:
            data = os.read(reading, 1 << 16)
            if not data:
                return heard
            heard += data


# -- the test's side ---------------------------------------------------------------------------------------------------


@dataclass
class Nursery:
    process: subprocess.Popen[str]

    def life(self, victim: str, folder: Path, seed: int, death: Death) -> list[list[Any]]:
        """What the victim said before it was killed, line by line. Fails if it ended in another way."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        order = {"victim": victim, "folder": str(folder), "seed": seed, **asdict(death)}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        status, heard = json.loads(self.process.stdout.readline())
        lines = [json.loads(line) for line in heard.splitlines(keepends=True) if line.endswith("\n")]
        assert not [line for line in lines if line[0] == "failed"], lines[-1][1]
        assert status == -signal.SIGKILL, "it ended by itself"
        return lines


@contextmanager
def nursery_of(module: str) -> Iterator[Nursery]:
    with subprocess.Popen(
        [sys.executable, "-c", f"from tests.deaths import set_scene; set_scene({module!r})"],
        cwd=Path(__file__).resolve().parents[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            yield Nursery(process)
        finally:
            process.kill()
