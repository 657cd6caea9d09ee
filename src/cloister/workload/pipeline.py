"""From two open sealed assets to files and figures: read, train, evaluate, gate. No key and no socket in here."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

from ..contracts import Gate, Recipe
from .data import column_forms, read_table
from .evaluation import apply_gates
from .script.host import PROGRAM_USAGE, run_script
from .training import (
    CheckpointSink,
    History,
    Lease,
    Progress,
    TrainingResult,
    export_files,
    load_base,
    run_training,
    tracking_files,
    usage_snippet,
)

__all__ = ["Inputs", "Outcome", "Readable", "train_and_evaluate"]


class Readable(Protocol):
    """A folder of files by path; a ``sealed.SealedObject`` is one."""

    def paths(self) -> tuple[str, ...]: ...

    def open(self, path: str) -> BinaryIO: ...


@dataclass(frozen=True)
class Inputs:
    """What the job and the contract fix. ``run``: the run's name, in hex. ``general``: None where the recipe names no
    asset of general text."""

    recipe: Recipe
    data: Readable
    base: Readable
    gates: Sequence[Gate]
    run: str
    general: Readable | None = None


@dataclass(frozen=True)
class Outcome:
    """``files``: adapter or model; ``evaluation``, ``gates``: canonical documents; ``usage``: code for the card."""

    files: Mapping[str, bytes]
    evaluation: Mapping[str, Any]
    gates: Sequence[Mapping[str, Any]]
    usage: str


def train_and_evaluate(inputs: Inputs, *, sink: CheckpointSink, progress: Progress, lease: Lease) -> Outcome:
    """Raises what the ports raise, and Misuse or Malformed for data or a base that don't fit the recipe."""
    if inputs.recipe.task == "script":
        return _run_program(inputs, sink=sink, progress=progress, lease=lease)
    with contextlib.ExitStack() as stack:
        columns = inputs.recipe.columns
        table = read_table(_files(inputs.data, stack), columns.names(), forms=column_forms(columns))
        general = None if inputs.general is None else read_table(_files(inputs.general, stack), ("text",))
        base = load_base(_files(inputs.base, stack), weights=inputs.recipe.method != "scratch")
    history = History(progress)
    result = run_training(
        inputs.recipe,
        base,
        table,
        sink=sink,
        progress=history,
        lease=lease,
        general=None if general is None else general.column("text"),
    )
    gates = apply_gates(inputs.gates, result.evaluation.scores)
    evaluation = {**result.evaluation.document(), **_timings(result)}
    return Outcome(
        files={**export_files(result), **tracking_files(history, inputs.recipe, evaluation, inputs.run)},
        evaluation=evaluation,
        gates=[gate.document() for gate in gates],
        usage=usage_snippet(result),
    )


def _run_program(inputs: Inputs, *, sink: CheckpointSink, progress: Progress, lease: Lease) -> Outcome:
    history = History(progress)
    result = run_script(inputs.recipe, inputs.base, inputs.data, sink=sink, progress=history, lease=lease)
    evaluation = result.evaluation.document()
    return Outcome(
        files={**result.files, **tracking_files(history, inputs.recipe, evaluation, inputs.run)},
        evaluation=evaluation,
        gates=[gate.document() for gate in apply_gates(inputs.gates, result.scores)],
        usage=PROGRAM_USAGE,
    )


def _files(source: Readable, stack: contextlib.ExitStack) -> dict[str, BinaryIO]:
    return {path: stack.enter_context(source.open(path)) for path in source.paths()}


def _timings(result: TrainingResult) -> dict[str, str | int]:
    """What the training loop alone took; decimal text, because canonical documents hold no fractions."""
    timings = result.timings
    return {
        "resumed_from": timings.resumed_from,
        "train_rows_full": sum(length >= result.max_length for length in timings.lengths),
        "train_seconds": f"{timings.train_seconds:.3f}",
        "train_steps": timings.steps,
        "train_tokens": timings.tokens,
        **timings.training,
    }
