"""Parties' own programs under test: folders in memory, ports that remember, and real data that scikit-learn brings."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from cloister.contracts import Recipe, parse_recipe
from cloister.workload.script.host import ScriptResult, run_script

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "programs"


class Files:
    """A folder, as a sealed object is one; and the files of a checkpoint."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)

    def paths(self) -> tuple[str, ...]:
        return tuple(sorted(self.files))

    def open(self, path: str) -> BinaryIO:
        return io.BytesIO(self.files[path])

    def close(self) -> None:
        pass


class Ports:
    """Sink, progress and lease in one. ``killed_at``: the save of that step is the last thing that happens."""

    def __init__(self, *, killed_at: int | None = None) -> None:
        self.saved: list[tuple[int, dict[str, bytes]]] = []
        self.told: list[tuple[str, int, int, dict[str, str]]] = []
        self.checks = 0
        self._killed_at = killed_at

    def save(self, step: int, files: Iterable[tuple[str, BinaryIO]]) -> None:
        self.saved.append((step, {name: file.read() for name, file in files}))
        if step == self._killed_at:
            self._killed_at = None
            raise KeyboardInterrupt

    def latest(self) -> tuple[int, Files] | None:
        return (self.saved[-1][0], Files(self.saved[-1][1])) if self.saved else None

    def report(self, stage: str, step: int, total: int, values: Mapping[str, str]) -> None:
        self.told.append((stage, step, total, dict(values)))

    def check(self) -> None:
        self.checks += 1

    def on_loss(self, clear: Any) -> None:
        pass


def recipe(**more: Any) -> Recipe:
    return parse_recipe({"task": "script", "method": "script", "data": "a/rows", "base": "b/program", **more})


def program(source: str, **modules: str) -> Files:
    """A program whose ``main.py`` is ``source``, with further modules by name."""
    return Files({"main.py": source.encode(), **{f"{name}.py": text.encode() for name, text in modules.items()}})


def example(name: str) -> Files:
    return Files({path.name: path.read_bytes() for path in (EXAMPLES / name).glob("*.py")})


def run(code: Files, data: Files, ports: Ports | None = None, **settings: Any) -> ScriptResult:
    ports = ports or Ports()
    return run_script(recipe(**settings), code, data, sink=ports, progress=ports, lease=ports)


def patients() -> Files:
    """569 rows of 30 measurements and a diagnosis (Wisconsin breast cancer)."""
    from sklearn.datasets import load_breast_cancer

    found = load_breast_cancer(as_frame=True)
    return Files({"rows.csv": found.frame.to_csv(index=False).encode()})


def digits(count: int = 1000) -> Files:
    """Images of 8 by 8 pixels of the digits 0 to 9, a folder a digit."""
    from PIL import Image
    from sklearn.datasets import load_digits

    found = load_digits()
    files = {}
    for place in range(count):
        out = io.BytesIO()
        Image.fromarray((found.images[place] * 15).astype("uint8")).save(out, format="png")
        files[f"{found.target[place]}/{place}.png"] = out.getvalue()
    return Files(files)
