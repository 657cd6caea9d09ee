"""Settings that are tried first: what is chosen, by which rows, within which bounds, and once for a run."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
import torch

from cloister.contracts.recipe import Recipe, parse_recipe
from cloister.errors import Denied, Malformed, Misuse
from cloister.workload.data import read_table
from cloister.workload.training import TrainingResult, export_files, load_base, run_training
from cloister.workload.training.looks import Look
from cloister.workload.training.search import choose_settings
from tests.tiny_models import MemorySink, Recorder, banking_csv, readers, tiny_bert

RECIPE: dict[str, Any] = {
    "task": "classification", "method": "lora", "data": "bank/queries", "base": "lab/tiny", "threads": 1,
    "columns": {"text": "text", "label": "label"}, "batch_size": 8, "epochs": 2, "learning_rate": "0.0001",
    "checkpoint_steps": 4, "precision": "fp32", "lora": {"rank": 4}, "compile": "off",
    "search": {"trials": 3, "epochs": 1},
}  # fmt: skip


def chosen(
    figures: Any, recipe: Recipe | None = None, clock: Any = lambda: 0.0
) -> tuple[Recipe, Mapping[str, str | int], list[Recipe]]:
    """A search in which a try's figure is ``figures`` of its recipe."""
    tried: list[Recipe] = []
    weight = torch.zeros(2)

    def attempt(trial: Recipe, ports: Mapping[str, Any]) -> None:
        assert weight.tolist() == [0.0, 0.0]  # every try starts from the same weights
        weight.fill_(7.0)
        tried.append(trial)
        current.append(trial)
        ports["look"]()

    current: list[Recipe] = []
    sink: Any = MemorySink()
    found, facts = choose_settings(
        recipe or parse_recipe({**RECIPE, "search": {"trials": 12}}), {"w": weight}, attempt, sink=sink,
        progress=Recorder(), lease=Recorder(), look=lambda: figures(current[-1]), clock=clock,
    )  # fmt: skip
    assert weight.tolist() == [0.0, 0.0]
    return found, facts, tried


def test_what_does_best_is_chosen_and_the_recipe_s_own_settings_are_tried_first():
    recipe, facts, tried = chosen(lambda r: Look("accuracy", -abs(float(r.learning_rate) - 0.0008)))
    assert (tried[0].learning_rate, tried[0].batch_size) == (Decimal("0.0001"), 8)
    best = min(tried, key=lambda r: abs(float(r.learning_rate) - 0.0008))
    assert recipe.learning_rate == best.learning_rate
    assert facts == {
        "chosen_learning_rate": f"{recipe.learning_rate:f}",
        "chosen_batch_size": recipe.batch_size,
        "search": "done",
        "search_trials": 12,
    }
    assert all(t.epochs == 1 and t.checkpoint_steps == 0 and t.select == "last" for t in tried)
    assert {t.batch_size for t in tried} <= {4, 8, 16}
    assert all(Decimal("0.00001") <= t.learning_rate <= Decimal("0.001") for t in tried)
    assert replace(recipe, learning_rate=Decimal("0.0001"), batch_size=8) == parse_recipe(
        {**RECIPE, "search": {"trials": 12}}
    )


def test_less_is_better_where_the_figure_says_so():
    recipe, _, tried = chosen(lambda r: Look("loss", float(r.learning_rate), lower=True))
    assert recipe.learning_rate == min(t.learning_rate for t in tried)


def test_the_same_search_comes_out_the_same():
    runs = [chosen(lambda r: Look("loss", (float(r.learning_rate) - 0.0003) ** 2, lower=True)) for _ in range(2)]
    assert runs[0] == runs[1]


def test_a_bound_of_minutes_ends_it_after_the_try_that_passes_it():
    recipe = parse_recipe({**RECIPE, "search": {"trials": 100, "minutes": 1}})
    ticks = itertools.count(0, 25)
    _, facts, tried = chosen(lambda r: Look("loss", 1.0), recipe, lambda: float(next(ticks)))
    assert facts["search_trials"] == len(tried) == 3


def test_a_try_that_goes_astray_counts_as_the_worst_and_others_go_on():
    def figure(recipe: Recipe) -> Look:
        if recipe.learning_rate > Decimal("0.00005"):
            raise Misuse("training.loss", "The loss is not a number.")
        return Look("accuracy", 0.1)

    recipe, _, tried = chosen(figure)
    assert len(tried) == 12
    assert recipe.learning_rate <= Decimal("0.00005")


def test_another_error_of_a_try_ends_the_search():
    def figure(recipe: Recipe) -> Look:
        raise Denied("lease.expired", "The lease ended.")

    with pytest.raises(Denied):
        chosen(figure)


def train(sink: MemorySink, recorder: Recorder, recipe: dict[str, Any] = RECIPE) -> TrainingResult:
    base = load_base(readers(tiny_bert()))
    table = read_table(readers({"rows.csv": banking_csv(60)}), ("text", "label"))
    return run_training(parse_recipe(recipe), base, table, sink=sink, progress=recorder, lease=recorder)


def test_a_run_that_searches_trains_with_what_was_chosen_and_a_resumed_one_does_not_search_again():
    sink, recorder = MemorySink(), Recorder()
    whole = train(sink, recorder)
    facts = whole.timings.training
    assert facts["search_trials"] == 3
    assert [stage for stage, *_ in recorder.reports].count("search") == 3
    alone = train(MemorySink(), Recorder(), {
        **RECIPE, "search": None, "select": "last", "learning_rate": facts["chosen_learning_rate"],
        "batch_size": facts["chosen_batch_size"], "patience": 1000,
    })  # fmt: skip
    assert export_files(alone) == export_files(whole)

    resumed_from, again = MemorySink(), Recorder()
    resumed_from.saved = dict(list(sink.saved.items())[:1])
    resumed = train(resumed_from, again)
    assert resumed.timings.training["search"] == "of the checkpoint"
    assert "search" not in [stage for stage, *_ in again.reports]
    assert resumed.timings.resumed_from > 0
    assert export_files(resumed) == export_files(whole)


def test_a_checkpoint_that_names_no_settings_is_not_resumed():
    sink = MemorySink()
    train(sink, Recorder(), {**RECIPE, "search": None})
    with pytest.raises(Malformed):
        train(sink, Recorder())
