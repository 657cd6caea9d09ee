"""How a training went, in the sealed output and from a job's own account."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cloister.client.job_plot import plot_job
from cloister.contracts import parse_recipe
from cloister.errors import Malformed, Misuse, Unavailable
from cloister.plots import draw_curves
from cloister.workload.training.history import History
from cloister.workload.training.tracking import tracking_files

RECIPE = parse_recipe(
    {"task": "text", "method": "full", "data": "a/b", "base": "a/c", "columns": {"text": "t"}, "max_steps": 40}
)
PNG = b"\x89PNG\r\n\x1a\n"


class Told:
    def __init__(self) -> None:
        self.reports: list[tuple[str, int, int, dict[str, str]]] = []

    def report(self, stage: str, step: int, total: int, values: Any) -> None:
        self.reports.append((stage, step, total, dict(values)))


def trained(steps: int = 4) -> tuple[History, Told]:
    told = Told()
    now = iter(range(1_800_000_000, 1_900_000_000))
    history = History(told, clock=lambda: next(now))
    history.report("prepare", 0, 1, {})
    for step in range(1, steps + 1):
        history.report("train", step, steps, {"loss": f"{4 / step:.6f}", "learning_rate": "0.001000"})
    history.report("look", steps, steps, {"loss": "nan"})
    return history, told


def test_every_report_goes_on_to_whom_it_was_for_and_those_with_figures_are_kept():
    history, told = trained()
    assert [stage for stage, *_ in told.reports] == ["prepare", *["train"] * 4, "look"]
    assert [(p.stage, p.step) for p in history.points] == [*(("train", n) for n in range(1, 5)), ("look", 4)]
    assert history.curve("train", "loss") == [(1, 4.0), (2, 2.0), (3, 1.333333), (4, 1.0)]
    assert history.curve("look", "loss") == []


def test_a_long_run_takes_no_more_room_than_a_short_one():
    history, _ = trained(20_000)
    steps = [point.step for point in history.points]
    assert len(steps) <= 2048
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (1, 20_000)


def test_the_output_holds_points_picture_and_a_run_that_mlflow_opens(tmp_path: Path):
    history, _ = trained()
    files = tracking_files(history, RECIPE, {"bits_per_byte": "1.5", "more": {"x": 1}, "train_steps": 4}, "ab" * 32)
    lines = [json.loads(line) for line in files["training/history.jsonl"].splitlines()]
    assert lines[1] == {
        "stage": "train",
        "step": 2,
        "values": {"learning_rate": "0.001000", "loss": "2.000000"},
        "when_ms": 1_800_000_001_000,
    }
    assert files["training/loss.png"].startswith(PNG)
    for name, data in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    found = _by_mlflow(tmp_path / "training" / "mlruns")
    assert found["params"]["max_steps"] == "40"
    assert found["tags"]["cloister.bits_per_byte"] == "1.5"
    assert found["status"] == "FINISHED"
    assert found["loss"] == [[1, 4.0], [2, 2.0], [3, 1.333333], [4, 1.0]]


def _by_mlflow(folder: Path) -> dict[str, Any]:
    """In a process of its own: the library warns, starts threads, and wants to be told that files are fine."""
    code = """
import json, sys
from mlflow.tracking import MlflowClient
client = MlflowClient(tracking_uri=sys.argv[1])
(experiment,) = [e for e in client.search_experiments() if e.name == "cloister"]
(run,) = client.search_runs([experiment.experiment_id])
history = client.get_metric_history(run.info.run_id, "train.loss")
print(json.dumps({"params": run.data.params, "tags": run.data.tags, "status": run.info.status,
                  "loss": [[m.step, m.value] for m in history]}))
"""
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "MLFLOW_ALLOW_FILE_STORE": "true"}
    env |= {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    done = subprocess.run(
        [sys.executable, "-c", code, folder.as_uri()], capture_output=True, text=True, env=env, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_a_private_run_that_tells_no_loss_has_no_curve_of_it():
    history = History(Told())
    history.report("train", 1, 2, {"epsilon": "0.100000"})
    files = tracking_files(history, RECIPE, {}, "00" * 32)
    assert "loss" not in files["training/history.jsonl"].decode()
    assert not [name for name in files if name.endswith("train.loss")]


def test_no_figures_no_picture():
    assert "training/loss.png" not in tracking_files(History(Told()), RECIPE, {}, "00" * 32)


def test_a_curve_is_where_its_points_are():
    from PIL import Image

    def dark(picture: bytes) -> int:
        pixels = Image.open(io.BytesIO(picture)).convert("RGB").get_flattened_data()
        return sum(1 for red, _, blue in pixels if red < 60 and blue > 90)

    empty = draw_curves("$x^$ is text", {"loss": []}, {})
    full = draw_curves("$x^$ is text", {"loss": [(0, 0.0), (10, 1.0)]}, {"rate": [(5, 1.0)]})
    assert dark(full) > dark(empty) + 500


class Plane:
    """A control plane that answers with ``pages`` of events."""

    def __init__(self, *pages: list[dict[str, Any]]) -> None:
        self._pages = pages

    def events(self, digest: str, after: int, *, wait: int = 20) -> dict[str, Any]:
        assert wait == 0
        found = [e for page in self._pages for e in page if e["seq"] > after]
        return {"events": found[:2], "final": True}


def entry(seq: int, **event: Any) -> dict[str, Any]:
    return {"seq": seq, "event": {"kind": "progress", "stage": "train", "step": seq, "total": 9, **event}}


def plotted(*pages: list[dict[str, Any]]) -> bytes:
    plane: Any = Plane(*pages)
    return plot_job(plane, "ab" * 32)


def test_a_job_is_drawn_from_all_that_it_told():
    told = [entry(n, values={"loss": f"{1 / n}", "learning_rate": "0.1"}) for n in range(1, 6)]
    assert plotted(told).startswith(PNG)
    assert plotted([entry(1, values={"learning_rate": "0.1"})]).startswith(PNG)


def test_a_job_that_told_nothing_says_so():
    with pytest.raises(Misuse, match="contract's telemetry"):
        plotted([{"seq": 1, "event": {"kind": "state", "code": "keys"}}, entry(2, values={})])


@pytest.mark.parametrize(
    "bad", [entry(1, values={"loss": "no number"}), entry(1, values=[1]), entry(1), {"seq": 1, "event": {}}]
)
def test_an_account_that_is_none(bad: dict[str, Any]):
    with pytest.raises(Malformed):
        plotted([bad])


def test_an_account_without_end():
    class Endless(Plane):
        def events(self, digest: str, after: int, *, wait: int = 20) -> dict[str, Any]:
            return {"events": [entry(after + n, values={}) for n in range(1, 1001)], "final": False}

    plane: Any = Endless()
    with pytest.raises(Unavailable):
        plot_job(plane, "ab" * 32)
