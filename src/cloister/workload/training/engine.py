"""One training, from rows to a tuned model and its answers on the validation rows. Start reading here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import torch

from ...contracts.recipe import Recipe
from ...errors import Misuse
from ..data import Split, Table
from ..evaluation import Evaluation
from .base_model import BaseModel
from .chat import run_chat
from .classify import run_classification
from .distributed import require_processors
from .embed import run_embedding
from .extract import run_extraction
from .forgetting import GeneralText
from .generate import run_generation
from .health import is_out_of_memory, no_memory
from .multilabel import run_multilabel
from .ports import CheckpointSink, Lease, Progress
from .preference import run_preference
from .rank import run_ranking
from .run import Ports, TrainingResult
from .seq2seq import require_answers

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
    general: Sequence[str] | None = None,
) -> TrainingResult:
    """Train as the recipe says, on the table's rows, and compare with the base on rows that were set aside: the test
    rows where the validation rows choose something, else these.

    ``split`` sets other validation rows aside than the recipe's seeded share, for cross-validation. ``general``: the
    text on which is measured, before and after, what the model could do before; None: the project's own.

    Goes on from the sink's newest checkpoint if there is one: on one machine and thread count the result is bit for
    bit that of an uninterrupted run. Raises what the ports raise, and Misuse or Malformed for rows or a base that
    don't fit.
    """
    require_processors(recipe)
    if base.is_encoder_decoder:
        require_answers(recipe)
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    # The tokenizers' own thread pool would fight the matrix products for the same cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if split is not None and recipe.test is not None and not split.test:
        raise Misuse(
            "data.test", "The recipe chooses by validation rows, so the split must have test rows beside them."
        )
    ports = Ports(sink, progress, lease, GeneralText(recipe, base, lease, general))
    lease.check()
    try:
        result = _RUNS[recipe.task](recipe, base, table, ports, split)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise no_memory() from None
    facts = {"base_held": "nf4"} if recipe.method == "qlora" else {}
    found = result.evaluation.joined(Evaluation({}, facts)).joined(ports.general.after(result.model))
    return replace(result, evaluation=found)
