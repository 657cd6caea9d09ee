"""One training, from rows to a tuned model and its answers on the validation rows. Start reading here."""

from __future__ import annotations

import os

import torch

from ...contracts.recipe import Recipe
from ..data import Split, Table
from .base_model import BaseModel
from .chat import run_chat
from .classify import run_classification
from .embed import run_embedding
from .extract import run_extraction
from .generate import run_generation
from .multilabel import run_multilabel
from .ports import CheckpointSink, Lease, Progress
from .preference import run_preference
from .rank import run_ranking
from .run import Ports, TrainingResult

__all__ = ["run_training"]

_RUNS = {
    "classification": run_classification,
    "multilabel": run_multilabel,
    "extraction": run_extraction,
    "ranking": run_ranking,
    "embedding": run_embedding,
    "generation": run_generation,
    "text": run_generation,
    "chat": run_chat,
    "preference": run_preference,
}


def run_training(
    recipe: Recipe,
    base: BaseModel,
    table: Table,
    *,
    sink: CheckpointSink,
    progress: Progress,
    lease: Lease,
    split: Split | None = None,
) -> TrainingResult:
    """Train as the recipe says, on the table's rows, and compare with the base on the validation rows.

    ``split`` sets other validation rows aside than the recipe's seeded share, for cross-validation.

    Goes on from the sink's newest checkpoint if there is one: on one machine and thread count the result is bit for
    bit that of an uninterrupted run. Raises what the ports raise, and Misuse or Malformed for rows or a base that
    don't fit.
    """
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    # The tokenizers' own thread pool would fight the matrix products for the same cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    ports = Ports(sink, progress, lease)
    lease.check()
    return _RUNS[recipe.task](recipe, base, table, ports, split)
