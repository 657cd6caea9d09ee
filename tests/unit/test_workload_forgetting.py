"""What a run unlearns: measured always, and made less by replay and by EWC."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cloister.contracts.contract import Gate
from cloister.contracts.recipe import parse_recipe
from cloister.errors import Misuse
from cloister.node.image import LIBRARY, _trusted_files
from cloister.workload.data import Table
from cloister.workload.evaluation import apply_gates, built_in_text, evaluate_drift, evaluate_forgetting
from cloister.workload.pipeline import Inputs, train_and_evaluate
from cloister.workload.training import export_files, load_base, run_training
from cloister.workload.training.adapters import add_adapter
from cloister.workload.training.batching import Row
from cloister.workload.training.consolidation import consolidation, effect_fisher, weight_fisher
from cloister.workload.training.forgetting import GeneralText, mixed_order
from cloister.workload.training.search import _space
from tests.tiny_models import WORDS, MemoryFiles, MemorySink, Recorder, readers, tiny_bert, tiny_llama

RECIPE = {
    "task": "text", "method": "full", "data": "bank/texts", "base": "lab/tiny", "threads": 1, "precision": "fp32",
    "columns": {"text": "text"}, "batch_size": 8, "epochs": 2, "learning_rate": "0.003", "checkpoint_steps": 0,
    "max_length": 32, "schedule": "constant", "weight_decay": "0",
}  # fmt: skip
ROWS = [Row((0, *(3 + (place * 7 + k * 5) % len(WORDS) for k in range(4 + place % 5))), 0) for place in range(8)]


def test_the_built_in_text_is_on_many_subjects():
    texts = built_in_text()
    assert len(texts) == len(set(texts)) == 50
    assert 10_000 < sum(len(text.encode()) for text in texts) < 16_000
    assert not any(text.startswith("#") for text in texts)
    assert any("def " in text for text in texts)
    assert any("Brötchen" in text for text in texts)
    assert f"{LIBRARY[1:]}/cloister/workload/evaluation/general.txt" in dict(_trusted_files())  # it is measured code


# Measuring.


def test_the_rise_is_the_difference_per_token_and_per_byte():
    base, tuned = np.array([10.0, 20.0, 30.0]), np.array([11.0, 22.0, 33.0])
    tokens, sizes = np.array([5, 10, 15]), np.array([20, 40, 60])
    found = evaluate_forgetting(base, tuned, tokens, sizes, 0)
    assert found.scores["general_loss"].base == Decimal("2.000000")
    assert found.scores["general_loss"].tuned == Decimal("2.200000")
    assert found.facts["general_loss_rise"] == "0.200000"
    assert found.facts["general_rows"] == 3
    rise = 6 / 120 / math.log(2)
    assert float(found.facts["general_bits_per_byte_rise"]) == pytest.approx(rise, abs=1e-6)
    # Every row lost a tenth, so each sample of rows says the same.
    for end in ("low", "high"):
        assert float(found.facts[f"general_bits_per_byte_rise_{end}"]) == pytest.approx(rise, abs=1e-6)


def test_the_interval_holds_the_rise_and_grows_with_the_rows_differences():
    generator = np.random.default_rng(3)
    base, tokens = generator.uniform(50, 100, 60), np.full(60, 30)
    tuned = base + generator.normal(3, 9, 60)
    facts = evaluate_forgetting(base, tuned, tokens, tokens * 4, 0).facts
    low, rise, high = (float(facts[f"general_loss_rise{end}"]) for end in ("_low", "", "_high"))
    assert low < rise < high
    assert high - low == pytest.approx(4 * 9 / math.sqrt(60) / 30, rel=0.3)


@pytest.mark.parametrize(("margin", "passes"), [("-0.25", True), ("-0.15", False), ("0", False)])
def test_a_gate_below_zero_bounds_the_rise(margin, passes):
    found = evaluate_forgetting(np.array([2.0]), np.array([2.2]), np.array([1]), np.array([4]), 0)
    (result,) = apply_gates([Gate("general_loss", Decimal(margin))], found.scores)
    assert result.passed is passes


def test_drift_of_what_did_not_move_is_none():
    vectors = np.random.default_rng(0).normal(size=(12, 8)).astype(np.float32)
    same, turned = evaluate_drift(vectors, 3 * vectors, 0), evaluate_drift(vectors, -vectors, 0)
    assert (same.scores["general_similarity"].tuned, same.scores["general_neighbours"].tuned) == (1, 1)
    # All turned round: nothing is where it was, and yet every text has the same neighbours.
    assert (turned.scores["general_similarity"].tuned, turned.scores["general_neighbours"].tuned) == (-1, 1)
    other = evaluate_drift(vectors, np.random.default_rng(1).normal(size=(12, 8)).astype(np.float32), 0)
    assert other.scores["general_neighbours"].tuned < Decimal("0.8")
    assert "not applicable" in other.facts["general_loss"]
    assert float(other.facts["general_similarity_low"]) < float(other.facts["general_similarity_high"])


def test_what_is_measured_is_never_learned():
    texts = [f"the card {WORDS[row]} {row}" for row in range(30)]
    general = GeneralText(parse_recipe(RECIPE), load_base(readers(tiny_llama())), Recorder(), texts)
    assert sorted([*general._held, *general._learned]) == sorted(texts)
    again = GeneralText(parse_recipe(RECIPE), load_base(readers(tiny_llama())), Recorder(), texts[::-1])
    assert set(again._held) == set(general._held)
    with pytest.raises(Misuse) as refused:
        GeneralText(parse_recipe(RECIPE), load_base(readers(tiny_llama())), Recorder(), texts[:9] * 3)
    assert refused.value.code == "general.few"


# Replay.


@given(
    st.lists(st.integers(2, 40), min_size=1, max_size=90),
    st.lists(st.integers(2, 40), min_size=1, max_size=20),
    st.integers(2, 9).flatmap(lambda step: st.tuples(st.just(step), st.integers(1, step - 1))),
    st.integers(0, 3),
)
def test_every_step_holds_its_share_and_every_row_is_seen_once(lengths, others, sizes, epoch):
    step, replayed = sizes
    order = mixed_order(lengths, others, step, replayed, 7, epoch)
    assert order == mixed_order(lengths, others, step, replayed, 7, epoch)
    own = [row for row in order if row < len(lengths)]
    assert sorted(own) == list(range(len(lengths)))
    steps = [order[start : start + step] for start in range(0, len(order), step)]
    assert len(steps) == math.ceil(len(lengths) / (step - replayed))
    for rows in steps[:-1]:
        assert sum(row >= len(lengths) for row in rows) == replayed
    assert 1 <= sum(row >= len(lengths) for row in steps[-1]) <= replayed
    drawn = [row - len(lengths) for row in order if row >= len(lengths)]
    counts = [drawn.count(row) for row in range(len(others))]
    assert max(counts) - min(counts) <= 1  # none again before all were


def test_epochs_and_seeds_draw_other_text():
    orders = [mixed_order([5] * 40, [5] * 400, 10, 2, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    drawn = [{row for row in order if row >= 40} for order in orders]
    assert all(len(rows) == 10 for rows in drawn)
    assert drawn[0] != drawn[1]
    assert drawn[0] != drawn[2]


def test_long_text_is_dealt_to_steps_of_long_rows():
    lengths, others = [*range(2, 42)] * 4, [*range(2, 42)]
    order = mixed_order(lengths, others, 10, 2, 0, 0)
    both = [*lengths, *others]
    padded = sum(10 * max(both[row] for row in order[start : start + 10]) for start in range(0, len(order), 10))
    assert padded < 1.25 * sum(both[row] for row in order)


# EWC.


class _Bigrams(nn.Module):
    """A language model whose Fisher information can be written down: logits are a token's embedding times a matrix."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.register_buffer("table", torch.randn(12, 3, generator=generator))
        self.weight = nn.Parameter(torch.randn(12, 3, generator=generator))

    def forward(self, input_ids, attention_mask):
        return SimpleNamespace(logits=self.table[input_ids] @ self.weight.T)


def test_the_fisher_information_is_that_of_the_formula():
    """Of a softmax, F of weight (i, j) is the mean of x_j² p_i (1 − p_i)."""
    model = _Bigrams()
    rows = [Row(tuple((place * 5 + k) % 12 for k in range(3)), 0) for place in range(4000)]
    (found,) = weight_fisher(model, [model.weight], rows, 1, Recorder())
    chances = (model.table @ model.weight.T).softmax(-1).detach()
    counts = torch.bincount(torch.tensor([number for row in rows for number in row.ids]), minlength=12).float()
    expected = torch.einsum("t,tj,ti->ij", counts, model.table.square(), chances * (1 - chances))
    expected /= expected.mean()
    assert float(found.mean()) == pytest.approx(1, rel=1e-5)
    assert torch.allclose(found, expected, rtol=0.25, atol=0.02)
    assert float(torch.corrcoef(torch.stack([found.flatten(), expected.flatten()]))[0, 1]) > 0.99


def _lora(method: str = "lora", **settings):
    recipe = parse_recipe({**RECIPE, "method": method, method: {"rank": 4, **settings}, "ewc": {"strength": 3}})
    model = load_base(readers(tiny_llama())).causal_lm()
    torch.manual_seed(0)
    return recipe, add_adapter(model, recipe, causal=True)


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapters_fisher_is_that_of_the_weights_under_it(rslora):
    """The hooks, which need no gradient of the base's weights, against autograd's own."""
    _, model = _lora(rslora=rslora)
    found = effect_fisher(model, ROWS, 4, Recorder())
    weights = [module.base_layer.weight for module in model.modules() if hasattr(module, "base_layer")]
    for weight in weights:
        weight.requires_grad_(True)
    whole = weight_fisher(model, weights, ROWS, 4, Recorder())
    assert len(found) == len(whole) == 14
    for layer, fisher in zip(found, whole, strict=True):
        outer = layer.rows.unsqueeze(1) * layer.columns
        assert torch.allclose(outer.sum(0), fisher.sum(0), rtol=1e-3, atol=1e-5)
        assert torch.allclose(outer.sum(1), fisher.sum(1), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", ["full", "ia3", "lora", "rslora"])
def test_the_pull_is_the_gradient_of_the_penalty(method):
    if method in ("lora", "rslora"):
        recipe, model = _lora(rslora=method == "rslora")
    else:
        recipe = parse_recipe({**RECIPE, "method": method, "ewc": {"strength": 3}})
        model = add_adapter(load_base(readers(tiny_llama())).causal_lm(), recipe, causal=True)
    penalty = consolidation(model, recipe, ROWS, Recorder())
    assert penalty.value() == 0  # the base itself costs nothing
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    penalty.pull(0.5)
    gradients = [parameter.grad.clone() for parameter in trained]
    assert penalty.value() > 0
    direction = [torch.randn(parameter.shape, generator=generator) for parameter in trained]
    slope, step = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True)), 1e-3
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            for parameter, along in zip(trained, direction, strict=True):
                parameter.add_(sign * step * along)
            ends.append(penalty.value())
            for parameter, along in zip(trained, direction, strict=True):
                parameter.add_(-sign * step * along)
    assert slope == pytest.approx(0.5 * (ends[0] - ends[1]) / (2 * step), rel=0.02)


def test_looking_for_what_matters_changes_nothing():
    recipe, model = _lora()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(3)
    consolidation(model, recipe, ROWS, Recorder())
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))  # nothing was drawn that the training draws
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    "changes",
    [
        {"replay": {"share": "0.1"}, "general": "lab/g", "batch_size": 4},
        {"replay": {"share": "0.9"}, "general": "lab/g", "batch_size": 4},
        {"replay": {}},
        {"replay": {}, "general": "lab/g", "task": "classification", "columns": {"text": "t", "label": "l"}},
        {"replay": {}, "general": "lab/g", "task": "preference", "method": "full",
         "columns": {"prompt": "p", "chosen": "c", "rejected": "r"}},
        {"replay": {}, "general": "lab/g", "privacy": {}},
        {"ewc": {}, "privacy": {}},
        {"ewc": {}, "method": "scratch"},
        {"ewc": {}, "method": "prefix"},
        {"ewc": {}, "method": "prompt"},
        {"ewc": {}, "method": "ptuning"},
        {"ewc": {}, "method": "lora", "lora": {"dora": True}},
        {"ewc": {}, "task": "classification", "columns": {"text": "t", "label": "l"}},
        {"ewc": {}, "sharding": "fsdp", "processes": 2},
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_with_a_reason(changes):
    with pytest.raises(Misuse) as refused:
        parse_recipe({**RECIPE, **changes})
    assert refused.value.code == "recipe.combination"


# Whole runs.


def walks(words, steps, lengths=(10,)):
    """Texts that go round a list of words, always by the same step."""
    return [
        " ".join(words[(start + k * step) % len(words)] for k in range(length))
        for start in range(len(words))
        for step in steps
        for length in lengths
    ]


# The base has learned to go forward through the first half of the words; the task is to go back through the second.
GENERAL, TASK = walks(WORDS[:20], (1, 3)), walks(WORDS[20:], (-1,), (8, 9, 10, 11))
FAST = {"learning_rate": "0.01", "schedule": "linear"}


def run(changes, files=None, texts=TASK, general=GENERAL, sink=None):
    recorder = Recorder()
    base = load_base(readers(files or tiny_llama()))
    return run_training(
        parse_recipe({**RECIPE, **changes}), base, Table({"text": texts}), sink=sink or MemorySink(),
        progress=recorder, lease=recorder, general=general,
    )  # fmt: skip


@pytest.fixture(scope="module")
def learned():
    """A base that knows the general text."""
    made = run({**FAST, "epochs": 24}, texts=GENERAL)
    assert made.evaluation.scores["general_loss"].tuned < 1
    return {**tiny_llama(), "model.safetensors": export_files(made)["model/model.safetensors"]}


@pytest.fixture(scope="module")
def forgetful(learned):
    """By method: the task's loss, and by how much the loss on general text rose, where nothing was done against it."""
    rates = {"full": {}, "lora": {"learning_rate": "0.02"}}
    return cache(lambda method: _figures(run({**FAST, "method": method, "epochs": 4, **rates[method]}, learned)))


def _figures(result):
    scores = result.evaluation.scores
    assert scores["general_loss"].base < 1
    return float(scores["loss"].tuned), -float(scores["general_loss"].gain)


@pytest.mark.parametrize(
    "against",
    [
        {"ewc": {"strength": "0.3"}},
        {"replay": {"share": "0.25"}, "general": "lab/prose"},
        pytest.param({"ewc": {"strength": "0.3"}, "method": "lora", "learning_rate": "0.02"}, marks=pytest.mark.slow),
    ],
    ids=["ewc", "replay", "ewc-lora"],
)
def test_less_is_forgotten_at_the_same_loss_of_the_task(learned, forgetful, against):
    """It takes twice the epochs to learn as much, and then a quarter is forgotten, or less."""
    plain_loss, plain_rise = forgetful(against.get("method", "full"))
    loss, rise = _figures(run({**FAST, "epochs": 8, **against}, learned))
    assert plain_rise > 4
    assert loss < plain_loss + 0.02
    assert rise < plain_rise / 4


def test_the_share_is_counted_apart():
    without, with_it = (run({"epochs": 1, **more}) for more in ({}, {"replay": {"share": "0.25"}, "general": "lab/p"}))
    assert "replay_rows" not in without.evaluation.facts
    rows = 72  # of 80 a tenth is set aside
    assert without.timings.steps == rows / 8
    assert with_it.timings.steps == rows / 6
    assert with_it.evaluation.facts["replay_rows"] == with_it.timings.steps * 2
    assert with_it.evaluation.facts["replay_tokens"] == with_it.timings.steps * 2 * 12
    assert with_it.timings.tokens == without.timings.tokens
    assert with_it.evaluation.facts["general_rows"] == len(GENERAL) / 2


def test_a_search_tries_only_steps_with_room_for_the_share():
    recipe = parse_recipe({**RECIPE, "batch_size": 2, "replay": {"share": "0.5"}, "general": "lab/p", "search": {}})
    assert _space(recipe)["batch_size"].choices == (2, 4)


@pytest.mark.parametrize("method", ["full", pytest.param("lora", marks=pytest.mark.slow)])
def test_a_resumed_run_is_bit_identical(method):
    changes = {
        "method": method, "checkpoint_steps": 3, "replay": {"share": "0.25"}, "general": "lab/prose",
        "ewc": {"strength": "2"}, "max_steps": 8, "batch_size": 4, "gradient_accumulation": 2,
    }  # fmt: skip
    whole, sink = run(changes), MemorySink(stop_at=6)
    with pytest.raises(InterruptedError):
        run(changes, sink=sink)
    sink.stop_at = None
    resumed = run(changes, sink=sink)
    assert resumed.timings.resumed_from == 6
    assert export_files(resumed) == export_files(whole)
    assert resumed.evaluation.document() == whole.evaluation.document()
    assert Decimal(whole.evaluation.facts["ewc_penalty"]) > 0


@pytest.mark.parametrize("more", [{"ewc": {"strength": "2"}}, {"replay": {"share": "0.25"}, "general": "lab/prose"}])
def test_accumulated_batches_are_the_large_batch(more):
    """The penalty counts once a step, and general text in its share, however the step is cut."""
    one = run({"batch_size": 8, "max_steps": 4, **more})
    two = run({"batch_size": 2, "gradient_accumulation": 4, "max_steps": 4, **more})
    for name in ("loss", "general_loss"):
        first, second = (result.evaluation.scores[name].tuned for result in (one, two))
        assert float(first) == pytest.approx(float(second), abs=2e-4)
    weights = [result.model.state_dict() for result in (one, two)]
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=2e-4) for name in weights[0])


def test_the_asset_s_texts_are_what_is_measured_and_replayed():
    def jsonl(texts, column="text"):
        return MemoryFiles({"a.jsonl": "".join(json.dumps({column: text}) + "\n" for text in texts).encode()})

    def outcome(general):
        recipe = parse_recipe({**RECIPE, "epochs": 1, "replay": {"share": "0.25"}, "general": "library/prose"})
        recorder = Recorder()
        gates = [Gate("general_bits_per_byte", Decimal("-9"))]
        inputs = Inputs(recipe, jsonl(TASK), MemoryFiles(tiny_llama()), gates, "00", general=general)
        return train_and_evaluate(inputs, sink=MemorySink(), progress=recorder, lease=recorder)

    made = outcome(jsonl(GENERAL))
    assert made.evaluation["general_text"] == "library/prose"
    assert made.evaluation["general_rows"] == 20
    assert made.evaluation["replay_rows"] == 24
    assert [gate["passed"] for gate in made.gates] == [True]
    with pytest.raises(Misuse) as refused:
        outcome(jsonl(GENERAL, "prose"))
    assert refused.value.code == "data.column"
    with pytest.raises(Misuse) as refused:
        outcome(jsonl(GENERAL[:9]))
    assert refused.value.code == "general.few"


COLUMNS = {
    "generation": {"completion": "text"},
    "chat": {"messages": "messages"},
    "preference": {"prompt": "label", "chosen": "text", "rejected": "other"},
    "classification": {"text": "text", "label": "label"},
    "multilabel": {"text": "text", "labels": "labels"},
    "extraction": {"tokens": "tokens", "tags": "tags"},
    "ranking": {"query": "other", "document": "text", "relevance": "relevance"},
    "embedding": {"query": "other", "positive": "text"},
}


def _table():
    rows = range(48)
    texts = [f"{WORDS[row % 10]} {' '.join(WORDS[(row * 3 + k) % 40] for k in range(4))} {row}" for row in rows]
    said = [[{"role": "user", "content": text}, {"role": "assistant", "content": "please help"}] for text in texts]
    return Table({
        "text": texts,
        "other": [f"not {WORDS[row % 12]}" for row in rows],
        "label": [WORDS[row % 2] for row in rows],
        "labels": [json.dumps([WORDS[row % 3]]) for row in rows],
        "tokens": [json.dumps(text.split()) for text in texts],
        "tags": [json.dumps(["B-x", *["O"] * (len(text.split()) - 1)]) for text in texts],
        "relevance": [str(row // 12 % 2) for row in rows],
        "messages": [json.dumps(each) for each in said],
    })  # fmt: skip


@pytest.mark.parametrize("task", COLUMNS)
def test_every_task_measures_without_being_asked(task):
    causal = task in ("generation", "chat", "preference")
    base, recorder = load_base(readers(tiny_llama() if causal else tiny_bert())), Recorder()
    changes = {"task": task, "method": "lora", "columns": COLUMNS[task], "max_steps": 3}
    if task == "chat":
        changes["template"] = "base"
        base = load_base(readers(tiny_llama(), tokenizer_config__json=_TEMPLATE))
    result = run_training(
        parse_recipe({**RECIPE, **changes}), base, _table(), sink=MemorySink(), progress=recorder, lease=recorder
    )
    document = result.evaluation.document()
    assert document["general_text"] == "built-in"
    assert document["general_rows"] >= 25
    if causal:
        assert float(document["base_general_loss"]) > 0
        assert document["general_loss"] != document["base_general_loss"]
        assert float(document["general_loss_rise_low"]) <= float(document["general_loss_rise_high"])
    else:
        assert document["base_general_similarity"] == "1.000000"
        assert 0 < float(document["general_similarity"]) < 1
        assert 0 <= float(document["general_neighbours"]) <= 1


_TEMPLATE = json.dumps({
    "bos_token": "<s>", "eos_token": "</s>", "unk_token": "[UNK]",
    "chat_template": "{% for m in messages %}{{ m.role }} : {{ m.content }}</s>{% endfor %}",
}).encode()  # fmt: skip
