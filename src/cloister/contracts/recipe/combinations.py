"""Which settings can't work together, with the reason. Checked wherever a recipe is read, so nobody finds out later."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import Misuse

if TYPE_CHECKING:
    from .recipe import Recipe

__all__ = ["check_combination"]


def check_combination(recipe: Recipe) -> None:
    """Raises Misuse (``recipe.value``, ``recipe.combination``)."""
    if recipe.task != "classification" and recipe.pooling != "auto":
        raise Misuse("recipe.value", "The recipe's 'pooling' is for classification only; remove it.", key="pooling")
    if recipe.method == "scratch" and recipe.task == "classification":
        raise _cannot(
            "method",
            "A classifier starts from a base's embeddings, and a model from scratch has none yet;"
            " train it on task text first, or use method full.",
        )
    lora = recipe.lora
    if lora is not None and lora.dora and lora.dropout:
        raise _cannot(
            "lora.dropout",
            "DoRA measures the whole weight, which dropout changes at every step; set lora.dropout to 0.",
        )


def _cannot(key: str, reason: str) -> Misuse:
    return Misuse("recipe.combination", reason, key=key)
