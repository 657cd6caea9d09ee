"""The terminal's rules, all of them: results to stdout, everything else to stderr, one sentence per error, exit codes.

Exit codes are the error's own: 0 done, 1 failed or unreachable, 2 misuse, 3 denied, 4 not verified. With ``--json``
stdout carries exactly one JSON object, for errors too.
"""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..client import Step
from ..errors import CloisterError, Misuse

__all__ = ["Bars", "ask", "ask_name", "clean", "columns", "fail", "note", "result", "spinner"]

_WIDTH = 12
_CELL = 200  # characters; longer ones end in an ellipsis
_STEERING = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))  # control, format with direction marks, halves, line, paragraph
_BYTES = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


def clean(text: object) -> str:
    """One line without control and direction characters: words that came from elsewhere must not steer this terminal,
    nor look like lines of ours."""
    return "".join("?" if unicodedata.category(c) in _STEERING else c for c in str(text))


def note(text: str) -> None:
    """Something that a person should know; stderr."""
    print(clean(text), file=sys.stderr)


def result(document: Mapping[str, Any], lines: Iterable[str], *, as_json: bool) -> None:
    """What the command is for: one JSON object, or lines for people."""
    if as_json:
        print(json.dumps(document, indent=2, sort_keys=True, ensure_ascii=True))
        return
    for line in lines:
        print(clean(line))


def fail(error: CloisterError, *, as_json: bool) -> int:
    """Say what is wrong, in one sentence, and return the exit code."""
    if as_json:
        print(json.dumps({"error": error.to_wire()}, indent=2, sort_keys=True, ensure_ascii=True))
    print(f"cloister: {clean(error.message)}", file=sys.stderr)
    return error.exit_code


def columns(rows: Sequence[Sequence[object]], *, full: bool = False) -> list[str]:
    """Rows as aligned text, one line each. ``full`` leaves long cells whole."""
    texts = [[_cell(cell, full) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in texts if i < len(row)) for i in range(max(map(len, texts), default=0))]
    return ["  ".join(cell.ljust(widths[i]) for i, cell in enumerate(row)).rstrip() for row in texts]


def _cell(value: object, full: bool) -> str:
    # Without runs of spaces: a terminal that wraps a padded cell would show its rest like a row of its own.
    text = re.sub(r"(?<=\S)\s{2,}", " ", clean(value))
    return text if full or len(text) <= _CELL else f"{text[: _CELL - 1]}…"


def ask(question: str, *, yes: bool) -> None:
    """Go on only if the person at the terminal agrees. Raises Misuse where nobody can be asked, or they don't."""
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise Misuse("terminal.question", "Nobody is here to be asked; look at it first, then add --yes.")
    print(f"{clean(question)} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Misuse("terminal.declined", "Nothing was done.")


def ask_name(question: str, name: str, *, yes: bool) -> None:
    """As ``ask``, for what can't be undone: only somebody who types the very name goes on."""
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise Misuse("terminal.question", "Nobody is here to be asked; look at it first, then add --yes.")
    print(f"{clean(question)} ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip() != name:
        raise Misuse("terminal.declined", "Nothing was done.")


@contextmanager
def spinner(text: str) -> Iterator[None]:
    """Shows that something takes a moment, on a terminal only."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(text):
        yield


class Bars:
    """A ``Progress`` callback that draws on stderr: on a terminal, or wherever ``--progress`` asked for it."""

    def __init__(self, wanted: bool) -> None:
        console = Console(stderr=True, force_terminal=True if wanted and not sys.stderr.isatty() else None)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),  # no markup: words from elsewhere might be links
            BarColumn(),
            TextColumn("{task.fields[amount]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[values]}", markup=False),
            console=console,
            disable=not (wanted or sys.stderr.isatty()),
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._progress.stop()

    def __call__(self, step: Step) -> None:
        if step.stage not in self._tasks:
            description = clean(step.stage).ljust(_WIDTH)
            self._tasks[step.stage] = self._progress.add_task(description, total=None, amount="", values="")
        task = self._tasks[step.stage]
        self._progress.update(task, completed=step.done, total=step.total or None, amount=_amount(step))
        if step.values:
            shown = "  ".join(f"{clean(name)} {clean(value)}" for name, value in sorted(step.values.items()))
            self._progress.update(task, values=shown)

    def say(self, text: str) -> None:
        """A line above the bars."""
        self._progress.console.print(clean(text), markup=False, highlight=False)


def _amount(step: Step) -> str:
    if step.unit != "bytes":
        return f"{step.done}/{step.total} {step.unit}"
    unit, size = next((u for u in _BYTES if step.total >= u[1]), ("B", 1))
    return f"{step.done / size:.1f}/{step.total / size:.1f} {unit}"
