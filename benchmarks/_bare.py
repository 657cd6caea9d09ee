"""The baseline: the very same training code on plain files, with no sealing, no sandbox, no lease and no telemetry.

``run`` starts it in a process of its own with the sandbox's environment variables, so that allocator, OpenMP and thread
settings are equal. Its checkpoints are written as plain files without fsync, as transformers' own Trainer does, and
beside the training, as the sealed ones: somebody who trains without protection wants to survive a crash, too.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cloister.contracts import parse_recipe
from cloister.node.profile import DEFAULT_ENV

from ._timing import Timed

ROOT = Path(__file__).resolve().parents[1]


def run(recipe: str, data: Path, base: Path) -> Timed:
    """One bare training; its own process, from its start to its end."""
    order = json.dumps({"base": str(base), "data": str(data), "recipe": recipe})
    command = [sys.executable, "-B", "-m", "benchmarks._bare"]
    started = time.monotonic()
    done = subprocess.run(command, input=order, env=dict(DEFAULT_ENV), cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"the bare training failed:\n{done.stderr[-2000:]}")
    return Timed.from_evaluation(json.loads(done.stdout.splitlines()[-1]), {}, time.monotonic() - started)


@dataclass(frozen=True)
class Folder:
    """Plain files by path, as ``sealed.SealedObject`` gives the decrypted ones."""

    files: dict[str, Path]

    def paths(self) -> tuple[str, ...]:
        return tuple(self.files)

    def open(self, path: str) -> BinaryIO:
        return self.files[path].open("rb")

    @classmethod
    def of(cls, place: Path) -> Folder:
        if place.is_file():
            return cls({place.name: place})
        return cls({p.relative_to(place).as_posix(): p for p in sorted(place.rglob("*")) if p.is_file()})


class _PlainCheckpoints:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, step: int, files: Iterable[tuple[str, BinaryIO]]) -> None:
        target = self._folder / f"{step:08d}"
        target.mkdir()
        for name, file in files:
            with (target / name).open("wb") as out:
                shutil.copyfileobj(file, out, 1 << 22)

    def latest(self) -> None:
        return None


class _Unwatched:
    """No lease to keep, and nobody who is told."""

    def check(self) -> None: ...

    def on_loss(self, clear: Callable[[], None]) -> None: ...

    def report(self, stage: str, step: int, total: int, values: Mapping[str, str]) -> None: ...


def _train(order: dict[str, Any]) -> dict[str, Any]:
    from cloister.workload.pipeline import Inputs, train_and_evaluate

    data, base = (Folder.of(Path(order[name])) for name in ("data", "base"))
    inputs = Inputs(parse_recipe(order["recipe"]), data, base, (), "00")
    with tempfile.TemporaryDirectory() as folder:
        sink = _PlainCheckpoints(Path(folder))
        outcome = train_and_evaluate(inputs, sink=sink, progress=_Unwatched(), lease=_Unwatched())
    return dict(outcome.evaluation)


if __name__ == "__main__":
    print(json.dumps(_train(json.load(sys.stdin))))
