"""What the demo plays on: a home of its own, everything running in it, and a way to tell the audience."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ..client import Home, operations
from ..client.progress import Progress as Tell
from ..client.progress import Step

__all__ = ["Stage"]


class Stage:
    """A context manager: ``cloister up`` on entry, ``cloister down`` on exit."""

    def __init__(self, folder: Path, console: Console) -> None:
        self.folder = folder
        self.console = console
        self.home = Home(folder / "home")
        self._acts = 0

    def __enter__(self) -> Stage:
        self.act("The operator starts the control plane and a node; parties will run their own brokers.")
        with self.console.status("building and measuring the workload's image, starting the parts"):
            status, _ = operations.up(self.home)
        self.say(f"node: {status['node'].get('hardware')}; parts run as {status['users']} users")
        for note in status["notes"]:
            self.say(note, "yellow")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self.console.status("stopping everything"):
            operations.down(self.home)

    def act(self, title: str) -> None:
        self._acts += 1
        self.console.print(f"\n[bold]{self._acts}. {title}[/bold]", highlight=False)

    def say(self, text: str, style: str = "dim") -> None:
        self.console.print(f"   {text}", style=style, highlight=False, markup=False)

    def good(self, text: str) -> None:
        self.say(f"✓ {text}", "green")

    @contextmanager
    def watching(self) -> Iterator[Tell]:
        """Progress bars, one for each stage of a long operation."""
        columns = (
            TextColumn("   {task.description:<10}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        with Progress(*columns, console=self.console) as bars:
            tasks: dict[str, TaskID] = {}

            def tell(step: Step) -> None:
                figures = "  ".join(f"{name} {value}" for name, value in step.values.items())
                if step.stage not in tasks:
                    tasks[step.stage] = bars.add_task(step.stage, total=step.total or None, figures="")
                bars.update(tasks[step.stage], completed=step.done, total=step.total or None, figures=figures)

            yield tell

    @contextmanager
    def timed(self, seconds: dict[str, float], name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        seconds[name] = round(seconds.get(name, 0.0) + time.monotonic() - started, 2)
