"""The workload's side of a party's program: gives it data, keeps its checkpoints, checks what it wants to let out."""

from __future__ import annotations

import io
import json
import math
import os
import re
import select
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, BinaryIO, Protocol

from ...contracts import Recipe
from ...errors import CloisterError, Malformed, Misuse
from ..evaluation import Evaluation, Score
from ..evaluation.results import decimal_figure
from ..training.ports import CheckpointSink, Lease, Progress
from ..training.tensors import read_tensors
from .channel import BODY_LIMIT, Channel, Ended

__all__ = ["PROGRAM_USAGE", "ScriptResult", "run_script"]

PROGRAM_USAGE = """\
# The files in model/ are what the program of the contract wrote; its author says how they are used.
from pathlib import Path
from safetensors.torch import load_file

for file in sorted(Path("model").glob("*.safetensors")):
    print(file.name, {name: tuple(tensor.shape) for name, tensor in load_file(file).items()})
"""

_MAIN = "main.py"
_SAVED = "program.safetensors"
_POLL = 0.5  # seconds between looks at the lease while the program is at work
_MESSAGE = 300.0  # seconds for one message, once its first byte is there
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_FILE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\.(safetensors|json|txt|png)")
_MOST_FIGURES, _MOST_FILES = 64, 256
_PNG = b"\x89PNG\r\n\x1a\n"


class _Readable(Protocol):
    def paths(self) -> tuple[str, ...]: ...

    def open(self, path: str) -> BinaryIO: ...


@dataclass
class ScriptResult:
    """``files`` of the output and the program's own figures. Nobody but the program vouches for the figures."""

    files: dict[str, bytes] = field(default_factory=dict)
    scores: dict[str, Score] = field(default_factory=dict)
    resumed_from: int = 0

    @property
    def evaluation(self) -> Evaluation:
        return Evaluation(self.scores, {"figures_by": "program", "resumed_from": self.resumed_from})


def run_script(
    recipe: Recipe,
    program: _Readable,
    data: _Readable,
    *,
    sink: CheckpointSink,
    progress: Progress,
    lease: Lease,
) -> ScriptResult:
    """Run the program to its end, from the sink's newest checkpoint if there is one.

    Raises what the ports raise, Misuse (``script.missing``, ``script.failed``) and Malformed (``script.message``).
    """
    if _MAIN not in program.paths():
        raise Misuse("script.missing", f"The program's folder has no {_MAIN}; seal one that defines train(run).")
    lease.check()
    session = _Session({"data": data, "program": program}, sink, progress)
    progress.report("prepare", 0, 1, {})
    with _child() as (channel, sock, process):
        channel.send(*session.opening(recipe))
        progress.report("prepare", 1, 1, {})
        try:
            with suppress(Ended):  # whether it ended well is what it said last
                while not session.done:
                    if select.select([sock], [], [], _POLL)[0]:
                        head, body = channel.receive(body_limit=BODY_LIMIT)
                        channel.send(*session.answer(head, body))
                    lease.check()  # raises: the child is killed on the way out
        except TimeoutError:
            raise Malformed("script.message", "A message of the training program was not finished.") from None
        with suppress(subprocess.TimeoutExpired):
            process.wait(_POLL)
    if not session.done:
        raise Misuse(
            "script.failed", "The training program ended with an error; run it on data that you may see to find it."
        )
    return session.result


@contextmanager
def _child() -> Iterator[tuple[Channel, socket.socket, subprocess.Popen[bytes]]]:
    """The program's process: no descriptor but the channel, no output that anybody reads, killed at the end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with closing(ours):
        with closing(theirs):
            process = subprocess.Popen(
                [sys.executable, "-I", "-B", "-m", "cloister.workload.script.child", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=dict(os.environ),
            )
        ours.settimeout(_MESSAGE)
        try:
            yield Channel(ours), ours, process
        finally:
            process.kill()
            process.wait()


class _Session:
    """What the program asks for, one message after the other."""

    def __init__(self, folders: Mapping[str, _Readable], sink: CheckpointSink, progress: Progress) -> None:
        self._folders, self._sink, self._progress = folders, sink, progress
        self._open: dict[tuple[str, str], BinaryIO] = {}
        self._step = 0
        self._room = BODY_LIMIT
        self.result = ScriptResult()
        self.done = False

    def opening(self, recipe: Recipe) -> tuple[dict[str, Any], bytes]:
        """The first message: what there is, and the newest checkpoint."""
        saved = b""
        found = self._sink.latest()
        if found is not None:
            self._step, files = found
            with closing(files), files.open(_SAVED) as file:
                saved = file.read()
        self.result.resumed_from = self._step
        settings = {name: value for name, value in recipe.to_document().items() if name not in ("script", "columns")}
        head = {
            name: {path: _size(folder.open(path)) for path in folder.paths()} for name, folder in self._folders.items()
        }
        parameters = recipe.script.parameters if recipe.script is not None else {}
        return {**head, "parameters": dict(parameters), "settings": settings, "step": self._step}, saved

    def answer(self, head: Mapping[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        ask = {
            "read": self._read,
            "report": self._report,
            "checkpoint": self._checkpoint,
            "score": self._score,
            "output": self._output,
            "done": self._done,
        }.get(str(head.get("op")))
        if ask is None:
            raise Malformed("script.message", "A message of the training program is not of the known form.")
        try:
            return {}, ask(head, body)
        except _Refused as refused:
            return {"refused": str(refused)}, b""

    def _read(self, head: Mapping[str, Any], body: bytes) -> bytes:
        del body
        folder, path, offset, length = (head.get(name) for name in ("folder", "path", "offset", "length"))
        source = self._folders.get(folder) if isinstance(folder, str) else None
        if source is None or path not in source.paths() or not _natural(offset) or not _natural(length):
            raise _Refused("there is no such file or place in it")
        place = (str(folder), str(path))
        if place not in self._open:
            self._open[place] = source.open(str(path))
        self._open[place].seek(int(offset))  # type: ignore[arg-type]
        return self._open[place].read(min(int(length), 1 << 24))  # type: ignore[arg-type]

    def _report(self, head: Mapping[str, Any], body: bytes) -> bytes:
        del body
        step, total, values = (head.get(name) for name in ("step", "total", "values"))
        if not _natural(step) or not _natural(total) or not isinstance(values, dict) or len(values) > _MOST_FIGURES:
            raise _Refused("a report has a step, a total and figures by name")
        figures = {name: _figure(name, value) for name, value in values.items()}
        shown = {name: f"{decimal_figure(v):f}" if math.isfinite(v) else "nan" for name, v in figures.items()}
        self._progress.report("train", int(step), int(total), shown)  # type: ignore[arg-type]
        return b""

    def _checkpoint(self, head: Mapping[str, Any], body: bytes) -> bytes:
        step = head.get("step")
        if not _natural(step) or int(step) <= self._step:  # type: ignore[arg-type]
            raise _Refused("a checkpoint's step is a whole number, and larger than the one before")
        self._step = int(step)  # type: ignore[arg-type]
        self._sink.save(self._step, [(_SAVED, io.BytesIO(body))])
        return b""

    def _score(self, head: Mapping[str, Any], body: bytes) -> bytes:
        del body
        metric, better = head.get("metric"), head.get("higher_is_better")
        if not isinstance(better, bool) or len(self.result.scores) >= _MOST_FIGURES:
            raise _Refused(f"a score says whether higher is better; there are at most {_MOST_FIGURES}")
        base, tuned = (_figure(metric, head.get(side)) for side in ("base", "tuned"))
        if not (math.isfinite(base) and math.isfinite(tuned)):
            raise _Refused("a score's figures are numbers")
        self.result.scores[str(metric)] = Score(decimal_figure(base), decimal_figure(tuned), better)
        return b""

    def _output(self, head: Mapping[str, Any], body: bytes) -> bytes:
        name = head.get("name")
        if not isinstance(name, str) or not _FILE.fullmatch(name) or len(self.result.files) >= _MOST_FILES:
            raise _Refused("a file of the output is named in a-z, 0-9, and ends in .safetensors, .json, .txt or .png")
        if f"model/{name}" in self.result.files or len(body) > self._room:
            raise _Refused("a file of the output is given once, and all of them have at most 16 GiB")
        if not _is_what_it_says(name, body):
            raise _Refused("a file of the output is not what its name says")
        self._room -= len(body)
        self.result.files[f"model/{name}"] = body
        return b""

    def _done(self, head: Mapping[str, Any], body: bytes) -> bytes:
        del head, body
        self.done = True
        return b""


class _Refused(Exception):
    """What the program asked for can't be; it is told, as a ValueError."""


def _natural(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _figure(name: object, text: object) -> float:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or not isinstance(text, str) or len(text) > 64:
        raise _Refused("a figure has a name of a-z, 0-9 and _, and a number")
    try:
        value = float(text)
    except ValueError:
        raise _Refused("a figure has a name of a-z, 0-9 and _, and a number") from None
    if math.isfinite(value) and abs(Decimal(repr(value))) >= Decimal("1e15"):
        raise _Refused("a figure is smaller than 1e15")
    return value


def _size(file: BinaryIO) -> int:
    with closing(file):
        return file.seek(0, io.SEEK_END)


def _is_what_it_says(name: str, body: bytes) -> bool:
    """Recipients open these files with ordinary tools: a name must not promise another kind of file than it is."""
    try:
        if name.endswith(".safetensors"):
            read_tensors(name, io.BytesIO(body), len(body))
        elif name.endswith(".json"):
            json.loads(body.decode())
        elif name.endswith(".txt"):
            body.decode()
        else:
            return body.startswith(_PNG)
    except (CloisterError, ValueError, RecursionError):
        return False
    return True
