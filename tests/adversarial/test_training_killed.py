"""A training process is killed with SIGKILL at random moments: by the clock, amid a write of a checkpoint, right before
or after a change of its folder. Every time the next process goes on from what was recorded, sees the rows in the order
of the run that nobody killed, and ends in the same weights, bit for bit."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cloister.contracts.recipe import parse_recipe
from cloister.crypto import sha256
from cloister.workload.data import read_table
from cloister.workload.training import background, export_files, load_base, run_training
from cloister.workload.training.batching import row_digest
from cloister.workload.training.pieces import Pieces
from cloister.workload.training.snapshot import Snapshot
from tests.adversarial.test_checkpoint_killed import Instance, check
from tests.deaths import Death, Nursery, Say, fast_place, nursery_of, random_death
from tests.tiny_models import Recorder, banking_csv, readers, tiny_bert

KILLS = 20
WHOLE = Death(lines=1 << 30)
LORA: dict[str, Any] = {
    "task": "classification", "method": "lora", "data": "bank/queries", "base": "lab/tiny", "threads": 1,
    "columns": {"text": "text", "label": "label"}, "batch_size": 4, "gradient_accumulation": 2, "epochs": 2,
    "learning_rate": "0.01", "checkpoint_steps": 3, "max_steps": 20, "precision": "fp32",
    "lora": {"rank": 4, "dropout": "0.2"},
}  # fmt: skip
# Full fine-tuning has no dropout; it keeps the best weights beside the last ones instead.
FULL = {**{name: value for name, value in LORA.items() if name != "lora"},
        "method": "full", "select": "best", "evaluate_steps": 4}  # fmt: skip


def train(say: Say, folder: Path, seed: int) -> None:
    """The victim. It says which rows each pass sees, and at last what came of it; then it is dead, as always."""
    background.Snapshot = partial(Snapshot, 65536)  # type: ignore[assignment,misc]  # several files
    learn = Pieces.learn

    def told(self: Any, step: int, rows: Any, *rest: Any) -> Any:
        say("rows", step, row_digest(rows))
        return learn(self, step, rows, *rest)

    Pieces.learn = told  # type: ignore[method-assign]
    recipe = parse_recipe(json.loads((folder / "recipe").read_text()))
    table = read_table({"q.csv": io.BytesIO(banking_csv(120))}, recipe.columns.names())
    watch = Recorder()
    result = run_training(
        recipe, load_base(readers(tiny_bert())), table, sink=Instance(folder).sink, progress=watch, lease=watch
    )
    digests = {name: sha256(data).hex() for name, data in export_files(result).items()}
    chosen = dict(result.timings.training)
    say(
        "done",
        {"files": digests, "scores": result.evaluation.document(), "training": chosen},
        result.timings.resumed_from,
    )
    os.kill(os.getpid(), signal.SIGKILL)


def ready(folder: Path, recipe: dict[str, Any]) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "recipe").write_text(json.dumps(recipe))
    return folder


def seen(lines: list[list[Any]]) -> dict[int, list[str]]:
    """The rows of each step that was begun, pass by pass."""
    found: dict[int, list[str]] = {}
    for kind, *line in lines:
        if kind == "rows":
            found.setdefault(line[0], []).append(line[1])
    return found


def life_of(nursery: Nursery, folder: Path, death: Death) -> tuple[list[list[Any]], list[Any] | None]:
    """What it said of its rows; and what came of it, or None if it was killed before."""
    lines = nursery.life("train", folder, 0, death)
    return [line for line in lines if line[0] == "rows"], lines[-1] if lines and lines[-1][0] == "done" else None


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("recipe", [LORA, FULL], ids=["lora", "full"])
def test_twenty_random_kills_change_nothing(recipe: dict[str, Any]) -> None:
    """Each of twenty runs is killed once. What goes on from there must be the run that nobody killed."""
    chance, kills, stages = random.Random(5), 0, []
    with nursery_of(__name__) as nursery, fast_place() as place:
        folder = ready(place / "whole", recipe)
        began = time.monotonic()
        lines, expected = life_of(nursery, folder, WHOLE)
        lasted, order = time.monotonic() - began, seen(lines)
        assert sorted(order) == list(range(20))
        assert len({digest for passes in order.values() for digest in passes}) > 35  # so another order would be seen
        # Of seven checkpoints the last two are there. Each is some files, synced and renamed.
        size = 3 * sum(path.stat().st_size for path in (folder / "checkpoints").rglob("*") if path.is_file())
        for number in range(1000):
            folder = ready(place / str(number), recipe)
            before, done = life_of(nursery, folder, random_death(chance, number, seconds=lasted, size=size, steps=150))
            if done is not None:
                continue  # it was done before its death came
            kills += 1
            recorded = check(folder)
            after, done = life_of(nursery, folder, WHOLE)
            for step, passes in seen(before).items():
                assert passes == order[step][: len(passes)], "the killed run saw other rows"
            assert seen(after) == {step: passes for step, passes in order.items() if step >= recorded}
            assert done is not None
            assert expected is not None
            assert done[1:] == [expected[1], recorded]
            stages.append(recorded)
            print(f"{kills}: {recipe['method']}, in step {max(seen(before), default=0)}, from {recorded}", flush=True)
            if kills == KILLS:
                break
    assert len(set(stages)) > 3, "the kills did not hit different stages"
