"""A training that writes checkpoints beside itself is killed with SIGKILL again and again, at random moments. Whatever
was recorded is whole by the word of the independent checker, nothing lies there in plaintext, and the run that goes on
from there ends bit for bit like one that nobody killed."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cloister.crypto import Envelope, hkdf, sha256
from cloister.errors import CloisterError
from cloister.sealed import check_ciphertext, read_envelope

KILLS = 60
RECIPE = {
    "task": "classification", "method": "full", "data": "bank/queries", "base": "lab/tiny", "threads": 1,
    "columns": {"text": "text", "label": "label"}, "batch_size": 8, "epochs": 4, "learning_rate": "0.01",
    "checkpoint_steps": 2, "max_steps": 24, "precision": "fp32",
}  # fmt: skip
SECRET = b"s" * 32


class Instance:
    """Runs in the child: one instance of the training, in ``folder``, with brokers that are a file."""

    def __init__(self, folder: Path) -> None:
        from cloister.workload.checkpoints import SealedCheckpoints
        from cloister.workload.identity import WorkloadIdentity
        from cloister.workload.key_session import RunContext
        from tests.bundles import INSTANCE, make_contract, make_job

        contract = make_contract()
        run = RunContext(contract, make_job(contract), INSTANCE, "tpm", WorkloadIdentity(), None)  # type: ignore[arg-type]
        self.folder, self.brokers = folder, folder / "recorded"
        known = recorded(folder)
        self.sink = SealedCheckpoints(run, SECRET, folder / "checkpoints", known=known, record=self.record)

    def record(self, text: str) -> None:
        """As a broker: steps only grow, and once this returns it is known for good."""
        body = Envelope.from_bytes(text.encode()).document()
        before = recorded(self.folder)
        assert before is None or body["step"] > before[0]
        new = self.brokers.with_suffix(".new")
        new.write_text(json.dumps([body["step"], body["root"]]))
        new.replace(self.brokers)

    def train(self) -> dict[str, Any]:
        from functools import partial

        from cloister.contracts.recipe import parse_recipe
        from cloister.workload.data import read_table
        from cloister.workload.training import background, export_files, load_base, run_training
        from cloister.workload.training.snapshot import Snapshot
        from tests.tiny_models import Recorder, banking_csv, readers, tiny_bert

        background.Snapshot = partial(Snapshot, 65536)  # type: ignore[assignment,misc]  # several files
        recipe = parse_recipe(RECIPE)
        table = read_table({"q.csv": io.BytesIO(banking_csv(120))}, recipe.columns.names())
        watch = Recorder()
        result = run_training(
            recipe, load_base(readers(tiny_bert())), table, sink=self.sink, progress=watch, lease=watch
        )
        digests = {name: sha256(data).hex() for name, data in export_files(result).items()}
        return {"files": digests, "scores": result.evaluation.document(), "from": result.timings.resumed_from}


def recorded(folder: Path) -> tuple[int, bytes] | None:
    try:
        step, root = json.loads((folder / "recorded").read_text())
    except FileNotFoundError:
        return None
    return step, bytes.fromhex(root)


def nursery() -> None:
    """Loads the training libraries once; then for every folder named on stdin a child trains there."""
    import torch
    from transformers import Trainer

    from tests.tiny_models import tiny_bert

    assert Trainer
    torch.set_num_threads(1)  # no pool of threads may exist when this forks
    tiny_bert()
    for line in sys.stdin:
        order = json.loads(line)
        began = time.monotonic()
        pid = os.fork()
        if pid == 0:
            _train_in(Path(order["folder"]))
            os._exit(0)
        if order["kill"] is not None:
            _wait_for(pid, Path(order["folder"]), *order["kill"])
            os.kill(pid, signal.SIGKILL)  # it is this process's child: if it has ended by now, its number is still its
        _, status = os.waitpid(pid, 0)
        print(json.dumps([os.waitstatus_to_exitcode(status), time.monotonic() - began]), flush=True)


def _wait_for(pid: int, folder: Path, names: int, seconds: float) -> None:
    """Until so many new names were seen among the checkpoints, or the child has ended; then so many seconds more."""
    old = set(os.listdir(folder / "checkpoints"))
    seen: set[str] = set()
    while len(seen) < names and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        seen |= set(os.listdir(folder / "checkpoints")) - old
        time.sleep(0.0005)
    time.sleep(seconds)


def _train_in(folder: Path) -> None:
    try:
        result = Instance(folder).train()
        (folder / "result.new").write_text(json.dumps(result, sort_keys=True))
        (folder / "result.new").replace(folder / "result")
    except BaseException as error:
        (folder / "error").write_text(repr(error))


@dataclass
class Nursery:
    process: subprocess.Popen[str]
    seconds: float = 0.0

    def run(self, folder: Path, kill: tuple[int, float] | None = None) -> bool:
        """Train in ``folder``; False if it was killed before it was done: after ``kill[0]`` new names among its
        checkpoints and ``kill[1]`` seconds. ``seconds``: how long it lived."""
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"folder": str(folder), "kill": kill}) + "\n")
        self.process.stdin.flush()
        status, self.seconds = json.loads(self.process.stdout.readline())
        assert not (folder / "error").exists(), (folder / "error").read_text()
        assert status in (0, -signal.SIGKILL)
        return bool(status == 0)


@pytest.fixture
def nursery_process() -> Iterator[Nursery]:
    with subprocess.Popen(
        [sys.executable, "-c", "from tests.adversarial.test_checkpoint_killed import nursery; nursery()"],
        cwd=Path(__file__).resolve().parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
    ) as process:  # fmt: skip
        yield Nursery(process)
        process.kill()


def signer() -> bytes:
    from cloister.crypto import SigningKey, frame

    return SigningKey(hkdf(SECRET, info=frame("cloister/checkpoint-signer/v1"))).public


def check(folder: Path) -> int:
    """The state after a kill; the recorded step, or 0."""
    known = recorded(folder)
    place = folder / "checkpoints"
    for path in place.rglob("*") if place.exists() else ():
        if path.is_file():
            data = path.read_bytes()
            assert path.name == "manifest.json" or data[:1] in (b"", b"\x28"), "not a sealed file"
            # What every safetensors header and every state.json says.
            assert b"data_offsets" not in data
            assert b"identity" not in data
    for whole in (p for p in place.glob("*") if p.name.isdecimal()):
        check_ciphertext(whole, signer_keys=[signer()])  # whole as long as it has that name, recorded or not
    if known is None:
        return 0
    step, root = known
    assert read_envelope(place / f"{step:08d}").digest == root
    return step


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_training_is_killed_at_any_moment(nursery_process: Nursery, tmp_path: Path) -> None:
    chance = random.Random(6)
    assert nursery_process.run(tmp_path / "whole")
    took = nursery_process.seconds
    expected = json.loads((tmp_path / "whole" / "result").read_text())
    kills = finished = 0
    steps: set[int] = set()
    resumed: list[int] = []
    while kills < KILLS or not finished:
        folder = tmp_path / f"run-{finished}"
        step = check(folder)
        # Most while checkpoints are written: partial folders, finished ones and those being removed have names. Some
        # at any moment of a run.
        kill = (0, chance.uniform(0, took)) if kills % 6 == 5 else (chance.randint(1, 5), chance.uniform(0, 0.03))
        if nursery_process.run(folder, kill if kills < KILLS else None):
            found = json.loads((folder / "result").read_text())
            assert {**found, "from": 0} == expected
            assert found["from"] == step
            resumed.append(found["from"])
            finished += 1
        else:
            kills += 1
            steps.add(check(folder))
            assert check(folder) >= step
    assert kills >= KILLS
    assert len(steps) > 5, "the kills did not hit different stages"
    assert any(resumed), "no run went on from a checkpoint"


def test_the_check_of_the_crash_test_finds_what_it_looks_for(tmp_path: Path) -> None:
    """Two checkpoints by hand: whole, then with a byte changed, then with plaintext beside them."""
    one = Instance(tmp_path)
    for step in (2, 4):
        one.sink.save(step, [("state.json", io.BytesIO(b'{"identity":1}'))])
    assert check(tmp_path) == 4
    place = tmp_path / "checkpoints" / "00000004" / "0000.sealed"
    good = place.read_bytes()
    place.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(CloisterError):
        check(tmp_path)
    place.write_bytes(good)
    (tmp_path / "checkpoints" / "left").write_bytes(b'\x28{"data_offsets":1}')
    with pytest.raises(AssertionError):
        check(tmp_path)
