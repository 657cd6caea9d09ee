"""Privacy budgets from the owner's side: set one, and see which runs spent it. Every change is logged first.

A budget is kept by the dataset's name, over all its versions: a new version, or the same one re-encrypted, holds the
same people. What is spent is counted from every run that was ever admitted, those from before the budget included.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from ..contracts import Contract, Job, amount, covers, decimal_text, read_job
from ..contracts.recipe import PrivacySettings
from ..crypto import Envelope
from ..errors import CloisterError, Misuse
from .assets import Assets
from .knowledge import Knowledge, budgets_change
from .ledger import Ledger
from .privacy import MOST_DELTA, MOST_EPSILON, Budget, spend
from .state import Row

__all__ = ["Budgets"]


@dataclass(frozen=True)
class _Used:
    """A run in the table. ``alone``: it could read the data as rows to train on only, and ran as one at a time."""

    row: Row
    contract: Contract | None
    job: Job | None
    alone: bool

    @property
    def given(self) -> PrivacySettings | None:
        """What it promised of the data; None where that is nothing."""
        return None if self.job is None or not self.alone else self.job.recipe.privacy


class Budgets:
    """The privacy budgets of the own datasets."""

    def __init__(self, assets: Assets, knowledge: Knowledge, ledger: Ledger) -> None:
        self._assets = assets
        self._knowledge = knowledge
        self._ledger = ledger

    def set(self, name: str, epsilon: str | None, delta: str | None, unit: str | None) -> dict[str, Any]:
        """From now on all runs together spend at most this; None: as it is. See ``show`` for the answer.

        Under what is spent already it stops every further run, and a run that shows no privacy of this unit gets no
        further key and no further lease. There is no way to take a budget off. Raises Misuse or Malformed.
        """
        with self._ledger.turn():
            self._check_dataset(name)
            budgets = self._knowledge.budgets()
            before = budgets.get(name)
            if before is None and (epsilon is None or delta is None):
                raise Misuse("budget.missing", "The dataset has no privacy budget yet; give both epsilon and delta.")
            wanted = _changed(before, epsilon, delta, unit)
            after = self._counted(name, wanted)
            if after != before:
                change = budgets_change({**budgets, name: after})
                self._ledger.commit("budget.set", target=name, details=_details(name, before, after), changes=[change])
        return self.show(name)

    def show(self, name: str) -> dict[str, Any]:
        """The budget, what is left of it, and the runs that used the data; ``budget`` None where none is set."""
        self._check_dataset(name)
        budget = self._knowledge.budgets().get(name)
        runs = [_run(used, budget) for used in self._runs(name)]
        return {
            "budget": None if budget is None else _shown(budget),
            "jobs": sorted(runs, key=lambda run: (run["created"] or 0, run["job"])),
            "name": name,
        }

    def listing(self) -> dict[str, Any]:
        """Every budget by its dataset, without the runs."""
        return {name: _shown(budget) for name, budget in sorted(self._knowledge.budgets().items())}

    def _check_dataset(self, name: str) -> None:
        newest = self._assets.newest(name)
        if newest is None or newest["class"] != "dataset":
            raise Misuse(
                "budget.dataset", "This broker's party has no dataset of that name; 'cloister key list' shows them."
            )

    def _counted(self, name: str, budget: Budget) -> Budget:
        """With what all runs spent until now, by this budget's unit. It never shrinks: whatever can't be read any more,
        or does not count for a stronger unit, was revealed all the same."""
        fresh = replace(budget, spent_epsilon=Decimal(0), spent_delta=Decimal(0), runs=0, unbounded=0)
        for used in self._runs(name):
            fresh = spend(fresh, used.given)
        return replace(
            fresh,
            spent_epsilon=max(fresh.spent_epsilon, budget.spent_epsilon),
            spent_delta=max(fresh.spent_delta, budget.spent_delta),
        )

    def _runs(self, name: str) -> Iterator[_Used]:
        """Admitted runs that used a version of the dataset, or of which that can't be told any more (no job)."""
        versions = {bytes.fromhex(row["digest"]) for row in self._assets.versions(name)}
        contracts: dict[str, Contract | None] = {}
        for row in self._ledger.state.rows("jobs"):
            digest = row["contract"]
            if digest not in contracts:
                contracts[digest] = self._contract(digest)
            contract = contracts[digest]
            if contract is not None and not versions & {asset.digest for asset in contract.assets}:
                continue
            job = None if contract is None else _job(row, contract)
            if contract is None or job is None:
                yield _Used(row, contract, None, alone=False)
            elif used := versions & {*job.assets}:
                yield _Used(row, contract, job, alone=used == {job.data} and not contract.platform.stock_guests)

    def _contract(self, digest: str) -> Contract | None:
        try:
            return self._knowledge.contract(bytes.fromhex(digest))
        except CloisterError:
            return None


def _job(row: Row, contract: Contract) -> Job | None:
    try:
        return read_job(Envelope.from_bytes(row["envelope"].encode()), contract)
    except CloisterError:
        return None


def _changed(before: Budget | None, epsilon: str | None, delta: str | None, unit: str | None) -> Budget:
    budget = before or Budget(Decimal(0), Decimal(0), "example")
    return replace(
        budget,
        epsilon=budget.epsilon if epsilon is None else amount(epsilon, high=MOST_EPSILON),
        delta=budget.delta if delta is None else amount(delta, high=MOST_DELTA),
        unit=unit or budget.unit,
    )


def _shown(budget: Budget) -> dict[str, Any]:
    left_epsilon, left_delta = budget.left
    left = {"left_delta": decimal_text(left_delta), "left_epsilon": decimal_text(left_epsilon)}
    return {**budget.document(), **left}


def _details(name: str, before: Budget | None, after: Budget) -> dict[str, str | int]:
    details: dict[str, str | int] = {"name": name, **after.document()}
    if before is not None:
        was = before.document()
        details |= {f"before_{key}": was[key] for key in ("delta", "epsilon", "unit")}
    return details


def _run(used: _Used, budget: Budget | None) -> dict[str, Any]:
    """``counted``: whether the sums hold what it spent."""
    row, contract, job = used.row, used.contract, used.job
    given = used.given
    return {
        "contract": row["contract"],
        "contract_name": None if contract is None else contract.name,
        "counted": budget is not None and given is not None and covers(given.unit, budget.unit),
        "created": None if job is None else job.created,
        "delta": None if given is None else decimal_text(given.delta),
        "epsilon": None if given is None else decimal_text(given.epsilon),
        "job": row["digest"],
        "serial": None if contract is None else contract.serial,
        "submitter": None if job is None else job.submitter,
        "unit": None if given is None else given.unit,
    }
