"""Which settings can't work together, with the reason. Checked wherever a recipe is read, so nobody finds out later."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import Misuse

if TYPE_CHECKING:
    from .recipe import Recipe

__all__ = ["check_combination"]

_POOLED = ("classification", "multilabel", "ranking", "embedding")
_FROM_EMBEDDINGS = (*_POOLED, "extraction")


def check_combination(recipe: Recipe) -> None:
    """Raises Misuse (``recipe.value``, ``recipe.combination``)."""
    if recipe.task not in _POOLED and recipe.pooling != "auto":
        raise Misuse(
            "recipe.value", f"The recipe's 'pooling' is for {', '.join(_POOLED)} only; remove it.", key="pooling"
        )
    if recipe.task != "chat" and recipe.template is not None:
        raise Misuse("recipe.value", "The recipe's 'template' is for chat only; remove it.", key="template")
    if recipe.method == "scratch" and recipe.task == "preference":
        raise _cannot(
            "method",
            "Preferences are learned as a difference from a base, and a model from scratch has learned nothing yet;"
            " train it on conversations or text first.",
        )
    if recipe.method == "scratch" and recipe.task in _FROM_EMBEDDINGS:
        raise _cannot(
            "method",
            f"Task {recipe.task} starts from a base's embeddings, and a model from scratch has none yet;"
            " train it on task text first, or use method full.",
        )
    if recipe.task == "embedding" and recipe.batch_size < 2:
        raise _cannot("batch_size", "An embedding learns from the other rows of its batch; set it to 2 or more.")
    if recipe.task == "embedding" and recipe.gradient_accumulation > 1:
        raise _cannot(
            "gradient_accumulation",
            "An embedding learns from the other rows of its batch, and accumulated batches don't see each other;"
            " raise batch_size instead.",
        )
    _check_choices(recipe)
    lora = recipe.lora
    if lora is not None and lora.dora and lora.dropout:
        raise _cannot(
            "lora.dropout",
            "DoRA measures the whole weight, which dropout changes at every step; set lora.dropout to 0.",
        )


def _check_choices(recipe: Recipe) -> None:
    chosen = recipe.select == "best" or recipe.patience or recipe.search is not None
    if recipe.test is not None and not chosen:
        raise _cannot(
            "test",
            "Nothing is chosen by the validation rows here, so the report is on them; remove 'test', or set 'select' to"
            " best, 'patience' or 'search'.",
        )
    if recipe.replay is not None and recipe.general is None:
        raise _cannot("replay", "Replay mixes general text in; name the asset that holds it in 'general'.")
    if recipe.gradient_checkpointing and recipe.method == "prefix":
        raise _cannot(
            "gradient_checkpointing",
            "Prefix tuning keeps its tokens in the attention's cache, which gradient checkpointing turns off; set it to"
            " false.",
        )
    if recipe.privacy is not None:
        _check_privacy(recipe)


def _check_privacy(recipe: Recipe) -> None:
    if recipe.packing == "on":
        raise _cannot(
            "packing", "Packed rows share a gradient, and differential privacy needs one a unit; set packing to off."
        )
    if recipe.task not in ("classification", "generation", "text", "chat"):
        raise _cannot(
            "privacy", "Differential privacy is there for classification, generation, text and chat; remove 'privacy'."
        )
    if recipe.method not in ("lora", "full", "qlora"):
        raise _cannot("privacy", "Differential privacy is there for lora, qlora and full; choose one of them.")


def _cannot(key: str, reason: str) -> Misuse:
    return Misuse("recipe.combination", reason, key=key)
