"""How the training went, for the recipients: a line of JSON a point, the loss as a picture, and a run for MLflow.

MLflow's file store is a folder a run: ``meta.yaml``, a file a parameter and a tag, and a file a metric with a line
``<unix ms> <value> <step>`` a point (MLflow 3.17, file store; ``mlflow migrate-filestore`` takes it into a
database). The artifact's place is the folder of the run, wherever it lies.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ...contracts import Recipe
from ...crypto import canonical_json
from ...plots import draw_curves
from .history import History, Point

__all__ = ["tracking_files"]

_EXPERIMENT = "1"
_FINISHED = 3  # MLflow's RunStatus
_PARAMETER_LIMIT = 6000  # characters that MLflow takes


def tracking_files(history: History, recipe: Recipe, figures: Mapping[str, Any], run: str) -> dict[str, bytes]:
    """``training/history.jsonl``, ``training/loss.png`` where a loss was told, and ``training/mlruns/…``.

    ``figures``: the evaluation's, of which the plain ones become the run's tags. ``run``: the run's name, in hex.
    """
    points = history.points
    files = {"history.jsonl": b"".join(_line(point) for point in points)}
    left = {name: curve for name in ("loss", "epsilon") if (curve := history.curve("train", name))}
    looks = {f"validation {name}": curve for name in _names(points, "look") if (curve := history.curve("look", name))}
    if left or looks:
        rate = history.curve("train", "learning_rate")
        files["loss.png"] = draw_curves(
            f"{recipe.task}, {recipe.method}", left | looks, {"learning_rate": rate} if rate else {}
        )
    files |= {f"mlruns/{name}": data for name, data in _mlflow(points, recipe, figures, run[:32]).items()}
    return {f"training/{name}": data for name, data in files.items()}


def _line(point: Point) -> bytes:
    document = {"stage": point.stage, "step": point.step, "values": dict(point.values), "when_ms": point.when}
    return json.dumps(document, sort_keys=True).encode() + b"\n"


def _names(points: Sequence[Point], stage: str) -> list[str]:
    return sorted({name for point in points if point.stage == stage for name in point.values})


def _mlflow(points: Sequence[Point], recipe: Recipe, figures: Mapping[str, Any], run: str) -> dict[str, bytes]:
    began, ended = (points[0].when, points[-1].when) if points else (0, 0)
    folder = f"{_EXPERIMENT}/{run}"
    files = {
        f"{_EXPERIMENT}/meta.yaml": _yaml(
            artifact_location=".", creation_time=began, experiment_id=_EXPERIMENT, last_update_time=ended,
            lifecycle_stage="active", name="cloister",
        ),
        f"{folder}/meta.yaml": _yaml(
            artifact_uri=f"./{folder}/artifacts", end_time=ended, entry_point_name="", experiment_id=_EXPERIMENT,
            lifecycle_stage="active", run_id=run, run_name=run, source_name="", source_type=4, source_version="",
            start_time=began, status=_FINISHED, tags=[], user_id="cloister",
        ),
    }  # fmt: skip
    # MLflow takes a folder for a run only if it has all four of its parts.
    files[f"{folder}/artifacts/recipe.json"] = canonical_json(recipe.to_document())
    metrics: dict[str, list[str]] = {}
    for point in points:
        for name, value in point.values.items():
            metrics.setdefault(f"{point.stage}.{name}", []).append(f"{point.when} {value} {point.step}\n")
    files |= {f"{folder}/metrics/{name}": "".join(lines).encode() for name, lines in metrics.items()}
    for name, value in recipe.to_document().items():
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        files[f"{folder}/params/{name}"] = text[:_PARAMETER_LIMIT].encode()
    plain = {name: str(value) for name, value in figures.items() if isinstance(value, str | int)}
    tags = {"mlflow.runName": run, **{f"cloister.{name}": value for name, value in plain.items()}}
    return files | {f"{folder}/tags/{name}": value.encode() for name, value in tags.items()}


def _yaml(**fields: Any) -> bytes:
    """JSON's scalars and lists are YAML's."""
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in sorted(fields.items())).encode()
