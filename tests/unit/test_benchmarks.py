"""The result line of benchmarks, and the arithmetic of the comparison, with invented figures. Nothing is timed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks import machine, result_line
from benchmarks._bare import Folder
from benchmarks._timing import FIXED, Timed, compare


def _line(metrics: dict[str, float], **more: Any) -> dict[str, Any]:
    line = result_line("subject", metrics, baseline="doing nothing", n=3, **more)
    assert "\n" not in line
    return dict(json.loads(line))


def test_the_result_line_has_its_shape_and_ratios_come_first() -> None:
    body = _line({"seconds": 12.345678, "speed_ratio": 0.98765432, "steps": 3}, on="a machine")
    assert list(body) == ["name", "metrics", "baseline", "n", "machine"]
    assert list(body["metrics"].items()) == [("speed_ratio", 0.9877), ("seconds", 12.3457), ("steps", 3)]
    assert (body["name"], body["baseline"], body["n"], body["machine"]) == ("subject", "doing nothing", 3, "a machine")


def test_the_machine_is_described_by_default() -> None:
    body = _line({"speed_ratio": 1.0})
    assert " cores" in body["machine"]
    assert " cores" in machine()


@pytest.mark.parametrize("metrics", [{"speed_ratio": math.nan}, {"speed_ratio": math.inf}, {"seconds": 1.0}, {}])
def test_no_result_without_a_comparison_or_with_figures_that_are_none(metrics: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="subject"):
        _line(metrics)


def _timed(train: float, wall: float, **parts: float) -> Timed:
    evaluation = {"accuracy": "0.9", "train_seconds": str(train), "train_steps": 100, "train_tokens": 5000}
    return Timed.from_evaluation(evaluation, parts, wall)


def test_each_confidential_run_is_compared_with_the_bare_one_beside_it() -> None:
    """The second pair met a busy machine; both sides of it did, so the ratio stays."""
    bare = [_timed(10.0, 20.0), _timed(40.0, 80.0), _timed(10.0, 20.0)]
    parts = dict.fromkeys(FIXED, 1.0) | {"prepare": 100.0}
    confidential = [_timed(12.5, 26.0, **parts), _timed(50.0, 104.0, **parts), _timed(10.0, 30.0, **parts)]
    found = compare(bare, confidential)
    assert found["throughput_ratio"] == pytest.approx(0.8)
    assert found["lowest_throughput_ratio"] == pytest.approx(0.8)
    assert found["highest_throughput_ratio"] == pytest.approx(1.0)
    assert found["wall_ratio"] == pytest.approx(1.3)
    assert found["fixed_overhead_s"] == pytest.approx(len(FIXED))
    assert found["added_outside_loop_s"] == pytest.approx(10.0)
    assert found["bare_steps_per_s"] == pytest.approx(10.0)
    assert found["confidential_steps_per_s"] == pytest.approx(8.0)
    assert found["prepare_s"] == 100.0
    assert _line(found)["metrics"]["throughput_ratio"] == 0.8


def test_a_plain_folder_reads_as_a_sealed_one_does(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "config.json").write_bytes(b"{}")
    (tmp_path / "sub" / "weights").write_bytes(b"1")
    folder = Folder.of(tmp_path)
    assert folder.paths() == ("config.json", "sub/weights")
    with folder.open("sub/weights") as file:
        assert file.read() == b"1"
    assert Folder.of(tmp_path / "config.json").paths() == ("config.json",)
