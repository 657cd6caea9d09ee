"""How long does training stand still for a sealed checkpoint? MiniLM is trained, and at every checkpoint in turn the
same state is either saved plainly (``safetensors.torch.save_file``, no fsync) or sealed beside the training.

    python -m benchmarks.checkpoint [--rounds 7] [--every 12] [--folder FOLDER]

Once with all weights trained (270 MB of weights and Adam moments), once with LoRA (a few MB). ``blocking_ratio`` is the
time that training stands still for a sealed checkpoint over that of the plain save, medians of the run with the large
state; ``lora_blocking_ratio`` the same with the small one. What the sealing costs the steps beside it is told as well:
``step_ratio`` is the time of a step that began while a checkpoint was being sealed over that of the other steps;
``beside_cost_s`` is what all steps up to the next checkpoint took longer than those after no checkpoint at all, and
``whole_cost_ratio`` is that and the standing still together, over the same of the plain save. Records go to a file that
is synced, in place of brokers.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, BinaryIO

from cloister.demo.data import generate, write_csv
from cloister.demo.story import base_model_folder
from cloister.node.profile import DEFAULT_ENV

from . import result_line, say
from ._bare import Folder

if TYPE_CHECKING:
    from cloister.workload.checkpoints import SealedCheckpoints
    from cloister.workload.training.snapshot import Parts

NAME = "checkpoint"
BASELINE = "safetensors.torch.save_file of the same weights and optimizer state, in the same training, without fsync"
ROOT = Path(__file__).resolve().parents[1]


KINDS = ("none", "plain", "sealed")


@dataclass
class Seen:
    """Seconds. ``still``: training stood still, by kind of checkpoint; ``spans``: the steps up to the next checkpoint,
    together, by kind; ``durable``: until sealed, synced and recorded; ``beside``, ``alone``: steps during and without
    a sealing."""

    still: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    spans: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    durable: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    state_bytes: int = 0

    def metrics(self) -> dict[str, float]:
        still = {kind: median(times) for kind, times in self.still.items()}
        spans = {kind: median(times) for kind, times in self.spans.items()}
        cost = {kind: spans[kind] - spans["none"] for kind in KINDS}
        return {
            "blocking_ratio": still["sealed"] / still["plain"],
            "step_ratio": median(self.beside) / median(self.alone),
            "whole_cost_ratio": (still["sealed"] + cost["sealed"]) / (still["plain"] + cost["plain"]),
            "blocking_s": still["sealed"],
            "first_blocking_s": self.still["sealed"][0],
            "worst_blocking_s": max(self.still["sealed"]),
            "plain_save_s": still["plain"],
            "beside_cost_s": cost["sealed"],
            "beside_cost_plain_s": cost["plain"],
            "durable_s": median(self.durable),
            "steps_per_s_beside": 1 / median(self.beside),
            "steps_per_s_alone": 1 / median(self.alone),
            "steps_beside": len(self.beside),
            "state_mb": self.state_bytes / 1e6,
            "sealed_mb_per_s": self.state_bytes / 1e6 / median(self.durable),
        }


class _Sink:
    """The real sink, timed."""

    def __init__(self, folder: Path, seen: Seen) -> None:
        self._sealed, self._seen = _sealed_checkpoints(folder), seen
        self.asked = 0.0

    def save(self, step: int, files: Iterable[tuple[str, BinaryIO]]) -> None:
        self._sealed.save(step, files)
        self._seen.durable.append(time.perf_counter() - self.asked)

    def latest(self) -> None:
        return None


def _sealed_checkpoints(folder: Path) -> SealedCheckpoints:
    from cloister.workload.checkpoints import SealedCheckpoints
    from cloister.workload.identity import WorkloadIdentity
    from cloister.workload.key_session import RunContext
    from cloister.workload.node_link import NodeLink
    from tests.bundles import INSTANCE, make_contract, make_job

    contract = make_contract()
    link = NodeLink(folder / "nobody.sock")
    run = RunContext(contract, make_job(contract), INSTANCE, "tpm", WorkloadIdentity(), link)

    def record(text: str) -> None:
        with (folder / "records").open("a") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())

    return SealedCheckpoints(run, os.urandom(32), folder / "sealed", known=None, record=record)


class _Unwatched:
    def check(self) -> None: ...

    def on_loss(self, clear: Any) -> None: ...

    def report(self, stage: str, step: int, total: int, values: Any) -> None: ...


def _save_plain(parts: Parts, folder: Path) -> None:
    from safetensors.torch import save_file

    folder.mkdir()
    for part, tensors in parts.items():
        save_file({name: tensor.detach() for name, tensor in tensors.items()}, folder / f"{part}.safetensors")


def _measured(seen: Seen, sink: _Sink, folder: Path) -> type[Any]:
    from transformers import TrainerCallback

    from cloister.workload.training.trainer import SealedTrainer

    class Steps(TrainerCallback):  # type: ignore[misc]
        """Times steps. Those before the first checkpoint warm the machine up and do not count."""

        def __init__(self, trainer: Any) -> None:
            self._trainer, self._begun, self._beside = trainer, 0.0, False

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self._beside, self._begun = self._trainer.checkpoint_writer.busy(), time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            took = time.perf_counter() - self._begun
            if self._trainer.span is not None:
                self._trainer.span.append(took)
                (seen.beside if self._beside else seen.alone).append(took)

    class Measured(SealedTrainer):
        """The kinds there and back in turn: what gets slower on this machine meanwhile favours none."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.checkpoint_writer = self._writer
            self.add_callback(Steps(self))
            self.span: list[float] | None = None
            self._turns: Iterator[str] = cycle((*KINDS, *reversed(KINDS)))
            self._kind = ""

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            if self.span is not None:
                seen.spans[self._kind].append(sum(self.span))
            self._kind, self.span = next(self._turns), []
            sink.asked = time.perf_counter()
            if self._kind == "sealed":
                super()._save_checkpoint(model, trial)
            begun = sink.asked
            if self._kind == "plain":
                parts, _ = self._state()
                seen.state_bytes = sum(t.nbytes for tensors in parts.values() for t in tensors.values())
                begun = time.perf_counter()  # of the plain side nothing counts but the saving itself
                _save_plain(parts, folder / "plain")
            seen.still[self._kind].append(time.perf_counter() - begun)
            shutil.rmtree(folder / "plain", ignore_errors=True)

    return Measured


def _train(method: str, rounds: int, every: int, folder: Path) -> Seen:
    import torch

    from cloister.contracts import parse_recipe
    from cloister.workload.data import read_table
    from cloister.workload.training import load_base, run_training
    from cloister.workload.training import run as training_run

    steps, batch = (3 * rounds + 1) * every, 16
    rows = folder / "rows.csv"
    write_csv(rows, generate(640, seed=20))
    recipe = parse_recipe({
        "task": "classification", "method": method, "data": "bench/rows", "base": "bench/minilm",
        "columns": {"text": "text", "label": "category"}, "batch_size": batch, "max_length": 64,
        "epochs": 1 + steps * batch // 400, "max_steps": steps, "checkpoint_steps": every, "precision": "fp32",
        "threads": torch.get_num_threads(), **({"learning_rate": "0.00001"} if method == "full" else {}),
    })  # fmt: skip
    base = Folder.of(base_model_folder())
    seen = Seen()
    sink = _Sink(folder, seen)
    training_run.SealedTrainer = _measured(seen, sink, folder)  # type: ignore[misc]
    table = read_table({"rows.csv": io.BytesIO(rows.read_bytes())}, recipe.columns.names())
    loaded = load_base({path: base.open(path) for path in base.paths()})
    run_training(recipe, loaded, table, sink=sink, progress=_Unwatched(), lease=_Unwatched())  # type: ignore[arg-type]
    return seen


def _in_its_own_process(method: str, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """With the sandbox's environment: glibc and OpenMP read it only when a process begins."""
    place = folder / method
    place.mkdir()
    command = [sys.executable, "-B", "-m", "benchmarks.checkpoint", "--method", method, "--folder", str(place)]
    command += ["--rounds", str(options.rounds), "--every", str(options.every)]
    done = subprocess.run(command, env=dict(DEFAULT_ENV), cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"the training failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    for key, value in found.items():
        say(f"  {method} {key} {value:.4f}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{NAME}", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="checkpoints of each kind, alternating")
    parser.add_argument("--every", type=int, default=12, help="steps between two checkpoints")
    parser.add_argument("--folder", type=Path, help="where checkpoints are written (default: a temporary folder)")
    parser.add_argument("--method", choices=["full", "lora"], help="one training in this process, figures as JSON")
    options = parser.parse_args()
    if options.rounds < 5:
        parser.error("at least 5 checkpoints of each kind")
    with tempfile.TemporaryDirectory(prefix="cloister-bench-", dir=options.folder) as scratch:
        if options.method:
            print(json.dumps(_train(options.method, options.rounds, options.every, Path(scratch)).metrics()))
            return 0
        say("all weights")
        metrics = _in_its_own_process("full", options, Path(scratch))
        say("LoRA")
        lora = _in_its_own_process("lora", options, Path(scratch))
    metrics |= {f"lora_{key}": value for key, value in lora.items()}
    print(result_line(NAME, metrics, baseline=BASELINE, n=options.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
