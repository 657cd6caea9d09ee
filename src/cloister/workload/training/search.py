"""Settings that are tried before the training itself: learning rate and batch size, by Optuna's TPE sampler.

Every try starts from the same weights and the same seed, learns the training rows for ``search.epochs`` epochs, and is
judged by one look at the validation rows; the report is on the test rows. The recipe's own settings are tried first,
so what is chosen did no worse in that. Bounded by trials the search comes out the same each time; a bound of minutes
depends on the machine. What was chosen is part of a checkpoint's identity: a resumed run doesn't search again.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from decimal import Decimal
from typing import Any

import torch

from ...contracts.recipe import Recipe, parse_recipe
from ...contracts.recipe.methods import SearchSettings
from ...errors import CloisterError, Internal, Malformed
from .health import UNHEALTHY
from .looks import Look, quantized
from .ports import CheckpointSink, Lease, Progress
from .state import saved_identity

__all__ = ["CHOSEN", "choose_settings", "chosen_identity", "trial_recipe"]

CHOSEN = "chosen"  # its name in a checkpoint's identity
_KEYS = ("learning_rate", "batch_size")
_SPAN = 10.0  # the learning rate is searched from a tenth of the recipe's to ten times as much
_NEVER = 1_000_000  # steps: only the look at the end of a try counts


def choose_settings(
    recipe: Recipe,
    weights: Mapping[str, torch.Tensor],
    attempt: Callable[[Recipe, Mapping[str, Any]], None],
    *,
    sink: CheckpointSink,
    progress: Progress,
    lease: Lease,
    look: Callable[[], Look] | None,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Recipe, dict[str, str | int]]:
    """The recipe with the settings that did best, and what the evaluation tells of the search.

    ``attempt`` trains ``weights`` in place by a recipe, with sink, progress, lease and look of its own as the second
    argument; they are put back after every try. A recipe without ``search`` comes back
    as it is. Raises what the ports raise, and what ``attempt`` raises if it is not that a training went astray: such a
    try counts as the worst.
    """
    settings = recipe.search
    if settings is None:
        return recipe, {}
    chosen = _of_checkpoint(sink, recipe)
    if chosen is not None:
        return chosen, {**_facts(chosen), "search": "of the checkpoint"}
    study = _study(recipe)
    began, tried = clock(), 0
    start = {name: weight.detach().clone() for name, weight in weights.items()}
    while tried < settings.trials and (tried == 0 or clock() - began < settings.minutes * 60):
        lease.check()
        trial = study.ask(_space(recipe))
        changed = _changed(recipe, trial.params)
        torch.manual_seed(recipe.seed)
        seen = _Seen(look)
        try:
            ports = {"sink": seen, "progress": seen, "lease": lease, "look": seen.look}
            attempt(trial_recipe(changed, settings), ports)
        except CloisterError as error:
            if error.code not in UNHEALTHY:
                raise
            seen.found = None
        _put_back(start, weights)
        tried += 1
        told = {"learning_rate": quantized(float(changed.learning_rate)), "batch_size": quantized(changed.batch_size)}
        found = seen.found
        if found is not None:
            told[found.name] = quantized(found.value)
        # One direction for all figures: Optuna wants to know it before the first try tells its own.
        value = math.inf if found is None else found.value if found.lower else -found.value
        study.tell(trial, value if math.isfinite(value) else 1e300)
        progress.report("search", tried, settings.trials, told)
    best = _changed(recipe, study.best_trial.params)
    return best, {**_facts(best), "search": "done", "search_trials": tried}


class _Seen:
    """The ports of one try: nothing of it is kept or told but the last look."""

    def __init__(self, look: Callable[[], Look] | None) -> None:
        self._look = look
        self.found: Look | None = None

    def look(self) -> Look:
        if self._look is None:
            raise Internal("search.look", "A search has no look at the validation rows.")
        self.found = self._look()
        return self.found

    def save(self, step: int, files: Any) -> None:
        del files
        raise Internal("search.checkpoint", "A try of a search writes no checkpoints.", step=step)

    def latest(self) -> None:
        return None

    def report(self, stage: str, step: int, total: int, values: Mapping[str, str]) -> None:
        """A try's own progress is nobody's."""


def trial_recipe(recipe: Recipe, settings: SearchSettings) -> Recipe:
    """One try: shorter, without checkpoints, and looked at once, at its end."""
    short: dict[str, Any] = {
        "epochs": min(settings.epochs, recipe.epochs),
        "checkpoint_steps": 0,
        "checkpoint_minutes": 0,
    }
    return replace(recipe, **short, select="last", patience=0, evaluate_steps=_NEVER)


def chosen_identity(recipe: Recipe) -> dict[str, str]:
    """For a checkpoint's identity; nothing for a recipe that doesn't search."""
    if recipe.search is None:
        return {}
    return {CHOSEN: ",".join(f"{key}={getattr(recipe, key)}" for key in _KEYS)}


def _of_checkpoint(sink: CheckpointSink, recipe: Recipe) -> Recipe | None:
    found = sink.latest()
    if found is None:
        return None
    step, files = found
    with closing(files):
        chosen = saved_identity(step, files).get(CHOSEN)
    try:
        changes = dict(change.split("=") for change in str(chosen).split(","))
        if set(changes) != set(_KEYS):
            raise ValueError
        return _changed(recipe, changes)
    except (ValueError, CloisterError):
        raise Malformed("checkpoint.state", "The checkpoint does not tell which settings were chosen.") from None


def _study(recipe: Recipe) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parts that are experimental there and not used here
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(direction="minimize", sampler=optuna.samplers.TPESampler(seed=recipe.seed))
        study.enqueue_trial({"learning_rate": float(recipe.learning_rate), "batch_size": recipe.batch_size})
    return study


def _space(recipe: Recipe) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    rate, least = float(recipe.learning_rate), 2 if recipe.task == "embedding" else 1
    sizes = sorted({max(least, recipe.batch_size // 2), recipe.batch_size, min(8192, recipe.batch_size * 2)})
    if recipe.replay is not None:  # a smaller step may have no room for its share of general text
        steps = {size: size * recipe.gradient_accumulation for size in sizes}
        sizes = [size for size, step in steps.items() if 0 < recipe.replay.rows(step) < step]
    return {
        "learning_rate": FloatDistribution(max(1e-8, rate / _SPAN), min(1.0, rate * _SPAN), log=True),
        "batch_size": CategoricalDistribution(sizes),
    }


def _changed(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """As the recipe's reader takes it; a learning rate of two digits, which can be written down."""
    rate = values["learning_rate"]
    text = f"{Decimal(rate):f}" if isinstance(rate, str) else f"{Decimal(f'{rate:.2g}'):f}"
    document = {name: value for name, value in recipe.to_document().items() if name != "kind"}
    return parse_recipe({**document, "learning_rate": text, "batch_size": int(values["batch_size"])})


def _put_back(start: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(start[name])


def _facts(recipe: Recipe) -> dict[str, str | int]:
    return {"chosen_learning_rate": f"{recipe.learning_rate:f}", "chosen_batch_size": recipe.batch_size}
