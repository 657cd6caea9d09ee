"""What happens while a training runs: looks that choose, checkpoints by the clock, and what stops it."""

from __future__ import annotations

import functools
import gc
import io
import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from cloister.contracts.recipe import parse_recipe
from cloister.errors import CloisterError, Malformed, Misuse
from cloister.workload.data import Split, Table, read_table
from cloister.workload.pipeline import _timings
from cloister.workload.telemetry import Telemetry
from cloister.workload.training import TrainingResult, classify, export_files, load_base, run_training
from cloister.workload.training import run as run_module
from cloister.workload.training.heads import PooledClassifier
from cloister.workload.training.health import is_out_of_memory, require_finite
from cloister.workload.training.looks import Look
from cloister.workload.training.state import trainable_weights
from cloister.workload.training.tensors import read_tensors
from cloister.workload.training.trainer import SealedTrainer
from tests.bundles import make_contract
from tests.tiny_models import MemorySink, Recorder, banking_csv, readers, tiny_bert, tiny_llama
from tests.unit import test_workload_training_preference as preference
from tests.unit import test_workload_training_tasks as tasks

CLASSIFY: dict[str, Any] = {
    "task": "classification", "method": "lora", "data": "bank/queries", "base": "lab/tiny", "threads": 1,
    "columns": {"text": "text", "label": "label"}, "batch_size": 8, "epochs": 1, "learning_rate": "0.01",
    "checkpoint_steps": 0, "precision": "fp32", "lora": {"rank": 4, "dropout": "0.1"},
}  # fmt: skip
GENERATE = {**CLASSIFY, "task": "generation", "columns": {"completion": "text"}}
CHOOSING = {**CLASSIFY, "select": "best", "evaluate_steps": 2, "max_steps": 9}
NO_MEMORY = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"


@pytest.fixture(scope="module", autouse=True)
def light() -> Iterator[None]:
    """Every training begins by collecting garbage, which takes longer than the training where so much is loaded."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def full(recipe: dict[str, Any]) -> dict[str, Any]:
    return {**{name: value for name, value in recipe.items() if name != "lora"}, "method": "full"}


def run(recipe: dict[str, Any], sink: MemorySink | None = None, **more: Any) -> TrainingResult:
    parsed, recorder = parse_recipe(recipe), more.pop("recorder", None) or Recorder()
    base = load_base(readers(tiny_llama() if parsed.task == "generation" else tiny_bert()))
    table = read_table({"q.csv": io.BytesIO(banking_csv(96))}, parsed.columns.names())
    return run_training(parsed, base, table, sink=sink or MemorySink(), progress=recorder, lease=recorder, **more)


@functools.cache
def undisturbed() -> dict[str, bytes]:
    return dict(export_files(run(CLASSIFY)))


def weights(result: TrainingResult) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in result.model.named_parameters()}


def alike(one: TrainingResult, other: TrainingResult, within: float) -> bool:
    pairs = zip(weights(one).values(), weights(other).values(), strict=True)
    return all(torch.allclose(a, b, atol=within) for a, b in pairs)


def told(result: TrainingResult) -> dict[str, Any]:
    """What the evaluation tells of looks and pieces."""
    names = ("looks", "best_step", "best_accuracy", "best_loss", "batch_pieces")
    return {name: result.timings.training[name] for name in names if name in result.timings.training}


def scripted(monkeypatch: pytest.MonkeyPatch, *figures: float) -> None:
    """The figures of the looks to come."""
    coming = iter(figures)
    monkeypatch.setattr(classify, "Look", lambda name, value: Look(name, next(coming)))


def interrupted(recipe: dict[str, Any], at: int) -> MemorySink:
    sink = MemorySink(at)
    with pytest.raises(InterruptedError):
        run(recipe, sink)
    sink.stop_at = None
    return sink


# -- looks -------------------------------------------------------------------------------------------------------------


def test_the_best_weights_leave_and_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, 0.5, 0.75, 0.7, 0.75, 0.6)  # after steps 2, 4, 6, 8, 9
    sink, recorder = MemorySink(), Recorder()
    result = run({**CHOOSING, "checkpoint_steps": 1}, sink, recorder=recorder)
    assert told(result) == {"looks": 5, "best_step": 4, "best_accuracy": "0.750000"}
    assert result.timings.steps == 9
    data = sink.saved[4]["model-0000.safetensors"]
    kept = read_tensors("model", io.BytesIO(data), len(data))
    assert all(torch.equal(weight, kept[name]) for name, weight in trainable_weights(result.model).items())
    looked = [(step, values) for stage, step, _, values in recorder.reports if stage == "look"]
    assert looked[:2] == [(2, {"accuracy": "0.500000"}), (4, {"accuracy": "0.750000"})]


CHOOSING_FULL = full({**GENERATE, "select": "best", "evaluate_steps": 2, "learning_rate": "0.05", "max_steps": 9})


@pytest.mark.parametrize(
    ("recipe", "stops"),
    [(CHOOSING, (1, 6)), (CHOOSING_FULL, (5,))],  # before the first look, and after some
    ids=["lora", "full"],
)
def test_a_resumed_run_chooses_the_same(recipe: dict[str, Any], stops: tuple[int, ...]) -> None:
    whole = run(recipe)
    assert whole.timings.training["looks"] == 5
    for stop_at in stops:
        sink = interrupted(recipe | {"checkpoint_steps": stop_at}, stop_at)
        resumed = run(recipe | {"checkpoint_steps": stop_at}, sink)
        assert resumed.timings.resumed_from == stop_at
        assert told(resumed) == told(whole)
        assert export_files(resumed) == export_files(whole)


def test_patience_ends_a_training_and_a_resume_does_not_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = {**CLASSIFY, "patience": 2, "evaluate_steps": 2, "checkpoint_steps": 100}
    scripted(monkeypatch, 0.5, 0.6, 0.6, 0.5)
    sink = MemorySink()
    result = run(recipe, sink)
    assert (result.timings.steps, result.timings.training["best_step"]) == (8, 4)
    assert set(sink.saved) == {8}  # where it ended, though no step of the recipe's fell there
    again = run(recipe, sink)  # a look would find no further figure
    assert (again.timings.steps, again.timings.resumed_from) == (8, 8)
    assert export_files(again) == export_files(result)
    assert 0 < result.timings.tokens < 2 * 8 * 96


def test_looking_changes_nothing() -> None:
    seen = run({**CLASSIFY, "evaluate_steps": 1})
    assert seen.timings.training["looks"] == 11
    plain = run(CLASSIFY)
    assert export_files(seen) == export_files(plain)
    assert seen.evaluation.document() == plain.evaluation.document()


def test_a_figure_that_is_no_number_chooses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, 0.5, float("nan"))
    with pytest.raises(Misuse) as caught:
        run(CHOOSING)
    assert caught.value.code == "training.look"


@pytest.mark.parametrize("damage", ["look", "part", "shape"])
def test_a_checkpoint_without_its_choice_is_refused(damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = interrupted(CHOOSING | {"checkpoint_steps": 3}, 3)
    files = sink.saved[3]
    if damage == "look":
        files["state.json"] = files["state.json"].replace(b'"looks"', b'"locks"')
    elif damage == "part":
        del files["best-0000.safetensors"]
    else:
        files["best-0000.safetensors"] = files["generators-0000.safetensors"]
    with pytest.raises(Malformed) as caught:
        run(CHOOSING | {"checkpoint_steps": 3}, sink)
    assert caught.value.code.startswith("checkpoint.")


# -- which rows choose, and which are reported -------------------------------------------------------------------------

SOME = {"select": "best", "evaluate_steps": 1, "max_steps": 1, "test": "0.2", "validation": "0.2"}


def _splits(monkeypatch: pytest.MonkeyPatch, module: str) -> list[Split]:
    """The splits that a task makes."""
    made: list[Split] = []
    target = f"cloister.workload.training.{module}.split_rows"
    from cloister.workload.data import split_rows

    def kept(*args: Any, **kwargs: Any) -> Split:
        made.append(split_rows(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(target, kept)
    return made


@pytest.mark.parametrize(
    ("task", "module"),
    [("classification", "classify"), ("multilabel", "multilabel"), ("extraction", "extract"), ("ranking", "rank"),
     ("embedding", "embed"), ("generation", "generate"), ("preference", "preference")],
)  # fmt: skip
def test_the_report_is_on_rows_that_chose_nothing(monkeypatch: pytest.MonkeyPatch, task: str, module: str) -> None:
    (splits, looked) = _splits(monkeypatch, module), Recorder()
    if task in ("classification", "generation"):
        result = run({**(CLASSIFY if task == "classification" else GENERATE), **SOME}, recorder=looked)
    elif task == "preference":
        result = preference.run({**preference.RECIPE, **SOME})
    else:
        result = tasks.run(task, tasks.made_rows(task, 80), **SOME)
    (split,) = splits
    assert split.test
    assert set(result.answers["rows"].tolist()) <= set(split.test)
    assert not set(split.test) & {*split.training, *split.validation}
    assert result.timings.training["looks"] == 1


def test_the_looks_see_the_validation_rows_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[tuple[int, ...]]] = []
    made, real = _splits(monkeypatch, "classify"), classify.logits

    def watched(model: Any, rows: Any, *rest: Any) -> Any:
        seen.append([row.ids for row in rows])
        return real(model, rows, *rest)

    monkeypatch.setattr(classify, "logits", watched)
    run({**CLASSIFY, **SOME})
    (split,) = made
    assert [len(rows) for rows in seen] == [len(split.validation), len(split.test)]
    assert replace(split, test=()).report == split.validation


def test_a_split_without_test_rows_is_refused_where_something_is_chosen() -> None:
    with pytest.raises(Misuse) as caught:
        run(CHOOSING, split=Split(tuple(range(80)), tuple(range(80, 96))))
    assert caught.value.code == "data.test"
    run({**CLASSIFY, "max_steps": 1}, split=Split(tuple(range(80)), tuple(range(80, 96))))


# -- checkpoints by the clock ------------------------------------------------------------------------------------------


def by_clock(monkeypatch: pytest.MonkeyPatch, seconds: Iterator[float]) -> None:
    now = itertools.accumulate(seconds)
    monkeypatch.setattr(run_module, "SealedTrainer", partial(SealedTrainer, clock=lambda: next(now)))


def test_checkpoints_by_the_clock_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = {**CLASSIFY, "checkpoint_minutes": 1}
    steps = []
    for ticks in (7.0, 13.0):
        by_clock(monkeypatch, itertools.repeat(ticks))
        sink = MemorySink()
        assert export_files(run(timed, sink)) == undisturbed()
        steps.append(sorted(sink.saved))
    sink.saved = {step: files for step, files in sink.saved.items() if step == min(sink.saved)}
    resumed = run(timed, sink)
    assert 0 < resumed.timings.resumed_from == steps[1][0] < 11
    assert export_files(resumed) == undisturbed()
    assert steps[0] != steps[1]  # which ones, the clock said
    assert steps[0][-1] == steps[1][-1] == 11  # and the last one always


def test_steps_and_minutes_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    by_clock(monkeypatch, itertools.repeat(0.0))
    sink = MemorySink()
    run({**CLASSIFY, "checkpoint_minutes": 1, "checkpoint_steps": 4}, sink)
    assert set(sink.saved) == {4, 8, 11}


# -- what stops a training ---------------------------------------------------------------------------------------------

KEEPING = {**CLASSIFY, "checkpoint_steps": 2}


def failing(monkeypatch: pytest.MonkeyPatch, at: int, spoil: Any) -> None:
    """``spoil`` the model's answer at its ``at``-th training pass."""
    real, passes = PooledClassifier.forward, itertools.count(1)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = real(self, *args, **kwargs)
        if self.training and next(passes) == at:
            found["loss"] = spoil(found["loss"])
        return found

    monkeypatch.setattr(PooledClassifier, "forward", forward)


@pytest.mark.parametrize(
    ("spoil", "code"),
    [(lambda loss: loss * float("nan"), "training.loss"), (lambda loss: loss + float("inf"), "training.loss"),
     (lambda loss: loss + 1e9 * (loss - loss.detach()), "training.gradient")],
    ids=["nan", "infinite", "exploding"],
)  # fmt: skip
def test_what_would_spoil_the_weights_stops_before_it_does(
    monkeypatch: pytest.MonkeyPatch, spoil: Any, code: str
) -> None:
    sink, good = MemorySink(), MemorySink()
    run(KEEPING, good)
    failing(monkeypatch, 5, spoil)
    with pytest.raises(Misuse, match="lower the learning rate") as caught:
        run(KEEPING, sink)
    assert (caught.value.code, caught.value.details) == (code, {"step": 5})
    assert sink.saved == {step: good.saved[step] for step in (2, 4)}  # the last good one was kept


def test_a_spoilt_state_takes_no_good_ones_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """A finite gradient may still carry the weights beyond their numbers."""
    real, steps = torch.optim.AdamW.step, itertools.count(1)

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        real(self, *args, **kwargs)
        if next(steps) == 4:
            with torch.no_grad():
                self.param_groups[0]["params"][0].view(-1)[0] = float("inf")

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    sink = MemorySink()
    with pytest.raises(Misuse) as caught:
        run(KEEPING, sink)
    assert caught.value.code == "training.weights"
    assert set(sink.saved) == {2}
    with pytest.raises(Misuse):
        require_finite([torch.ones(3), torch.tensor([1.0, float("nan")])], 1)
    require_finite([torch.ones(3), torch.ones(2, dtype=torch.int64), torch.empty(0)], 1)


# -- out of memory -----------------------------------------------------------------------------------------------------


def small_memory(monkeypatch: pytest.MonkeyPatch, rows: int, model: type = PooledClassifier) -> list[int]:
    """Training passes of more than ``rows`` rows find no memory, after they have left a gradient. Sizes that were."""
    sizes: list[int] = []
    real = model.forward

    @functools.wraps(real)  # the Trainer reads from its signature what the loss is told
    def forward(self: Any, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        found = real(self, input_ids, *args, **kwargs)
        if self.training:
            sizes.append(len(input_ids))
            if len(input_ids) > rows:
                (found["loss"] * 3).backward()
                raise RuntimeError(NO_MEMORY)
        return found

    monkeypatch.setattr(model, "forward", forward)
    return sizes


def figures(recorder: Recorder) -> list[tuple[float, float]]:
    told = [values for stage, _, _, values in recorder.reports if stage == "train"]
    return [(float(values["loss"]), float(values["gradient_norm"])) for values in told]


LARGE = {**full(CLASSIFY), "batch_size": 16, "learning_rate": "0.001", "max_gradient_norm": 0}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_smaller_pieces_learn_as_the_large_batch(monkeypatch: pytest.MonkeyPatch, accumulation: int) -> None:
    recipe = {**LARGE, "batch_size": 16 // accumulation, "gradient_accumulation": accumulation}
    watched, also = Recorder(), Recorder()
    large = run(recipe, recorder=watched)
    sizes = small_memory(monkeypatch, 3)
    small = run(recipe, recorder=also)
    assert alike(large, small, 2e-5)
    for one, other in zip(figures(watched), figures(also), strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
    assert told(small) == {"batch_pieces": 8 // accumulation}
    assert small.timings.steps == large.timings.steps
    assert max(sizes[10:40]) <= 3  # larger ones were tried at the beginning only


def test_a_mean_over_pairs_is_the_large_batchs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = {**preference.FULL, "batch_size": 7, "epochs": 1, "checkpoint_steps": 0, "max_gradient_norm": 0}
    recipe |= {"learning_rate": "0.0001"}
    large = preference.run(recipe)
    sizes = small_memory(monkeypatch, 6, preference.PreferenceModel)  # both sides of three pairs
    small = preference.run(recipe)
    assert told(small) == {"batch_pieces": 4}
    assert {2, 4} <= set(sizes)  # pieces of two pairs, and of the one that is left
    assert alike(large, small, 2e-5)


def test_a_resumed_run_keeps_its_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = {**CLASSIFY, "checkpoint_steps": 3}
    small_memory(monkeypatch, 4)
    whole = run(recipe)
    resumed = run(recipe, interrupted(recipe, 3))
    assert resumed.timings.resumed_from == 3
    assert told(resumed) == {"batch_pieces": 2}
    assert export_files(resumed) == export_files(whole)


def test_too_little_for_any_piece_stops_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = small_memory(monkeypatch, 0)
    sink = MemorySink()
    with pytest.raises(Misuse, match="batch_size or max_length") as caught:
        run({**LARGE, "batch_size": 64}, sink)
    assert caught.value.code == "training.memory"
    assert sizes == [64, 32, 16, 8, 4]  # four halvings at most
    assert sink.saved == {}


def test_rows_that_learn_from_each_other_are_not_parted(monkeypatch: pytest.MonkeyPatch) -> None:
    from cloister.workload.training.heads import PooledEncoder

    small_memory(monkeypatch, 8, PooledEncoder)
    with pytest.raises(Misuse) as caught:
        tasks.run("embedding", max_steps=2)
    assert caught.value.code == "training.memory"


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(PooledClassifier, "forward", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        run(CLASSIFY)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)  # the allocator's own words
    assert is_out_of_memory(caught.value)


def test_memory_that_ends_outside_a_step_stops_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*args: Any, **kwargs: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(classify, "embeddings", none)
    with pytest.raises(Misuse) as caught:
        run(CLASSIFY)
    assert caught.value.code == "training.memory"


# -- progress, and rows that don't fit ---------------------------------------------------------------------------------


def test_progress_tells_pace_memory_and_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    by_clock(monkeypatch, itertools.repeat(2.0))
    recorder = Recorder()
    result = run(CLASSIFY, recorder=recorder)
    reports = [(step, values) for stage, step, _, values in recorder.reports if stage == "train"]
    assert [step for step, _ in reports] == [1, 10]
    tokens = result.timings.tokens / 11
    for _, values in reports:
        assert float(values["tokens_per_second"]) > 0
        assert float(values["memory"]) > 50
        assert float(values["eta_seconds"]) >= 0
    assert float(reports[0][1]["tokens_per_second"]) == pytest.approx(tokens / 2.0, rel=0.05)
    assert float(reports[0][1]["eta_seconds"]) == pytest.approx(10 * 2.0)


def test_rows_longer_than_the_model_are_cut() -> None:
    parsed, recorder = parse_recipe({**CLASSIFY, "max_steps": 1}), Recorder()
    table = Table({"text": [f"card lost {' fee' * 200} {n}" for n in range(40)], "label": ["a", "b"] * 20})
    result = run_training(
        parsed, load_base(readers(tiny_bert())), table, sink=MemorySink(), progress=recorder, lease=recorder
    )
    assert result.max_length == 40
    assert set(result.timings.lengths) == {40}
    assert _timings(result)["train_rows_full"] == 36  # it is told how many


def test_one_label_is_refused_before_anything_is_trained() -> None:
    parsed, recorder = parse_recipe(CLASSIFY), Recorder()
    table = Table({"text": [f"card {n}" for n in range(40)], "label": ["a"] * 40})
    with pytest.raises(CloisterError) as caught:
        run_training(
            parsed, load_base(readers(tiny_bert())), table, sink=MemorySink(), progress=recorder, lease=recorder
        )
    assert caught.value.code == "data.labels"
    assert not [r for r in recorder.reports if r[0] == "train"]


def test_a_look_is_within_training_and_shows_contracted_figures_only() -> None:
    said: list[dict[str, Any]] = []

    class Link:
        def telemetry(self, event: dict[str, Any]) -> None:
            said.append(event)

    telemetry = Telemetry(make_contract(), Link())  # type: ignore[arg-type]
    paces = {"tokens_per_second": "1234.5", "memory": "900.0", "eta_seconds": "12.0"}
    telemetry.report("train", 1, 10, {"loss": "0.5", **paces})
    telemetry.report("look", 2, 10, {"accuracy": "0.75", "micro_f1": "0.5"})
    assert [event["code"] for event in said if event["kind"] == "state"] == ["train"]
    shown = {event["stage"]: set(event["values"]) for event in said if event["kind"] == "progress"}
    assert shown == {"train": {"loss"}, "look": {"accuracy"} & set(make_contract().telemetry)}
