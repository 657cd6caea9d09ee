"""Training by several processes: the rows of each, the same result as one process, resuming, and ends of all kinds."""

from __future__ import annotations

import copy
import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cloister.contracts.recipe import parse_recipe
from cloister.errors import CloisterError, Denied, Misuse, Unavailable
from cloister.workload.training import export_files
from cloister.workload.training import run as run_module
from cloister.workload.training.batching import IGNORED
from cloister.workload.training.distributed import require_processors, team, train_together
from cloister.workload.training.distributed.handed import Handed, read_inputs, seal_inputs
from cloister.workload.training.distributed.shares import SHARE, Shares, share_loader
from cloister.workload.training.trainer import SealedTrainer
from tests.patience import PATIENCE, until
from tests.tiny_models import MemorySink, Recorder
from tests.unit.test_workload_training_engine import CLASSIFY, GENERATE, full, run

TWO = {"processes": 2, "threads": 2, "compile": "off", "max_steps": 12}
# Without dropout, which each process draws for its own rows. Far from where Adam makes much of the last bits of a sum.
SAME = {**TWO, "lora": {"rank": 4}, "learning_rate": "0.001"}
NEEDS_TWO = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two processes need two processors")


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach() for name, tensor in model.named_parameters()}


def far(one: Any, two: Any) -> float:
    theirs = weights(two)
    return max(float((tensor - theirs[name]).abs().max()) for name, tensor in weights(one).items())


# --- which rows are whose -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "batch", "size"), [(23, 8, 2), (23, 8, 3), (17, 8, 5), (8, 8, 8), (1, 4, 2)])
def test_together_they_see_each_batch_of_one_process_once(rows: int, batch: int, size: int) -> None:
    order: Any = list(torch.randperm(rows, generator=torch.Generator().manual_seed(1)).tolist())
    shares = [list(Shares(order, batch, rank, size)) for rank in range(size)]
    alone = [order[i : i + batch] for i in range(0, rows, batch)]
    assert {len(own) for own in shares} == {len(alone)}
    for number, rows_of_all in enumerate(alone):
        pieces = [p for own in shares for p in own[number]]
        assert sorted(p.place for p in pieces if p.own) == sorted(rows_of_all)
        assert all(p.all == len(rows_of_all) for p in pieces)
        assert all(p.own == 0 for own in shares for p in own[number][1:] if not own[number][0].own)


def test_a_process_without_rows_of_a_batch_learns_nothing_from_it() -> None:
    order: Any = [0]
    rows: Any = [(5, 7)]
    collate: Callable[..., dict[str, torch.Tensor]] = lambda found: {"labels": torch.tensor([y for _, y in found])}  # noqa: E731
    first, second = (
        next(iter(share_loader(rows, collate, Shares(order, 4, rank, 2), 2, pin=False))) for rank in (0, 1)
    )
    assert (first["labels"].tolist(), first[SHARE]) == ([7], 2.0)
    assert (second["labels"].tolist(), second[SHARE]) == ([IGNORED], 0.0)


# --- what is handed over --------------------------------------------------------------------------------------------


def test_nobody_can_change_the_inputs_and_others_are_not_read() -> None:
    tensor = torch.arange(6.0)
    fd = seal_inputs({"weights": tensor, "rows": [1, 2]})
    try:
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
        got = read_inputs(fd)
        got["weights"].add_(1)  # its own page
        assert torch.equal(read_inputs(fd)["weights"], tensor)
        assert got["rows"] == [1, 2]
    finally:
        os.close(fd)
    forged = os.memfd_create("forged", os.MFD_ALLOW_SEALING)
    try:
        with pytest.raises(Misuse, match="not sealed"):
            read_inputs(forged)
    finally:
        os.close(forged)


def test_a_handed_checkpoint_is_the_first_ones_without_its_best_weights() -> None:
    sink = MemorySink()
    sink.saved[7] = {"state.json": b"{}", "model-0000.safetensors": b"abc", "best-0000.safetensors": b"def"}
    handed = Handed.of(sink)
    assert handed is not None
    step, files = handed.latest()
    assert step == 7
    assert {path: files.open(path).read() for path in files.paths()} == sink.saved[7]
    assert set(handed.shared().latest()[1].paths()) == {"state.json", "model-0000.safetensors"}
    assert Handed.of(MemorySink()) is None


# --- a group of one: every code path of the first process, without starting another ---------------------------------


class _Captured(Exception):
    pass


def captured(monkeypatch: pytest.MonkeyPatch, recipe: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Model and settings at the moment at which the others would be started."""
    got: list[Any] = []

    def capture(model: Any, settings: dict[str, Any], **_: Any) -> None:
        got.extend((model, settings))
        raise _Captured

    monkeypatch.setattr(run_module, "train_together", capture)
    with pytest.raises(_Captured):
        run(recipe)
    settings = {**got[1], "recipe": dataclasses.replace(got[1]["recipe"], processes=1)}
    return got[0], settings


def ports(sink: Any = None) -> dict[str, Any]:
    recorder = Recorder()
    return {"sink": sink or MemorySink(), "progress": recorder, "lease": recorder, "look": None}


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_a_group_of_one_trains_stops_and_goes_on_as_a_process_alone(
    sharding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {**GENERATE, **SAME, "sharding": sharding, "checkpoint_steps": 5, "gradient_accumulation": 2}
    model, settings = captured(monkeypatch, recipe)
    alone, stopped, resumed = (copy.deepcopy(model) for _ in range(3))
    SealedTrainer(alone, **settings, **ports()).train_sealed()
    whole = MemorySink()
    step, trainer = train_together(model, settings, **ports(whole))
    assert (step, trainer.steps) == (0, 12)
    assert far(alone, model) < 1e-6
    assert not torch.distributed.is_initialized()
    sink = MemorySink(stop_at=5)
    with pytest.raises(InterruptedError):
        train_together(stopped, settings, **ports(sink))
    sink.stop_at = None
    assert train_together(resumed, settings, **ports(sink))[0] == 5
    assert far(model, resumed) == 0.0
    assert sink.saved == whole.saved


# --- two processes --------------------------------------------------------------------------------------------------


@NEEDS_TWO
def test_two_processes_learn_what_one_learns() -> None:
    recipe = {**CLASSIFY, **SAME, "epochs": 1, "batch_size": 3, "gradient_accumulation": 3, "checkpoint_steps": 0}
    one = run({**recipe, "processes": 1})
    recorder = Recorder()
    two = run(recipe, recorder=recorder)
    assert 0 < far(one.model, two.model) < 1e-5
    assert two.timings.steps == one.timings.steps == 12
    assert (two.evaluation.document()["rows"], two.timings.training["processes"]) == (12, 2)
    assert [r[1] for r in recorder.reports if r[0] == "train"][:1] == [1]
    assert not torch.distributed.is_initialized()
    assert "LOCAL_RANK" not in os.environ


@NEEDS_TWO
@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "sharding"),
    [
        (full(CLASSIFY), "ddp"),
        (full(CLASSIFY), "fsdp"),
        (GENERATE, "ddp"),
        (GENERATE, "fsdp"),
        ({**GENERATE, "packing": "off"}, "fsdp"),
        ({**full(GENERATE), "gradient_checkpointing": True}, "fsdp"),
    ],
)
def test_every_way_of_sharing_learns_what_one_process_learns(recipe: dict[str, Any], sharding: str) -> None:
    same = {**SAME, "lora": {"rank": 4}} if "lora" in recipe else {k: v for k, v in SAME.items() if k != "lora"}
    recipe = {**recipe, **same, "sharding": sharding, "checkpoint_steps": 0, "batch_size": 7}
    one = run({**recipe, "processes": 1, "sharding": "ddp"})
    two = run(recipe)
    assert 0 < far(one.model, two.model) < 1e-4


@NEEDS_TWO
@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
@pytest.mark.parametrize("stop_at", [4, 14])  # inside an epoch; 14 is the last step of the first one
def test_a_resumed_run_of_two_is_bit_identical(sharding: str, stop_at: int) -> None:
    recipe = {**CLASSIFY, **TWO, "max_steps": 20, "checkpoint_steps": stop_at, "sharding": sharding}
    whole = run(recipe)
    sink = MemorySink(stop_at)
    with pytest.raises(InterruptedError):
        run(recipe, sink)
    sink.stop_at = None
    resumed = run(recipe, sink)
    assert resumed.timings.resumed_from == stop_at
    assert export_files(resumed) == export_files(whole)


_VICTIM = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.unit.test_workload_training_distributed import CLASSIFY, FolderSink, TWO, run
run({{**CLASSIFY, **TWO, "max_steps": 400, "epochs": 100, "checkpoint_steps": 5}}, FolderSink(Path({folder!r})))
"""


class FolderSink(MemorySink):
    """Keeps each checkpoint in a folder that appears whole."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        for place in sorted(folder.glob("[0-9]*")):
            self.saved[int(place.name)] = {p.name: p.read_bytes() for p in place.iterdir()}

    def save(self, step: int, files: Any) -> None:
        super().save(step, files)
        part = self._folder / "part"
        part.mkdir()
        for name, data in self.saved[step].items():
            (part / name).write_bytes(data)
        part.rename(self._folder / f"{step:06d}")


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@NEEDS_TWO
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_group_leaves_nobody_behind_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    code = _VICTIM.format(root=str(Path(__file__).resolve().parents[2]), folder=str(folder))
    with subprocess.Popen([sys.executable, "-c", code]) as victim:
        # Both load the training libraries first, one after the other.
        until("two checkpoints", lambda: len(list(folder.glob("[0-9]*"))) >= 2, 4 * PATIENCE)
        members = _children(victim.pid)
        assert len(members) == 1
        victim.send_signal(signal.SIGKILL)
    until("the others' end", lambda: not any(Path(f"/proc/{pid}").exists() for pid in members))
    sink = FolderSink(folder)
    newest = max(sink.saved)
    for path in folder.glob("part/*"):
        path.unlink()
    recipe = {**CLASSIFY, **TWO, "max_steps": 400, "epochs": 100, "checkpoint_steps": 5}
    later = MemorySink(stop_at=newest + 10)
    later.saved = dict(sink.saved)
    with pytest.raises(InterruptedError):
        run(recipe, later)
    whole = MemorySink(stop_at=newest + 10)
    with pytest.raises(InterruptedError):
        run(recipe, whole)
    assert later.saved == whole.saved


# --- what can't work is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"processes": 1, "sharding": "fsdp"}, "sharding"),
        ({"batch_size": 1}, "processes"),
        ({"task": "embedding", "columns": {"query": "text", "positive": "label"}}, "processes"),
        ({"sharding": "fsdp", "select": "best"}, "sharding"),
        ({"sharding": "fsdp", "patience": 2}, "sharding"),
        ({"sharding": "fsdp", "evaluate_steps": 5}, "sharding"),
        ({"sharding": "fsdp", "optimizer": "adamw_8bit"}, "sharding"),
        ({"privacy": {"epsilon": 8}, "lora": {"rank": 4}}, "processes"),
        ({"compile": "on"}, "compile"),
    ],
)
def test_what_processes_can_not_do_together_is_refused(changed: dict[str, Any], key: str) -> None:
    with pytest.raises(Misuse) as caught:
        parse_recipe({**CLASSIFY, "processes": 2, **changed})
    assert (caught.value.code, caught.value.details["key"]) == ("recipe.combination", key)


# --- how it ends when it doesn't end well ---------------------------------------------------------------------------


def test_more_processes_than_processors_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    with pytest.raises(Misuse, match="wants 3 processes and this node has 2 processors") as caught:
        require_processors(parse_recipe({**CLASSIFY, "processes": 3}))
    assert caught.value.code == "distributed.processes"


def _team(monkeypatch: pytest.MonkeyPatch, program: Path, does: str) -> team._Team:
    """A team of two whose second process is another program."""
    program.write_text(f"#!/bin/sh\n{does}\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    return team._Team(team.Group(0, 2, False), 1, 0, 1, Recorder())


def test_a_process_that_ends_before_it_is_ready_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="ended without a reason") as caught:
        _team(monkeypatch, tmp_path / "ends", "exit 1").__enter__()
    assert caught.value.code == "distributed.ended"


def test_a_lost_lease_ends_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = _team(monkeypatch, tmp_path / "waits", "exec sleep 600")

    def lost() -> None:
        raise Denied("lease.expired", "A key lease ended before it was renewed.")

    monkeypatch.setattr(made._lease, "check", lost)
    with pytest.raises(Denied):
        made.__enter__()
    (member,) = made._members
    assert member._process.returncode == -signal.SIGKILL


@NEEDS_TWO
@pytest.mark.slow
@pytest.mark.parametrize("by", ["kill", "report"])
def test_the_end_of_one_is_the_end_of_all(by: str) -> None:
    class Killing(Recorder):
        def report(self, *told: Any) -> None:
            super().report(*told)
            if told[0] == "train" and told[1] == 10:
                for pid in _children(os.getpid()):
                    os.kill(pid, signal.SIGKILL)

    recipe = {**CLASSIFY, **TWO, "epochs": 100, "max_steps": 1000}
    if by == "report":  # every process sees that its gradients explode, and the first one says so
        recipe = {**recipe, "learning_rate": "1", "max_gradient_norm": "0", "lora": {"rank": 4, "alpha": 4096}}
    with pytest.raises(CloisterError) as caught:
        run(recipe, recorder=Killing() if by == "kill" else Recorder())
    assert caught.value.code == "distributed.ended" if by == "kill" else caught.value.code.startswith("training.")
    assert _children(os.getpid()) == []
