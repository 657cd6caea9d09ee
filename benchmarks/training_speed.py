"""How fast is training? Ours against transformers' Trainer and TRL's SFTTrainer, taking turns on the same machine.

    python -m benchmarks.training_speed [--rows 480] [--turn 4] [--eager] [--only scratch …]

Text: dialogues of mts_dialog, rows of up to 512 tokens, by a Llama of 15 million weights (the shape of llama2.c's
stories15M), from scratch and by LoRA on a base that was trained on the notes. Peers: the Trainer with dynamic padding
in float32; SFTTrainer with packing in bfloat16, as ours. The same rows, first weights, optimizer, rate, schedule and
real tokens (padding isn't counted), and about the same tokens a step. Every side runs plain and with torch.compile, and
the faster of the two counts; no side's first turn does, in which it compiles (``*_compile_s`` tells what that took).
Classification: section headers by MiniLM, LoRA and full, against the Trainer with dynamic padding in float32.

``vs_trainer``, ``vs_trl_packed``, ``cls_vs_trainer``: real tokens a second, ours over theirs, the worst of the methods.
``*_tokens_per_cpu_s`` counts the processors' seconds instead, on which a busy machine has less influence.
``loss_ratio``: loss on the validation rows after all tokens, ours over theirs, the worst.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

from . import result_line, say
from ._training_data import Work, column, make_base
from .quality import ENVIRONMENT, packaged_minilm

NAME = "training_speed"
ROOT = Path(__file__).resolve().parents[1]
BASELINE = (
    "transformers' Trainer with dynamic padding in float32, and TRL's SFTTrainer with its packing in bfloat16; plain or"
    " compiled, whichever is faster; same rows, same run"
)
TRAINING, VALIDATION = "MTS-Dialog-TrainingSet.csv", "MTS-Dialog-ValidationSet.csv"


class Side:
    """A process that trains, and stands still when it isn't its turn."""

    def __init__(self, work: Work, side: str, *, compiled: bool, steps: int, scratch: Path) -> None:
        self.name, self.compiled = side, compiled
        self.speeds: list[float] = []
        self.thrift: list[float] = []
        self.first = 0.0
        self.end: dict[str, Any] = {}
        order = json.dumps({"work": asdict(work), "side": side, "compiled": compiled, "steps": steps})
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks._training_sides", order], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **ENVIRONMENT, "TMPDIR": str(scratch)},
        )  # fmt: skip

    def turn(self) -> bool:
        """Train for a turn. False once the training has ended."""
        if self.end:
            return False
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended with {self._process.wait()}; see above.")
        told = json.loads(line)
        if told.get("ended"):
            self.end = told
        elif self.first == 0.0:
            self.first = told["seconds"] + told["before"]
        else:
            self.speeds.append(told["tokens"] / told["seconds"])
            self.thrift.append(told["tokens"] / told["cpu"])
        return not self.end

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        works = prepared(options, Path(folder))
        found = {name: compared(work, options, Path(folder)) for name, work in works.items()}
    if set(found) != set(KINDS):
        say("only a part was measured, so there is no last line")
        return
    print(result_line(NAME, metrics(found), baseline=BASELINE, n=min(f["turns"] for f in found.values())))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "mts_dialog")
    parser.add_argument("--minilm", type=Path, help="folder of all-MiniLM-L6-v2 (default: the installed package's)")
    parser.add_argument("--rows", type=int, default=480, help="dialogues that are trained on")
    parser.add_argument("--batch", type=int, default=10, help="rows of a step")
    parser.add_argument("--turn", type=int, default=4, help="steps of a turn")
    parser.add_argument("--turns", type=int, default=4, help="counted turns of sides whose loss isn't asked for")
    parser.add_argument("--eager", action="store_true", help="without torch.compile on any side")
    parser.add_argument("--only", nargs="+", default=list(KINDS), choices=KINDS)
    options = parser.parse_args()
    if not (options.data / TRAINING).is_file():
        sys.exit(f"{options.data} lacks {TRAINING}; name the folder with --data.")
    return options


KINDS = ("scratch", "lora", "cls-lora", "cls-full")


def prepared(options: argparse.Namespace, folder: Path) -> dict[str, Work]:
    texts = column(options.data / TRAINING, "dialogue")
    kinds = column(options.data / TRAINING, "section_header")
    cut(folder / "dialogues", list(zip(texts, kinds, strict=True))[: options.rows], options.data)
    cut(folder / "all", list(zip(texts, kinds, strict=True)), options.data)
    base = folder / "base"
    make_base(base, [*texts, *column(options.data / TRAINING, "section_text")])
    text = Work("scratch", str(base), str(folder / "dialogues"), options.rows, 1, options.batch)
    minilm = str(options.minilm or packaged_minilm())
    works = {"scratch": text}
    if "lora" in options.only:
        works["lora"] = replace(text, kind="lora", base=str(trained_base(text, options.data, folder)))
    for kind in ("cls-lora", "cls-full"):
        works[kind] = Work(kind, minilm, str(folder / "all"), len(texts), 3, 32)
    return {kind: works[kind] for kind in options.only}


def cut(folder: Path, rows: Sequence[tuple[str, str]], data: Path) -> None:
    folder.mkdir()
    validation = zip(column(data / VALIDATION, "dialogue"), column(data / VALIDATION, "section_header"), strict=True)
    for name, part in (("training.csv", rows), ("validation.csv", validation)):
        with (folder / name).open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([("dialogue", "section_header"), *part])


def trained_base(text: Work, data: Path, folder: Path) -> Path:
    """A base for LoRA: the same shape, trained from scratch on the notes that belong to the dialogues."""
    from cloister.workload.training import export_files, load_base, run_training

    from ._training_data import opened, table
    from ._training_sides import Silent

    say("a base for LoRA: training on the notes")
    notes = folder / "notes"
    notes.mkdir()
    with (notes / "training.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("dialogue",), *((note,) for note in column(data / TRAINING, "section_text"))])
    work = replace(text, data=str(notes), batch=16)
    recipe = work.recipe(compiled=False)
    rows, quiet = table(work, "training.csv", recipe.columns.names()), Silent()
    base = load_base(opened(work.base), weights=False)
    result = run_training(recipe, base, rows, sink=quiet, progress=quiet, lease=quiet)
    out = folder / "trained"
    out.mkdir()
    for name, content in export_files(result).items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
    return out


def compared(work: Work, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All sides of one method, in turns."""
    names = ("ours", "trainer") if work.classifies else ("ours", "trainer", "trl")
    scratch = folder / f"scratch-{work.kind}"
    scratch.mkdir()
    with ExitStack() as stack:
        sides = []
        for compiled in (False,) if options.eager else (False, True):
            for name in names:
                side = Side(work, name, compiled=compiled, steps=options.turn, scratch=scratch)
                stack.callback(side.close)
                sides.append(side)
        whole = [] if work.classifies else [side for side in sides if not side.compiled]
        turn = 0
        while turn < 1 + options.turns or any(not side.end for side in whole):
            for side in sides:
                if side in whole or turn < 1 + options.turns:
                    side.turn()
            turn += 1
            say(f"{work.kind}, turn {turn}: " + ", ".join(
                f"{s.name}{' compiled' if s.compiled else ''} {s.speeds[-1]:.0f}" for s in sides if s.speeds
            ))  # fmt: skip
    return summary(work, sides)


def summary(work: Work, sides: Sequence[Side]) -> dict[str, Any]:
    found: dict[str, Any] = {"turns": min(len(side.speeds) for side in sides)}
    for side in sides:
        key = f"{side.name}{'_compiled' if side.compiled else ''}"
        found[f"{key}_tokens_per_s"] = median(side.speeds)
        found[f"{key}_tokens_per_cpu_s"] = median(side.thrift)
        if side.compiled:
            found[f"{side.name}_compile_s"] = side.first
        if side.end:
            found[f"{key}_peak_mb"] = side.end["peak"]
            if side.end["loss"] is not None:
                found[f"{side.name}_loss"] = side.end["loss"]
    for name in {side.name for side in sides}:
        found[name] = max(median(side.speeds) for side in sides if side.name == name)
    say(f"{work.kind}: {json.dumps({key: round(value, 3) for key, value in found.items()})}")
    return found


def metrics(found: dict[str, dict[str, Any]]) -> dict[str, float]:
    texts = [f for name, f in found.items() if not name.startswith("cls-")]
    labels = [f for name, f in found.items() if name.startswith("cls-")]
    out: dict[str, float] = {}
    if texts:
        out["vs_trainer"] = min(f["ours"] / f["trainer"] for f in texts)
        out["vs_trl_packed"] = min(f["ours"] / f["trl"] for f in texts)
        out["loss_ratio"] = max(f["ours_loss"] / f[f"{peer}_loss"] for f in texts for peer in ("trainer", "trl"))
    if labels:
        out["cls_vs_trainer"] = min(f["ours"] / f["trainer"] for f in labels)
    for name, each in found.items():
        kind = name.replace("-", "_")
        for peer, label in (("trainer", "vs_trainer"), ("trl", "vs_trl_packed")):
            if peer in each:
                out[f"{kind}_{label}"] = each["ours"] / each[peer]
        out |= {f"{kind}_{key}": float(value) for key, value in each.items() if "_" in key}
    return out


if __name__ == "__main__":
    main()
