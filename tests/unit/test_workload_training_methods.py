"""Every method on tiny models: it learns, it trains what it says and nothing else, and a resumed run is the same."""

import io

import pytest
import torch

from cloister.contracts.recipe import METHODS, parse_recipe
from cloister.errors import Misuse
from cloister.workload.data import read_table
from cloister.workload.training import export_files, load_base, run_training
from cloister.workload.training.adapters import add_adapter
from tests.tiny_models import MemorySink, Recorder, banking_csv, readers, tiny_bert, tiny_llama

COMMON = {"data": "bank/queries", "base": "lab/tiny", "threads": 1, "precision": "fp32", "batch_size": 8}
SETTINGS = {
    "lora": {"rank": 4},
    "dora": {"rank": 4, "dora": True},
    "prefix": {"tokens": 4},
    "prompt": {"tokens": 4},
    "ptuning": {"tokens": 4, "hidden": 8},
}
RATES = {"full": "0.01", "scratch": "0.01", "ia3": "0.1", "prompt": "0.1", "prefix": "0.1"}
# qlora and a party's own program have tests of their own.
WAYS = (*(method for method in METHODS if method not in ("qlora", "script")), "dora")


def recipe_of(way, task="generation", **more):
    method = "lora" if way == "dora" else way
    columns = {"generation": {"completion": "text"}, "text": {"text": "text"}}.get(
        task, {"text": "text", "label": "label"}
    )
    section = {method: SETTINGS[way]} if way in SETTINGS else {}
    given = {"task": task, "method": method, "columns": columns, "learning_rate": RATES.get(way, "0.02"), **section}
    return parse_recipe({**COMMON, **given, "epochs": 3, **more})


def run(recipe, sink=None, rows=96):
    base = load_base(
        readers(tiny_bert() if recipe.task == "classification" else tiny_llama()), weights=recipe.method != "scratch"
    )
    table = read_table({"q.csv": io.BytesIO(banking_csv(rows))}, recipe.columns.names())
    recorder = Recorder()
    return run_training(recipe, base, table, sink=sink or MemorySink(), progress=recorder, lease=recorder)


@pytest.mark.parametrize(
    ("way", "task"), [*((way, "generation") for way in WAYS), ("lora", "text"), ("full", "text"), ("scratch", "text")]
)
def test_it_learns(way, task):
    result = run(recipe_of(way, task))
    assert result.evaluation.scores["bits_per_byte"].gain > 0
    assert result.evaluation.facts["base_kind"] == ("random" if way == "scratch" else "untuned")


@pytest.mark.parametrize("way", [way for way in WAYS if way != "scratch"])
def test_a_classifier_keeps_what_the_probe_had(way):
    result = run(recipe_of(way, "classification", learning_rate="0.005"))
    scores = result.evaluation.scores["accuracy"]
    assert scores.tuned >= scores.base > 0.8


@pytest.mark.parametrize("way", [way for way in WAYS if METHODS.get(way, METHODS["lora"]).form == "adapter"])
def test_an_adapter_leaves_the_base_as_it_was(way):
    """What leaves is the adapter alone, so the base under it must be the sealed one."""
    recipe = recipe_of(way)
    plain = load_base(readers(tiny_llama())).causal_lm()
    model = run(recipe).model
    with model.disable_adapter():
        for row in ([5, 6, 7, 8], [20, 9]):
            assert torch.equal(model(torch.tensor([row])).logits, plain(torch.tensor([row])).logits)


@pytest.mark.parametrize("way", ["dora", "prefix", "ptuning", "scratch"])  # others: …_engine
def test_a_resumed_run_is_bit_identical(way):
    recipe = recipe_of(way, checkpoint_steps=4, max_steps=7)
    whole, sink = run(recipe), MemorySink(4)
    with pytest.raises(InterruptedError):
        run(recipe, sink)
    sink.stop_at = None
    assert export_files(run(recipe, sink)) == export_files(whole)


@pytest.mark.parametrize("task", ["classification", "generation"])
@pytest.mark.parametrize("rows", [96, 91])  # the last step of an epoch is whole, and is not
def test_accumulation_equals_the_large_batch(task, rows):
    """Rows differ in length, so a mean of batches' means would be another gradient."""
    more = {"epochs": 2, "learning_rate": "0.01", "max_gradient_norm": 0, "schedule": "constant"}
    large = run(recipe_of("full", task, **more, batch_size=32), rows=rows)
    small = run(recipe_of("full", task, **more, batch_size=4, gradient_accumulation=8), rows=rows)
    assert small.timings.steps == large.timings.steps
    for (name, one), other in zip(large.model.named_parameters(), small.model.parameters(), strict=True):
        assert torch.allclose(one, other, atol=2e-4), name  # sums in another order; Adam magnifies what is near zero


def test_scratch_needs_no_weights_and_is_drawn_from_the_seed():
    files = readers(tiny_llama(), model__safetensors=None)
    fresh = [load_base({**files}, weights=False).fresh_causal_lm(seed) for seed in (1, 1, 2)]
    first, same, other = (model.state_dict()["model.layers.0.mlp.up_proj.weight"] for model in fresh)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_virtual_tokens_take_positions_and_must_leave_some():
    assert run(recipe_of("prompt")).max_length == 60  # of 64
    with pytest.raises(Misuse) as caught:
        run(recipe_of("prompt", prompt={"tokens": 60}))
    assert caught.value.code == "recipe.tokens"


def test_ia3_asks_for_layers_where_none_are_known():
    model = load_base(readers(tiny_llama())).causal_lm()
    model.config.model_type = "olmo2"
    with pytest.raises(Misuse) as caught:
        add_adapter(model, recipe_of("ia3"), causal=True)
    assert caught.value.code == "recipe.targets"
    named = add_adapter(model, recipe_of("ia3", ia3={"targets": ["k_proj", "v_proj"]}), causal=True)
    assert {n.rsplit(".", 2)[0].rsplit(".", 1)[1] for n, p in named.named_parameters() if p.requires_grad} == {
        "k_proj", "v_proj",
    }  # fmt: skip


@pytest.mark.parametrize(("schedule", "last"), [("linear", 0.0), ("cosine", 0.0), ("constant", 0.01)])
def test_schedules(schedule, last):
    recipe = recipe_of("lora", schedule=schedule, learning_rate="0.01")
    rates, recorder = [], Recorder()
    table = read_table({"q.csv": io.BytesIO(banking_csv(96))}, recipe.columns.names())
    run_training(
        recipe, load_base(readers(tiny_llama())), table, sink=MemorySink(), progress=recorder, lease=recorder
    )  # fmt: skip
    rates = [float(values["learning_rate"]) for stage, *_, values in recorder.reports if stage == "train"]
    assert abs(rates[-1] - last) < 0.002
    assert max(rates) <= 0.01
