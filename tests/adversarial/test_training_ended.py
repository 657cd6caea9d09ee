"""A lease is revoked while a step is being computed, or somebody ends the process there: nothing of that step is kept,
nothing is released, and what was recorded before is whole."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cloister.contracts.recipe import parse_recipe
from cloister.errors import Denied, Internal
from cloister.workload import leases as leases_module
from cloister.workload.data import read_table
from cloister.workload.training import load_base, run_training
from cloister.workload.training.pieces import Pieces
from tests.adversarial.test_checkpoint_after_revocation import Instance
from tests.adversarial.test_checkpoint_killed import check
from tests.adversarial.test_training_killed import LORA, ready
from tests.keepers import join_keepers
from tests.patience import until
from tests.tiny_models import Recorder, banking_csv, readers, tiny_bert


def test_a_lease_is_revoked_in_mid_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(leases_module.os, "_exit", codes.append)  # a process that ended can't be asked anything
    one, learn = Instance(tmp_path), Pieces.learn

    def revoked(self: Any, step: int, *rest: Any) -> Any:
        loss = learn(self, step, *rest)
        if step == 7 and not codes:
            until("the checkpoint before", lambda: len(one.records) == 2)
            one.cut()  # in another thread, in life
        return loss

    monkeypatch.setattr(Pieces, "learn", revoked)
    recipe = parse_recipe(LORA)
    table = read_table({"q.csv": io.BytesIO(banking_csv(120))}, recipe.columns.names())
    with pytest.raises((Denied, Internal)) as caught:
        run_training(
            recipe, load_base(readers(tiny_bert())), table, sink=one.sink, progress=Recorder(), lease=one.lease
        )
    join_keepers()
    assert caught.value.code in ("contract.revoked", "checkpoint.cut")
    assert codes == [leases_module.EXIT_LEASE_LOST]
    assert repr(one.ring) == "KeyRing(0 keys)"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000003", "00000006"]
    assert len(one.records) == 2


@pytest.mark.slow
def test_a_process_is_asked_to_end_in_mid_step(tmp_path: Path) -> None:
    """It has no handler that could hold it up or write anything: it is gone at once, and its checkpoint is whole."""
    folder = ready(tmp_path / "run", {**LORA, "epochs": 1000, "max_steps": 10_000, "checkpoint_steps": 2})
    code = (
        "import pathlib, sys, tests.adversarial.test_training_killed as t;"
        "t.train(lambda *said: None, pathlib.Path(sys.argv[1]), 0)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], cwd=Path(__file__).resolve().parents[2]
    ) as process:
        until("a recorded checkpoint", (folder / "recorded").exists)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert process.wait(60) == -signal.SIGTERM
        assert time.monotonic() - began < 30
    assert check(folder) == json.loads((folder / "recorded").read_text())[0] > 0
    assert {path.name for path in folder.iterdir()} <= {"checkpoints", "recipe", "recorded", "recorded.new"}
