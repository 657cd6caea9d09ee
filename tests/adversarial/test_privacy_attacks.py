"""Attacks on what differential privacy promises: what is tried, and that it gains nothing."""

import io
import json

import pytest
import torch

from cloister.contracts.recipe import parse_recipe
from cloister.errors import Denied, Misuse
from cloister.workload.data import read_table
from cloister.workload.training import classify, export_files, load_base, run_training
from cloister.workload.training.privacy import trainer as trainer_module
from cloister.workload.training.privacy.clipping import ClippedSums
from cloister.workload.training.privacy.losses import row_losses
from cloister.workload.training.privacy.noise import NoiseSource
from tests.dp_audit import Canaries, CanaryTrainer, canary_rows, collate
from tests.tiny_models import MemorySink, Recorder, banking_csv, readers, tiny_bert

PRIVATE = {
    "task": "classification", "method": "lora", "data": "bank/queries", "base": "lab/tiny", "threads": 1,
    "columns": {"text": "text", "label": "label"}, "batch_size": 8, "max_steps": 4, "privacy": {"epsilon": 20},
}  # fmt: skip
ROWS = canary_rows(range(12))


def begun():
    """The checkpoint of a private run after its first step, and the seed in it."""
    sink = MemorySink(1)
    with pytest.raises(InterruptedError):
        CanaryTrainer(ROWS, size=4, count=12, sink=sink).train_sealed()
    sink.stop_at = None
    return sink, json.loads(sink.saved[1]["state.json"])


def refused(sink, rows=ROWS, **changed):
    """Refused before a step was made: no noised gradient was seen, and nothing kept."""
    trainer = CanaryTrainer(rows, **{"size": 4, "count": 12, "sink": sink, **changed})
    with pytest.raises(Denied) as caught:
        trainer.train_sealed()
    return caught.value.code == "resume.differs" and not trainer.seen.any() and set(sink.saved) == {1}


def rewritten(sink, state):
    sink.saved[1]["state.json"] = json.dumps(state, sort_keys=True, separators=(",", ":")).encode()
    return sink


def test_the_same_continuation_sees_the_same_noise():
    first, _ = begun()
    second = MemorySink()
    second.saved = {1: dict(first.saved[1])}
    one, other = (CanaryTrainer(ROWS, size=4, count=12, sink=sink) for sink in (first, second))
    assert (one.train_sealed(), other.train_sealed()) == (1, 1)
    assert one.seen.any()
    assert torch.equal(one.seen, other.seen)


def test_resumed_with_another_seed():
    sink, state = begun()
    state["privacy"]["seed"] = "00" * 32
    assert refused(rewritten(sink, state))


@pytest.mark.parametrize("left", [None, {}, {"seed": "00" * 32}, {"seed": "zz" * 32, "bound": "00" * 32}, "seed"])
def test_resumed_without_its_seed(left):
    sink, state = begun()
    state["privacy"] = left
    assert refused(rewritten(sink, state))


def test_resumed_with_a_row_taken_out():
    # The same noise on neighbouring data, twice: the difference would be the row.
    sink, _ = begun()
    assert refused(sink, rows=ROWS[:-1])


def test_resumed_with_rows_given_to_another_user():
    sink, _ = begun()
    assert refused(sink, units=[0, 0, *range(1, 11)])


@pytest.mark.parametrize("changed", [{"epsilon": 1}, {"clip_norm": "0.05"}])
def test_resumed_with_another_budget(changed):
    sink, _ = begun()
    assert refused(sink, **changed)


def test_resumed_on_a_machine_that_rounds_otherwise(monkeypatch):
    # The same noise on gradients that differ in their last bits: the difference has no noise.
    sink, _ = begun()
    monkeypatch.setattr(trainer_module, "machine", lambda: "another one")
    assert refused(sink)


def test_killed_before_the_first_checkpoint_and_run_again():
    class Lost(Recorder):
        def report(self, stage, step, total, values):
            raise InterruptedError("killed")

    sink = MemorySink()
    trainer = CanaryTrainer(ROWS, size=4, count=12, sink=sink)
    trainer._progress = Lost()
    with pytest.raises(InterruptedError):
        trainer.train_sealed()
    again = CanaryTrainer(ROWS, size=4, count=12, sink=MemorySink())
    again.train_sealed()
    # What was drawn first is gone with the process, and nothing that it made was kept.
    assert not sink.saved
    assert again._noise.seed != trainer._noise.seed


def test_the_seed_is_in_the_sealed_checkpoint_and_nowhere_else(caplog):
    sink, state = begun()
    seed = state["privacy"]["seed"]
    trainer = CanaryTrainer(ROWS, size=4, count=12, sink=sink)
    trainer.train_sealed()
    assert trainer._noise.seed.hex() == seed
    assert seed not in repr(trainer._noise)
    assert seed not in repr(trainer.recorder.reports)
    assert seed not in caplog.text


def total(units, clip=0.25):
    sums = ClippedSums(Canaries(4), collate, clip_norm=clip, physical=7, way="hooks")
    sums._model.train()
    with sums.attached():
        return sums.of(units)[0]


def test_a_user_repeats_a_row_beyond_the_clip():
    others = [canary_rows([1]), canary_rows([2])]
    change = total([*others, canary_rows([0] * 50)]) - total(others)
    assert float(change.norm()) <= 0.25 * (1 + 2**-10)
    # As fifty units the same rows would change fifty times as much: that is why they are one.
    apart = total([*others, *([row] for row in canary_rows([0] * 50))]) - total(others)
    assert float(apart.norm()) > 10


def test_a_row_of_huge_loss_drowns_the_others():
    def steep(model, batch):
        return row_losses(model, batch) * torch.where(batch["input_ids"][:, 0] == 0, 1e9, 1.0)

    def found(units):
        sums = ClippedSums(Canaries(4), collate, clip_norm=0.25, physical=7, way="whole", losses=steep)
        return sums.of(units)[0]

    others = [canary_rows([1]), canary_rows([2])]
    assert float((found([*others, canary_rows([0])]) - found(others)).norm()) <= 0.25 * (1 + 2**-10)


def test_labels_leak_through_the_probe_and_the_loss_through_telemetry(monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("the rows that are hidden were fitted without noise")

    monkeypatch.setattr(classify, "fit_probe", forbidden)
    monkeypatch.setattr(classify, "baseline", forbidden)
    recipe, recorder = parse_recipe(PRIVATE), Recorder()
    table = read_table({"q.csv": io.BytesIO(banking_csv())}, recipe.columns.names())
    base = load_base(readers(tiny_bert()))
    result = run_training(recipe, base, table, sink=MemorySink(), progress=recorder, lease=recorder)
    told = {name for stage, _, _, values in recorder.reports if stage == "train" for name in values}
    assert told == {"learning_rate", "epsilon", "eta_seconds"}
    assert "epsilon" in result.timings.training
    assert result.timings.tokens == 0  # the number of tokens tells of the rows
    assert export_files(result)


@pytest.mark.parametrize(
    "changed",
    [
        {"select": "best"}, {"patience": 2}, {"search": {"trials": 2}}, {"evaluate_steps": 5}, {"processes": 2},
        {"packing": "on"}, {"compile": "on"}, {"precision": "bf16"}, {"checkpoint_steps": 0},
        {"lora": {"dropout": "0.1"}}, {"lora": {"dora": True}}, {"privacy": {"unit": "user"}}, {"method": "ia3"},
        {"columns": {"text": "text", "label": "label", "user": "who"}},
        {"task": "generation", "columns": {"completion": "text"}, "general": "a/b", "replay": {}},
    ],
    ids=repr,
)  # fmt: skip
def test_spending_beside_the_budget_is_refused(changed):
    with pytest.raises(Misuse) as caught:
        parse_recipe({**PRIVATE, **changed})
    assert caught.value.code == "recipe.combination"


def test_a_row_of_nobody_hides_among_others():
    recipe = parse_recipe({
        **PRIVATE, "privacy": {"unit": "user"}, "columns": {"text": "text", "label": "label", "user": "who"},
    })  # fmt: skip
    names, *lines = banking_csv().decode().splitlines()
    whose = ["" if row == 7 else str(row % 20) for row in range(len(lines))]
    data = "\n".join([f"{names},who", *(f"{line},{user}" for line, user in zip(lines, whose, strict=True))])
    table = read_table({"q.csv": io.BytesIO(data.encode())}, recipe.columns.names())
    with pytest.raises(Misuse) as caught:
        run_training(recipe, load_base(readers(tiny_bert())), table, sink=MemorySink(), progress=Recorder(),
                     lease=Recorder())  # fmt: skip
    assert caught.value.code == "data.user"


def test_another_run_with_the_same_seed_draws_otherwise():
    zeros = [torch.zeros(1000)]
    one, other = (next(NoiseSource(b"s" * 32, run).add_to(1, zeros, 1.0)) for run in (b"one", b"other"))
    assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 0.15
