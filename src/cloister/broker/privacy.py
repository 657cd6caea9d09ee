"""The privacy budget of a dataset: what its owner lets all runs together reveal, over every job and contract. Pure.

Epsilons and deltas add up: basic composition, which holds for runs of any kind, also where each was chosen by what the
ones before gave. What a run may spend at worst is taken when it is admitted, and nothing gives it back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import lru_cache
from typing import Any

from ..contracts import UNITS, Contract, Job, amount, covers, decimal_text, total
from ..contracts.recipe import PrivacySettings
from ..crypto import canonical_json, parse_canonical
from ..errors import Denied, Malformed, Untrusted
from ..fields import Fields

__all__ = [
    "MOST_DELTA",
    "MOST_EPSILON",
    "Budget",
    "Charge",
    "budgets_text",
    "left_words",
    "read_budgets",
    "reserve",
    "spend",
]

MOST_EPSILON, MOST_DELTA = "1000000", "1"  # that a budget may have
_MOST_SPENT = "999999999999"


@dataclass(frozen=True)
class Budget:
    """Of one dataset, for all its versions. ``unit``: whose presence is hidden, an example's or a user's. ``runs``:
    those that the sums are of; ``unbounded``: runs that no sum can hold, from before the budget or its unit."""

    epsilon: Decimal
    delta: Decimal
    unit: str
    spent_epsilon: Decimal = Decimal(0)
    spent_delta: Decimal = Decimal(0)
    runs: int = 0
    unbounded: int = 0

    @property
    def left(self) -> tuple[Decimal, Decimal]:
        """Epsilon and delta; below zero where the budget was lowered under what is spent."""
        return total(self.epsilon, -self.spent_epsilon), total(self.delta, -self.spent_delta)

    def document(self) -> dict[str, Any]:
        return {
            "delta": decimal_text(self.delta),
            "epsilon": decimal_text(self.epsilon),
            "runs": self.runs,
            "spent_delta": decimal_text(self.spent_delta),
            "spent_epsilon": decimal_text(self.spent_epsilon),
            "unbounded": self.unbounded,
            "unit": self.unit,
        }

    @classmethod
    def read(cls, value: Any) -> Budget:
        f = Fields(value, "privacy budget")
        budget = cls(
            epsilon=amount(f.text("epsilon"), high=MOST_EPSILON),
            delta=amount(f.text("delta"), high=MOST_DELTA),
            unit=f.text("unit", choices=UNITS),
            spent_epsilon=amount(f.text("spent_epsilon"), high=_MOST_SPENT),
            spent_delta=amount(f.text("spent_delta"), high=_MOST_SPENT),
            runs=f.integer("runs"),
            unbounded=f.integer("unbounded"),
        )
        f.done()
        return budget


@dataclass(frozen=True)
class Charge:
    """What a run takes of the budget of ``name``; ``after``: the budget then."""

    name: str
    epsilon: Decimal
    delta: Decimal
    after: Budget

    def details(self) -> dict[str, str | int]:
        """For the log entry of the release."""
        reserved = {"reserved_delta": decimal_text(self.delta), "reserved_epsilon": decimal_text(self.epsilon)}
        return {**left_words(self.name, self.after), **reserved}


def left_words(name: str, budget: Budget) -> dict[str, str | int]:
    """For the log of the owner, who alone is told."""
    epsilon, delta = budget.left
    return {"budget": name, "left_delta": decimal_text(delta), "left_epsilon": decimal_text(epsilon)}


def spend(budget: Budget, given: PrivacySettings | None) -> Budget:
    """The budget after a run that promised this, whether it fits or not."""
    if given is None or not covers(given.unit, budget.unit):
        return replace(budget, unbounded=budget.unbounded + 1)
    return replace(
        budget,
        spent_epsilon=total(budget.spent_epsilon, given.epsilon),
        spent_delta=total(budget.spent_delta, given.delta),
        runs=budget.runs + 1,
    )


def reserve(
    contract: Contract, job: Job, owner: str, budgets: Mapping[str, Budget], *, admitted: bool
) -> Charge | None:
    """What admitting the job takes of a budget of ``owner``'s; None where that is nothing, because it has none for the
    job's assets or because the run was ``admitted`` before.

    Raises Denied: ``privacy.required``, ``privacy.unit``, ``privacy.guests``, also of an admitted run, or
    ``privacy.budget``.
    """
    assets = [contract.asset(digest) for digest in job.assets] if budgets else []
    found = [asset for asset in assets if asset.owner == owner and asset.name in budgets]
    if not found:
        return None
    given = job.recipe.privacy
    if given is None or any(asset.digest != job.data for asset in found):
        # DP-SGD hides the rows that are trained on, and nothing else that a run reads.
        raise Denied(
            "privacy.required",
            "The data has a privacy budget, so it is given only as rows to train on with 'privacy' in the recipe.",
        )
    name = found[0].name
    budget = budgets[name]
    if not covers(given.unit, budget.unit):
        raise Denied("privacy.unit", f"The data's privacy budget is for each {budget.unit}; set privacy.unit.")
    if contract.platform.stock_guests:
        # Any number of them come with one job, and nothing of ours makes each add the same noise.
        raise Denied("privacy.guests", "Data with a privacy budget is not given where a contract allows stock guests.")
    if admitted:
        return None
    after = spend(budget, given)
    if min(after.left) < 0:
        raise Denied(
            "privacy.budget", "The data's privacy budget has less left than this job may spend; its owner can tell."
        )
    return Charge(name, given.epsilon, given.delta, after)


def budgets_text(budgets: Mapping[str, Budget]) -> str:
    """As they are stored."""
    return canonical_json({name: budget.document() for name, budget in budgets.items()}).decode()


@lru_cache(maxsize=8)
def read_budgets(text: str) -> Mapping[str, Budget]:
    """By dataset. Raises Untrusted where the state holds something else: then nothing is released."""
    try:
        found = parse_canonical(text.encode())
        f = Fields({"budgets": found}, "state")
        return f.mapping("budgets", lambda _, value: Budget.read(value), limit=100_000)
    except Malformed:
        raise Untrusted("state.damaged", "The broker's state is damaged; restore it from a copy.") from None
