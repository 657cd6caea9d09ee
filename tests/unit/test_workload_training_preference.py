"""Preferences: the loss by its formula, learning, resuming, what is compared."""

from decimal import Decimal

import numpy as np
import pytest
import torch

from cloister.contracts.recipe import DpoSettings, parse_recipe
from cloister.errors import Misuse
from cloister.workload.data import Table
from cloister.workload.evaluation import PairFigures, evaluate_preference
from cloister.workload.training import export_files, load_base, run_training
from cloister.workload.training.batching import row_digest
from cloister.workload.training.preference import Pair, PreferenceModel, collate_pairs, dpo_loss
from tests.tiny_models import WORDS, MemorySink, Recorder, readers, tiny_llama

RECIPE = {
    "task": "preference", "method": "lora", "data": "bank/pairs", "base": "lab/tiny", "threads": 1, "precision": "fp32",
    "columns": {"prompt": "asked", "chosen": "good", "rejected": "bad"}, "batch_size": 8, "epochs": 2,
    "learning_rate": "0.01", "checkpoint_steps": 5, "lora": {"rank": 4},
}  # fmt: skip
FULL = {**{k: v for k, v in RECIPE.items() if k != "lora"}, "method": "full", "learning_rate": "0.002"}
PAIRS = [
    Pair((0, 5, 6, 7, 1), 2, (2,), ((0, 5, 8, 1),), (-9.5, -8.0)),
    Pair((0, 9, 4), 1, (1,), ((0, 9, 3, 2, 1),), (-3.0, -4.0)),
]


def pairs(rows: int = 60) -> Table:
    """Polite answers are preferred, whatever was asked."""
    asked = [
        " ".join(WORDS[(row * 7 + k * 5) % len(WORDS)] for k in range(1 + row % 5)) + f" {row}" for row in range(rows)
    ]
    words = [WORDS[row * 3 % 10] for row in range(rows)]
    good, bad = [f" please help {word}" for word in words], [f" not {word} why" for word in words]
    return Table({"asked": asked, "good": good, "bad": bad})


def run(recipe, sink=None, table=None):
    recipe, recorder = parse_recipe(recipe), Recorder()
    return run_training(
        recipe, load_base(readers(tiny_llama())), table or pairs(), sink=sink or MemorySink(), progress=recorder,
        lease=recorder,
    )  # fmt: skip


@pytest.mark.parametrize("recipe", [RECIPE, FULL], ids=["lora", "full"])
def test_what_is_preferred_is_learned(recipe):
    result = run(recipe)
    document = result.evaluation.document()
    assert result.evaluation.scores["accuracy"].tuned == 1
    assert result.evaluation.scores["accuracy"].base < 1
    assert Decimal(document["reward_accuracy"]) == 1
    assert Decimal(document["reward_margin"]) > 0
    assert Decimal(document["base_bits_per_byte"]) > 0


@pytest.mark.parametrize("smoothing", ["0", "0.2"])
def test_the_loss_is_the_formulas(smoothing):
    """Rafailov et al. 2023, equation 7, pair by pair and token by token, in another way than the code's."""
    base = load_base(readers(tiny_llama()))
    model = base.causal_lm()
    settings = DpoSettings(beta=Decimal("0.3"), label_smoothing=Decimal(smoothing))
    found = PreferenceModel(model, settings)(**collate_pairs(PAIRS, pad=1))["loss"]

    def answer(ids, target):
        with torch.no_grad():
            each = model(torch.tensor([ids])).logits[0].double().softmax(-1).log()
        return sum(float(each[place - 1, ids[place]]) for place in range(target, len(ids)))

    expected = 0.0
    for pair in PAIRS:
        chosen, rejected = answer(pair.ids, pair.target), answer(pair.others[0], pair.marks[0])
        margin = 0.3 * ((chosen - pair.reference[0]) - (rejected - pair.reference[1]))
        sigmoid = 1 / (1 + np.exp(-margin))
        expected -= (1 - float(smoothing)) * np.log(sigmoid) + float(smoothing) * np.log(1 - sigmoid)
    assert found.item() == pytest.approx(expected / len(PAIRS), rel=1e-5)


def test_an_untouched_model_has_the_loss_of_a_coin():
    same = torch.tensor([-3.0, -8.0])
    assert float(dpo_loss(same, same - 1, torch.stack([same, same - 1], 1), 0.1, 0.0)) == pytest.approx(np.log(2))


def test_training_begins_at_the_reference():
    recorder = Recorder()
    recipe = parse_recipe({**RECIPE, "max_steps": 1})
    run_training(
        recipe, load_base(readers(tiny_llama())), pairs(), sink=MemorySink(), progress=recorder, lease=recorder
    )
    (first,) = [values for stage, _, _, values in recorder.reports if stage == "train" and "loss" in values]
    assert float(first["loss"]) == pytest.approx(np.log(2), abs=1e-4)


@pytest.mark.parametrize("recipe", [RECIPE, FULL], ids=["lora", "full"])
def test_resumed_run_is_bit_identical(recipe):
    recipe = {**recipe, "max_steps": 9}
    whole, sink = run(recipe), MemorySink(5)
    with pytest.raises(InterruptedError):
        run(recipe, sink)
    sink.stop_at = None
    resumed = run(recipe, sink)
    assert resumed.timings.resumed_from == 5
    assert export_files(resumed) == export_files(whole)
    assert resumed.evaluation.document() == whole.evaluation.document()


def test_a_checkpoint_knows_both_sides():
    swapped = Pair(PAIRS[0].others[0], 2, (2,), (PAIRS[0].ids,))
    moved = Pair(PAIRS[0].ids, 2, (1,), PAIRS[0].others)
    assert len({row_digest([pair]) for pair in (PAIRS[0], swapped, moved)}) == 3


def test_equal_answers_are_refused():
    table = pairs(20)
    with pytest.raises(Misuse) as caught:
        run(RECIPE, table=Table({**table.columns, "bad": table.columns["good"]}))
    assert caught.value.code == "data.pairs"


def test_figures_of_pairs():
    base = np.array([[-1.0, -2.0], [-2.0, -1.0], [-3.0, -1.0]])
    tuned = np.array([[-1.0, -2.0], [-1.0, -1.5], [-2.5, -1.0]])
    nats = np.array([1.0, 1.0, 1.0])
    figures = PairFigures(base, tuned, nats, 2 * nats, np.array([4, 4, 4]))
    document = evaluate_preference(figures, beta=0.5, seed=0).document()
    assert (document["base_accuracy"], document["accuracy"]) == ("0.333333", "0.666667")
    assert (document["better_rows"], document["worse_rows"]) == (1, 0)
    assert document["reward_accuracy"] == "0.666667"
    assert document["reward_margin"] == "0.333333"
    assert float(document["bits_per_byte"]) == pytest.approx(2 * float(document["base_bits_per_byte"]), abs=2e-6)
