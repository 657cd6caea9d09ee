"""Whole runs on tiny models: learning, resuming bit for bit, stopping, and no pickle anywhere."""

import io
import json
import pickle
import time

import pytest
import torch

from cloister.contracts.recipe import parse_recipe
from cloister.errors import Denied, Malformed
from cloister.workload.data import read_table
from cloister.workload.training import export_files, load_base, run_training
from tests.tiny_models import MemorySink, Recorder, banking_csv, readers, tiny_bert, tiny_llama

CLASSIFY = {
    "task": "classification", "method": "lora", "data": "bank/queries", "base": "lab/tiny", "threads": 1,
    "columns": {"text": "text", "label": "label"}, "batch_size": 8, "epochs": 2, "learning_rate": "0.01",
    "checkpoint_steps": 5, "precision": "fp32", "lora": {"rank": 4, "dropout": "0.1"},
}  # fmt: skip
GENERATE = {**CLASSIFY, "task": "generation", "columns": {"prompt": "label", "completion": "text"}}


def full(recipe):
    return {**{k: v for k, v in recipe.items() if k != "lora"}, "method": "full"}


def run(recipe, sink=None, recorder=None, rows=120):
    recipe = parse_recipe(recipe)
    base = load_base(readers(tiny_bert() if recipe.task == "classification" else tiny_llama()))
    table = read_table({"q.csv": io.BytesIO(banking_csv(rows))}, recipe.columns.names())
    recorder = recorder or Recorder()
    return run_training(recipe, base, table, sink=sink or MemorySink(), progress=recorder, lease=recorder)


@pytest.mark.parametrize("recipe", [CLASSIFY, full(CLASSIFY)], ids=["lora", "full"])
def test_classification_learns_and_reports(recipe):
    recorder = Recorder()
    result = run(recipe, recorder=recorder)
    scores = result.evaluation.scores["accuracy"]
    assert scores.tuned >= scores.base
    assert scores.tuned > 0.9
    assert result.labels == ("card", "cash", "fee", "top_up")
    assert result.timings.steps == 28
    assert result.timings.train_seconds > 0
    steps = [r for r in recorder.reports if r[0] == "train"]
    assert steps[0][1:3] == (1, 28)
    paces = {"tokens_per_second", "eta_seconds", "memory"}
    assert set(steps[0][3]) == {"loss", "learning_rate", "gradient_norm", *paces}
    assert all("." in text for _, _, _, values in steps for text in values.values())
    assert recorder.checks > 28


@pytest.mark.parametrize("recipe", [GENERATE, full(GENERATE)], ids=["lora", "full"])
def test_generation_lowers_bits_per_byte(recipe):
    result = run(recipe)
    assert result.evaluation.scores["bits_per_byte"].gain > 0
    assert result.evaluation.scores["loss"].gain > 0
    assert result.evaluation.document()["rows"] > 0


@pytest.mark.parametrize("recipe", [CLASSIFY, full(CLASSIFY), GENERATE], ids=["lora", "full", "generation"])
@pytest.mark.parametrize("stop_at", [5, 14])  # inside an epoch; 14 is the last step of the first one
def test_resumed_run_is_bit_identical(recipe, stop_at):
    recipe = {**recipe, "checkpoint_steps": stop_at, "max_steps": 20}
    whole = run(recipe)
    sink = MemorySink(stop_at)
    with pytest.raises(InterruptedError):
        run(recipe, sink)
    sink.stop_at = None
    resumed = run(recipe, sink)
    assert resumed.timings.resumed_from == stop_at
    assert export_files(resumed) == export_files(whole)
    assert resumed.evaluation.document() == whole.evaluation.document()


def test_every_later_checkpoint_of_a_resumed_run_is_the_same():
    recipe = {**CLASSIFY, "gradient_accumulation": 2, "checkpoint_steps": 3}
    whole, broken = MemorySink(), MemorySink(stop_at=6)
    run(recipe, whole)
    with pytest.raises(InterruptedError):
        run(recipe, broken)
    broken.stop_at = None
    run(recipe, broken)
    assert broken.saved == whole.saved
    assert set(whole.saved) == {3, 6, 9, 12, 14}


def test_finished_run_resumes_to_the_same_answers():
    sink = MemorySink()
    first = run(CLASSIFY, sink)
    again = run(CLASSIFY, sink)
    assert again.timings.resumed_from == first.timings.steps
    assert export_files(again) == export_files(first)


def test_lost_lease_stops_before_the_next_step():
    recorder, sink = Recorder(), MemorySink()
    run(CLASSIFY, sink, recorder)
    before_training = recorder.checks - 28 - 1  # one per step, one for the validation rows afterwards
    kept = MemorySink()

    class Lost(Recorder):
        def check(self):
            # The lease is lost at step 8; the checkpoint of step 5 is written beside the steps, so wait for it here.
            while self.checks == before_training + 7 and not kept.saved:
                time.sleep(0.001)
            super().check()

    lost = Lost(lose_at=before_training + 8)
    with pytest.raises(Denied) as caught:
        run(CLASSIFY, kept, lost)
    assert caught.value.code == "lease.expired"
    assert set(kept.saved) == {5}


def test_no_pickle_in_a_run_or_a_resume(monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("pickle was used")

    for module, name in [(torch, "save"), (torch, "load"), (pickle, "dumps"), (pickle, "dump"), (pickle, "loads"),
                         (pickle, "load"), (pickle, "Pickler"), (pickle, "Unpickler")]:  # fmt: skip
        monkeypatch.setattr(module, name, forbidden)
    sink = MemorySink(stop_at=10)
    with pytest.raises(InterruptedError):
        run(CLASSIFY, sink)
    sink.stop_at = None
    run(CLASSIFY, sink)
    for blobs in sink.saved.values():
        assert set(blobs) == {
            *(f"{part}-0000.safetensors" for part in ("model", "optimizer", "generators")),
            "state.json",
        }
        json.loads(blobs["state.json"])
        for name in blobs:
            assert b"torch._utils" not in blobs[name]


def test_nothing_is_written_to_a_path(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(tmp_path)
    run(CLASSIFY)
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("changed", [{"learning_rate": "0.02"}, {"seed": 1}])
def test_checkpoint_of_another_recipe_is_refused(changed):
    sink = MemorySink()
    run(CLASSIFY, sink)
    with pytest.raises(Denied) as caught:
        run({**CLASSIFY, **changed}, sink)
    assert caught.value.code == "resume.differs"


def test_checkpoint_of_other_data_is_refused():
    sink = MemorySink()
    run(CLASSIFY, sink)
    with pytest.raises(Denied, match="dataset"):
        run(CLASSIFY, sink, rows=124)


@pytest.mark.parametrize("part", ["model-0000.safetensors", "state.json", "missing", "extra"])
def test_damaged_checkpoint_is_refused(part):
    sink = MemorySink()
    run({**CLASSIFY, "epochs": 1}, sink)
    blobs = sink.saved[max(sink.saved)]
    if part == "missing":
        del blobs["optimizer-0000.safetensors"]
    elif part == "extra":
        blobs["evil.pkl"] = b""
    else:
        blobs[part] = blobs[part][:-3]
    with pytest.raises(Malformed) as caught:
        run({**CLASSIFY, "epochs": 1}, sink)
    assert caught.value.code.startswith(("checkpoint.", "model.", "json."))


def test_max_steps_shortens_and_never_lengthens():
    assert run({**CLASSIFY, "max_steps": 3}).timings.steps == 3
    assert run({**CLASSIFY, "max_steps": 9999}).timings.steps == 28


def test_bf16_trains_and_leaves_float32_weights():
    result = run({**CLASSIFY, "precision": "bf16"})
    assert result.evaluation.scores["accuracy"].tuned > 0.9
    assert {p.dtype for p in result.model.parameters()} == {torch.float32}


def test_a_run_that_was_killed_after_its_last_step_makes_no_further_one():
    """Where the last step is not the last of an epoch, the Trainer itself would make one more."""
    sink = MemorySink()
    changes = {"max_steps": 5, "checkpoint_steps": 5, "schedule": "constant"}
    whole = run({**CLASSIFY, **changes}, sink)
    assert max(sink.saved) == 5
    resumed = run({**CLASSIFY, **changes}, sink)
    assert (resumed.timings.resumed_from, resumed.timings.steps) == (5, 5)
    assert max(sink.saved) == 5
    assert export_files(resumed) == export_files(whole)
