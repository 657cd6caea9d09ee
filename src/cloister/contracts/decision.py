"""The pure decision: may this run have this? Values in; permission or a typed refusal out.

No clock, disk or network: the caller hands over what it knows. The control plane asks the same question with
what it knows, so a job that no broker would serve is refused at submission, with the same reason.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from ..errors import Denied
from .contract import Contract, check_signatures
from .documents import Job
from .party import Card
from .trustees import check_trustee_job

__all__ = ["ContractState", "check_contract", "check_job", "check_statements", "check_work"]


class Runs(Protocol):
    """The runs of a contract that were admitted, by digest. A ``frozenset`` will do."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __contains__(self, job: object, /) -> bool:
        """Whether this one is among them. It may know only those in question."""
        ...


@dataclass(frozen=True)
class ContractState:
    """What a decider remembers about one contract. A broker's is authoritative for its owner; nobody else's is.

    ``newest_serial`` is the highest serial of the contract's name that was fully signed; ``jobs`` the digests of the
    runs that were already admitted, which is what the budget of runs counts.
    """

    pinned: dict[str, Card]
    compromised: frozenset[str]
    revoked_by: str | None
    newest_serial: int
    jobs: Runs


def check_contract(contract: Contract, state: ContractState, *, now: int) -> None:
    """Steps 1 and 2 of every release: signatures against pinned keys, then whether the contract is in force."""
    # 1. Every party signed, with the keys pinned here.
    check_signatures(contract, state.pinned)
    broken = sorted(state.compromised & set(contract.parties))
    if broken:
        raise Denied("party.compromised", f"The keys of {broken[0]} are declared compromised.", party=broken[0])
    # 2. In force: not revoked, not superseded, within its time.
    if state.revoked_by is not None:
        raise Denied("contract.revoked", f"The contract was revoked by {state.revoked_by}.", party=state.revoked_by)
    if contract.serial < state.newest_serial:
        raise Denied("contract.superseded", "A newer serial of this contract is in force.")
    if now < contract.not_before:
        raise Denied("contract.early", "The contract is not in force yet.")
    if now >= contract.expires:
        raise Denied("contract.expired", "The contract has expired; sign a new serial.")


def check_statements(contract: Contract, fresh: Collection[str]) -> None:
    """``fresh``: parties whose in-force statement was checked. Every party of the contract must be among them, but for
    those of which the contract says that a stock key broker stands in for theirs."""
    missing = sorted(set(contract.speaking()) - set(fresh))
    if missing:
        raise Denied("status.missing", f"No fresh in-force statement of {missing[0]} was presented.", party=missing[0])


def check_job(contract: Contract, job: Job, state: ContractState) -> None:
    """Step 4: assets, purpose, recipe and budget. ``read_job`` has checked the submitter's signature."""
    check_work(contract, job)
    if job.digest not in state.jobs and len(state.jobs) >= contract.runs:
        raise Denied("budget.runs", f"The contract's {contract.runs} runs are used up.")


def check_work(contract: Contract, job: Job) -> None:
    """``check_job`` without the budget: what contract and job alone tell, so that the workload can ask it, too."""
    data, base = contract.asset(job.data), contract.asset(job.base)
    if (data.name, base.name) != (job.recipe.data, job.recipe.base):
        raise Denied("job.assets", "The recipe's asset names and the job's digests differ.")
    general = None if job.general is None else contract.asset(job.general)
    if (None if general is None else general.name) != job.recipe.general:
        raise Denied("job.assets", "The recipe's general text and the job's digest of it differ.")
    # A party's own program stands where the model does; nothing else of a contract is ever run.
    start = "program" if job.recipe.task == "script" else "base"
    if data.use != "data" or base.use != start or (general is not None and general.use != "general"):
        raise Denied("job.use", "An asset is used for something else than the contract says.")
    rule, recipe = contract.recipes, job.recipe
    if recipe.task not in rule.tasks or recipe.method not in rule.methods:
        raise Denied(
            "recipe.method", f"The contract permits {'/'.join(rule.methods)} for {'/'.join(rule.tasks)}, nothing else."
        )
    if recipe.epochs > rule.max_epochs:
        raise Denied("recipe.epochs", f"The contract permits at most {rule.max_epochs} epochs.")
    if rule.privacy is not None:
        rule.privacy.check(recipe)
    check_trustee_job(contract, job)
    if job.output not in {o.name for o in contract.outputs}:
        raise Denied("job.output", "The contract does not name this output.")
    output = next(o for o in contract.outputs if o.name == job.output)
    if recipe.form != output.form:
        raise Denied(
            "job.form", f"The contract lets this output leave as {output.form}; choose the method that makes it."
        )
