"""Gradient checkpointing: less memory for the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from cloister.contracts.recipe import parse_recipe
from cloister.errors import Misuse
from cloister.workload.data import read_table
from cloister.workload.training import TrainingResult, export_files, load_base, run_training
from cloister.workload.training.recompute import recomputed
from tests.tiny_models import MemorySink, Recorder, banking_csv, readers, tiny_bert, tiny_llama


def train(task: str, method: str, **more: Any) -> TrainingResult:
    columns = {"text": "text", "label": "label"} if task == "classification" else {"completion": "text"}
    recipe = parse_recipe(
        {
            "task": task, "method": method, "data": "a/b", "base": "a/c", "columns": columns, "threads": 1, "epochs": 1,
            "batch_size": 8, "checkpoint_steps": 0, "precision": "fp32", "compile": "off", "learning_rate": "0.001",
            **more,
        }
    )  # fmt: skip
    base = load_base(readers(tiny_bert() if task == "classification" else tiny_llama()))
    table = read_table(readers({"rows.csv": banking_csv(40)}), columns.values())
    return run_training(recipe, base, table, sink=MemorySink(), progress=Recorder(), lease=Recorder())


@pytest.mark.parametrize(
    ("task", "method"), [("classification", "lora"), ("generation", "full"), ("generation", "lora")]
)
def test_the_numbers_are_the_same(task: str, method: str) -> None:
    assert export_files(train(task, method, gradient_checkpointing=True)) == export_files(train(task, method))


def test_blocks_keep_their_input_alone_and_only_within() -> None:
    model = load_base(readers(tiny_llama())).causal_lm().train()
    ids = torch.arange(40).remainder(20).reshape(2, 20)

    def kept() -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            model(input_ids=ids, labels=ids)
        return sum(sizes)

    before = kept()
    with recomputed(model, True):
        assert kept() < before / 2
    assert kept() == before
    with recomputed(model, False):
        assert kept() == before


def test_a_model_that_can_not_says_so() -> None:
    with pytest.raises(Misuse), recomputed(nn.Linear(2, 2), True):
        pass
