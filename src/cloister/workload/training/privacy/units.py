"""Whose presence is hidden: which rows belong together, on which side of the split they stand, what their run costs."""

from __future__ import annotations

import platform
from array import array
from collections.abc import Sequence
from decimal import Decimal

import torch

from ....contracts.recipe import Recipe
from ....crypto import frame, sha256
from ....errors import Misuse
from ...data import Split, Table
from ..batching import Row
from ..steps import step_rows, total_steps
from .accountant import Budget, plan_noise

__all__ = ["machine", "members", "numbered", "numbers_digest", "privacy_facts", "run_budget", "split_units", "users"]

_LEAST_ROWS = 10


def users(recipe: Recipe, table: Table) -> list[str] | None:
    """For each row its user, where a user is the unit; None where each row is one of its own. Misuse (``data.user``)
    for a row of nobody: those of several people, taken for one, would not be hidden as one."""
    if recipe.privacy is None or recipe.privacy.unit != "user":
        return None
    found = [name.strip() for name in table.column(recipe.columns["user"])]
    if not all(found):
        raise Misuse("data.user", "Some rows have an empty user, and each must be somebody's; fill them in.")
    return found


def numbered(places: Sequence[int], named: Sequence[str] | None) -> tuple[int, ...]:
    """For each row, which comes from the table's row at its place, the number of its unit, from 0 up."""
    numbers: dict[int | str, int] = {}
    return tuple(numbers.setdefault(place if named is None else named[place], len(numbers)) for place in places)


def members(rows: Sequence[Row], units: Sequence[int]) -> list[list[Row]]:
    out: list[list[Row]] = [[] for _ in range(max(units) + 1)]
    for row, unit in zip(rows, units, strict=True):
        out[unit].append(row)
    return out


def split_units(texts: Sequence[str], named: Sequence[str] | None, fraction: Decimal, seed: int) -> Split:
    """About ``fraction`` of the units stand aside. Rows with the same text, or of the same user, stand together.

    On which side a unit stands depends on the seed and on that unit alone. An exact share, or one of each label, would
    let one unit's presence push another one over the border, and then two would have to be hidden. Misuse
    (``data.few``) where a part would be empty.
    """
    border = int(fraction * 2**64)
    aside = [
        int.from_bytes(sha256(frame("cloister/private-split/v1", str(seed), name))[:8], "big") < border
        for name in (named or texts)
    ]
    training = tuple(row for row, out in enumerate(aside) if not out)
    validation = tuple(row for row, out in enumerate(aside) if out)
    if len(texts) < _LEAST_ROWS or not training or not validation:
        raise Misuse("data.few", f"The dataset is too small to set validation rows aside; give {_LEAST_ROWS} or more.")
    return Split(training, validation)


def run_budget(recipe: Recipe, units: Sequence[int]) -> Budget:
    """What the training costs; see ``accountant.plan_noise``. A step expects as many rows as without privacy."""
    assert recipe.privacy is not None
    return plan_noise(
        recipe.privacy,
        rate=min(1.0, step_rows(recipe) / len(units)),
        steps=total_steps(recipe, len(units)),
        units=max(units) + 1,
    )


def privacy_facts(recipe: Recipe, units: Sequence[int]) -> dict[str, str | int]:
    """What the evaluation tells."""
    if recipe.privacy is None:
        return {}
    budget = run_budget(recipe, units)
    fitted = {"base_fitted_on": "the rows set aside"} if recipe.task == "classification" else {}
    return {
        **fitted,
        "delta": f"{budget.delta:f}",
        "epsilon": f"{budget.epsilon:f}",
        "epsilon_accountant": budget.accountant,
        "epsilon_rdp": f"{budget.epsilon_rdp:f}",
        "noise_multiplier": f"{budget.noise_multiplier:.6f}",
        "privacy_covers": "the rows that were trained on; not the figures on the rows set aside",
        "privacy_steps": budget.steps,
        "privacy_unit": recipe.privacy.unit,
        "privacy_units": max(units) + 1,
        "sample_rate": f"{budget.rate:.8f}",
    }


def numbers_digest(units: Sequence[int]) -> str:
    return sha256(frame("cloister/units/v1", array("q", units).tobytes())).hex()


def machine() -> str:
    """What the last bits of a gradient depend on. A run that goes on elsewhere would add the same noise to gradients
    that differ in their last bits, and whoever saw both could take the noise away."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__}, {platform.machine()}, {device}, {torch.get_num_threads()} threads"
