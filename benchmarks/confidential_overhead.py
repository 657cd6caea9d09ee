"""What does confidentiality cost? One recipe, trained bare and trained confidentially, alternately, on this machine.

Bare: ``_bare``. Confidential: the whole path of a job, from sealing to pulling, through the operations that the command
line uses: two parties with a broker each, one contract, software TPM, sandbox, leases, sealed checkpoints.

    python -m benchmarks.confidential_overhead [--rounds 3] [--rows 1200] [--epochs 2] [--data FILE.csv]

``throughput_ratio`` compares the training loops alone (steps a second, confidential over bare; 1 is free);
``fixed_overhead_s`` is what comes on top of it once per job.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloister.client import Home, operations
from cloister.client.sealing import SealOptions
from cloister.demo.data import generate, write_csv
from cloister.demo.story import base_model_folder

from . import _bare, result_line, say
from ._timing import Timed, compare

NAME = "confidential_overhead"
BASELINE = "the same training code in the same environment on plain files: no sealing, sandbox, attestation or lease"

_CONTRACT = """
name: overhead-{number}
parties: [hospital, lab]
assets: [hospital/rows, lab/minilm]
purpose: measure what confidentiality costs
recipes: {{tasks: [classification], methods: [lora], max_epochs: 100}}
runs: 1
outputs:
  - {{name: hospital/adapter, form: adapter, recipients: [hospital]}}
unbounded_memorization: [hospital]
telemetry: [loss, accuracy]
lease_seconds: {lease}
assurance: none
regions: [local]
expires: 1d
"""

_RECIPE = """
task: classification
method: lora
data: hospital/rows
base: lab/minilm
columns: {{text: text, label: category}}
epochs: {epochs}
max_length: 192
checkpoint_steps: {checkpoint_steps}
"""


@dataclass
class Parties:
    """A home of its own with two parties; every ``run`` is one job's whole path."""

    home: Home
    folder: Path
    lease: int
    number: int = 0

    def run(self, recipe: str, data: Path, base: Path) -> Timed:
        self.number += 1
        parts: dict[str, float] = {}
        started = time.monotonic()
        with _timed(parts, "seal"):
            operations.seal(self.home, data, "hospital/rows", SealOptions(schema=("text", "category")))
            operations.seal(self.home, base, "lab/minilm", SealOptions())
        with _timed(parts, "agree"):
            contract = self._agree()
        job = operations.submit(self.home, recipe, contract, "hospital")
        outcome = operations.follow(self.home.control("hospital"), str(job["digest"]))
        if not outcome.succeeded:
            raise RuntimeError(f"the run ended as {outcome.job['state']}: {outcome.job.get('error')}")
        parts |= {name: float(seconds) for name, seconds in outcome.job["timings"].items()}
        target = self.folder / f"out-{self.number}"
        with _timed(parts, "pull"):
            operations.pull(self.home, "hospital/adapter", target, "hospital")
        wall = time.monotonic() - started
        return Timed.from_evaluation(json.loads((target / "evaluation.json").read_text()), parts, wall)

    def _agree(self) -> str:
        text = _CONTRACT.format(number=self.number, lease=self.lease)
        agreement = operations.new_contract(self.home, text, folder=self.folder, party="hospital")
        for party in ("hospital", "lab"):
            agreement = operations.sign_contract(self.home, agreement, party)
        return agreement.contract.digest.hex()


@contextlib.contextmanager
def _timed(parts: dict[str, float], name: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    parts[name] = time.monotonic() - started


@contextlib.contextmanager
def _parties(folder: Path, lease: int) -> Iterator[Parties]:
    home = Home(folder / "home")
    say("starting control plane, node and brokers; building and measuring the image")
    operations.up(home)
    try:
        for name in ("hospital", "lab"):
            operations.create_party(home, name, secrets.token_urlsafe(16))
        yield Parties(home, folder, lease)
    finally:
        operations.down(home)


def _measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    recipe = _RECIPE.format(epochs=options.epochs, checkpoint_steps=options.checkpoint_steps)
    data, base = options.data or folder / "rows.csv", base_model_folder()
    if options.data is None:
        write_csv(data, generate(options.rows, seed=20))
    bare: list[Timed] = []
    confidential: list[Timed] = []
    with _parties(folder, options.lease) as parties:
        for number in range(options.rounds):
            sides = [("bare", bare, _bare.run), ("confidential", confidential, parties.run)]
            # ABBA: what gets steadily slower or faster on this machine meanwhile favours neither side.
            for what, times, run in sides if number % 2 == 0 else reversed(sides):
                times.append(_told(what, number, run(recipe, data, base)))
    if len({t.accuracy for t in (*bare, *confidential)}) != 1:
        say("warning: the two sides did not reach the same accuracy, so they did not compute the same")
    return compare(bare, confidential)


def _told(what: str, number: int, timed: Timed) -> Timed:
    say(
        f"{number + 1}. {what}: {timed.steps} steps in {timed.train:.2f} s, {timed.steps_per_second:.3f} steps/s; "
        f"in all {timed.wall:.1f} s; load {os.getloadavg()[0]:.1f}"
    )
    if timed.parts:
        say("   " + ", ".join(f"{name} {seconds:.2f}" for name, seconds in timed.parts.items()))
    return timed


def main() -> int:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{NAME}", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side, alternating")
    parser.add_argument("--rows", type=int, default=1200, help="generated dialogues")
    parser.add_argument("--data", type=Path, help="a CSV file with the columns text and category instead")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument(
        "--lease", type=int, default=30, help="seconds; shorter leases cost more (default of contracts)"
    )
    parser.add_argument("--checkpoint-steps", type=int, default=50)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cloister-bench-") as scratch:
        folder = Path(scratch)
        folder.chmod(0o711)  # the parts run as users of their own and must be able to get to their folders
        metrics = _measure(options, folder)
    print(result_line(NAME, metrics, baseline=BASELINE, n=options.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
