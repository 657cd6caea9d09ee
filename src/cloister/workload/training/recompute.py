"""Activations that are computed twice instead of kept (gradient checkpointing, Chen et al. 2016): time for memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel

from ...errors import Misuse

__all__ = ["recomputed"]


@contextmanager
def recomputed(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Within, every transformer block of ``model`` keeps its input alone, and is computed again for its gradient.

    The numbers are the same: the same products of the same numbers. Raises Misuse (``recipe.combination``) for an
    architecture that can't.
    """
    inner = [module for module in model.modules() if isinstance(module, PreTrainedModel)] if wanted else []
    outermost = inner[:1]
    if wanted and not (outermost and outermost[0].supports_gradient_checkpointing):
        raise Misuse(
            "recipe.combination", "This base can't compute activations twice; set gradient_checkpointing to false."
        )
    for body in outermost:
        # The older, re-entrant way needs a gradient at the model's input, which a frozen embedding doesn't have.
        body.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    try:
        yield
    finally:
        for body in outermost:
            body.activation_checkpointing_disable()
