"""torch.compile where it pays: in runs so long that what it saves is more than what compiling takes.

It needs a C++ compiler beside the process (and Triton on a GPU). The sandbox's image holds none, on purpose; there
``auto`` trains without, and says so in the evaluation. Shapes are dynamic, so few graphs serve all batches. They are
made from a batch that doesn't depend on where the training goes on: a resumed run computes with the same graphs.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ...contracts.recipe import Recipe
from ...errors import Misuse

__all__ = ["compiled", "pays"]

# Seen on a processor core: a training step's speed without compiling, and what compiling a layer takes. A fifth of the
# time is saved; it must be twice what is spent.
_SPEED = 6e10  # floating point operations a second and core
_LAYER_SECONDS = 15.0
_SAVED = 0.2


def pays(recipe: Recipe, model: nn.Module, tokens: int) -> bool:
    """Whether to compile for a training on ``tokens`` tokens. Misuse (``recipe.compile``) for ``on`` where nothing can
    be compiled."""
    if recipe.compile == "off":
        return False
    possible = recipe.processes == 1 and recipe.privacy is None and _has_compiler()
    if recipe.compile == "on":
        if not possible:
            raise _cannot()
        return True
    numbers = sum(p.numel() for p in model.parameters())
    seconds = 6.0 * numbers * tokens / (_SPEED * torch.get_num_threads())
    layers = getattr(getattr(model, "config", None), "num_hidden_layers", 12)
    on_gpu = torch.cuda.is_available()  # there the speed isn't known beforehand: compiled only if asked for
    return possible and not on_gpu and _SAVED * seconds > 2 * _LAYER_SECONDS * layers


@contextmanager
def compiled(part: nn.Module, step: Callable[[], torch.Tensor], *, asked: bool) -> Iterator[bool]:
    """Within: training steps run ``part`` compiled; passes without gradients run it as it is.

    ``step``: a loss of the model on a typical batch, by which the graphs are made. Yields False, and changes nothing,
    where that fails; Misuse (``recipe.compile``) if it was ``asked`` for.
    """
    plain, fast = part.forward, _compile(part.forward)

    def forward(*args: Any, **kwargs: Any) -> Any:
        return (fast if torch.is_grad_enabled() else plain)(*args, **kwargs)

    part.forward = forward
    try:
        works = _tried(step)
        if not works:
            if asked:
                raise _cannot()
            del part.forward
        yield works
    finally:
        vars(part).pop("forward", None)
        torch.compiler.reset()


def _compile(function: Any) -> Any:
    with warnings.catch_warnings():
        # What torch imports for this warns of torch's own future.
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.compile(function, dynamic=True)


def _tried(step: Callable[[], torch.Tensor]) -> bool:
    """Twice: the second pass finds what the first left, as all later ones do."""
    try:
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's remarks on itself
            for _ in range(2):
                torch.autograd.backward([step()])
    except Exception:  # noqa: BLE001 - compilers fail in many ways, and all of them mean: train without
        return False
    return True


def _has_compiler() -> bool:
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def _cannot() -> Misuse:
    return Misuse(
        "recipe.compile",
        "This recipe's model can't be compiled here: that needs a C++ compiler, one process and no privacy; set compile"
        " to auto.",
        key="compile",
    )
