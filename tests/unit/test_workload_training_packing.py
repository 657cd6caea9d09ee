"""Packed rows: each token once, in its place, with its target; no row sees or answers for another."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cloister.contracts.recipe import parse_recipe
from cloister.errors import Misuse
from cloister.workload.data import read_table
from cloister.workload.training import load_base, run_training
from cloister.workload.training.batching import IGNORED, Row, collate_causal
from cloister.workload.training.fast import packs
from cloister.workload.training.packing import collate_line, keeps_rows_apart
from tests.tiny_models import MemorySink, Recorder, banking_csv, readers, tiny_llama

TEXT = {
    "task": "generation", "method": "full", "data": "bank/queries", "base": "lab/tiny", "threads": 1,
    "columns": {"prompt": "label", "completion": "text"}, "batch_size": 8, "epochs": 2, "learning_rate": "0.01",
    "checkpoint_steps": 5, "precision": "fp32", "compile": "off",
}  # fmt: skip
ROWS = [Row((3, 4, 5, 6, 7), 2), Row((8, 9), 0), Row((10,), 0), Row((11, 12, 13), 1, marks=(IGNORED, 12, IGNORED))]


def model() -> Any:
    return load_base(readers(tiny_llama())).causal_lm()


def run(recipe: dict[str, Any], sink: MemorySink | None = None) -> Any:
    parsed = parse_recipe(recipe)
    table = read_table({"q.csv": io.BytesIO(banking_csv(90))}, parsed.columns.names())
    recorder, base = Recorder(), load_base(readers(tiny_llama()))
    return run_training(parsed, base, table, sink=sink or MemorySink(), progress=recorder, lease=recorder)


def rows() -> Any:
    def row(ids: list[int], prompt: int, marked: bool) -> Row:
        marks = tuple(i if place % 2 else IGNORED for place, i in enumerate(ids)) if marked else ()
        return Row(tuple(ids), min(prompt, len(ids)), marks=marks)

    each = st.builds(row, st.lists(st.integers(0, 42), min_size=1, max_size=9), st.integers(0, 9), st.booleans())
    return st.lists(each, min_size=1, max_size=7)


@given(rows())
def test_a_line_holds_each_token_once_in_its_place_with_its_target(rows):
    line, padded = collate_line(rows), collate_causal(rows, 0)
    borders = line["attention_mask"].flatten().tolist()
    assert borders[0] == 0
    assert borders[-1] == line["input_ids"].shape[1] == sum(len(row.ids) for row in rows)
    for number, (row, start, end) in enumerate(zip(rows, borders[:-1], borders[1:], strict=True)):
        assert line["input_ids"][0, start:end].tolist() == list(row.ids)
        assert line["position_ids"][0, start:end].tolist() == list(range(len(row.ids)))
        # A model shifts: what stands at a place is the target of the place before.
        assert line["labels"][0, start] == IGNORED
        assert line["labels"][0, start + 1 : end].tolist() == padded["labels"][number, 1 : len(row.ids)].tolist()


def test_a_packed_row_has_the_logits_that_it_has_alone():
    base = model()
    batch = collate_line(ROWS)
    del batch["labels"]
    with torch.inference_mode():
        beside = base(**batch).logits[0]
        alone = torch.cat([base(input_ids=torch.tensor([row.ids])).logits[0] for row in ROWS])
    assert torch.allclose(beside, alone, atol=1e-5)


def test_nothing_of_a_row_reaches_another_forwards_or_backwards():
    base = model()
    embedded = base.get_input_embeddings()(collate_line(ROWS)["input_ids"]).detach().requires_grad_()
    batch = collate_line(ROWS)
    logits = base(
        inputs_embeds=embedded, position_ids=batch["position_ids"], attention_mask=batch["attention_mask"]
    ).logits
    logits[0, 5:7].sum().backward()  # the second row's
    touched = embedded.grad[0].abs().sum(1) > 0
    assert touched.tolist() == [5 <= place < 7 for place in range(11)]


def test_packed_gradients_are_those_of_padded_rows():
    both = []
    for collate in (collate_line, collate_causal):
        base = model()
        base(**collate(ROWS, pad=0)).loss.backward()
        both.append([p.grad for p in base.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*both, strict=True))


def test_a_model_that_mixes_rows_is_found_out():
    base = model()
    assert keeps_rows_apart(base, ROWS)

    class Mixing(torch.nn.Module):
        """Attention that doesn't know where rows begin."""

        config = base.config

        def __init__(self) -> None:
            super().__init__()
            self.inner = base

        def forward(self, input_ids: Any, position_ids: Any = None, attention_mask: Any = None) -> Any:
            return self.inner(input_ids=input_ids)

    assert not keeps_rows_apart(Mixing(), ROWS)


def test_a_window_narrower_than_the_longest_row_is_not_packed():
    base = model()
    base.config.sliding_window = 4
    assert not keeps_rows_apart(base, ROWS)


def test_packing_is_refused_in_words_where_it_is_asked_for_and_impossible():
    base = model()
    base.config.sliding_window = 4
    assert not packs(base, parse_recipe(TEXT), ROWS)
    with pytest.raises(Misuse, match="keep rows apart"):
        packs(base, parse_recipe({**TEXT, "packing": "on"}), ROWS)


@pytest.mark.parametrize("method", ["prefix", "prompt", "ptuning"])
def test_virtual_tokens_and_packing_are_refused_at_check_time(method):
    with pytest.raises(Misuse, match="packing"):
        parse_recipe({**TEXT, "method": method, "packing": "on"})


def test_other_tasks_and_packing_are_refused_at_check_time():
    with pytest.raises(Misuse, match="packing"):
        parse_recipe({
            **TEXT, "task": "classification", "columns": {"text": "text", "label": "label"}, "packing": "on",
        })  # fmt: skip


@pytest.mark.parametrize("method", ["full", "lora"])
def test_packed_training_learns_resumes_bit_for_bit_and_says_that_it_was_packed(method):
    recipe = {**TEXT, "method": method}
    whole = run(recipe)
    assert whole.timings.training["packing"] == "on"
    assert whole.evaluation.scores["loss"].gain > 0
    killed = MemorySink(stop_at=10)
    with pytest.raises(InterruptedError):
        run(recipe, killed)
    resumed = run(recipe, killed)
    assert resumed.timings.resumed_from == 10
    states = [result.model.state_dict() for result in (whole, resumed)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert run({**recipe, "packing": "off"}).timings.training["packing"] == "off"


def test_packed_accumulation_equals_the_large_batch():
    large = run({**TEXT, "epochs": 1}).model.state_dict()
    small = run({**TEXT, "epochs": 1, "batch_size": 2, "gradient_accumulation": 4}).model.state_dict()
    assert all(torch.allclose(large[name], small[name], atol=1e-4) for name in large)
