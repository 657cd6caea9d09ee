"""``data``: what a dataset's owner lets all runs together reveal."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..client import operations
from ..client.times import day
from .options import Full, HomeFolder, Json, at_home
from .terminal import columns, result

__all__ = ["data"]

data = typer.Typer(no_args_is_help=True, help="Datasets: the privacy budget that their owner's broker keeps.")


@data.callback()
def _group() -> None:
    """Datasets: the privacy budget that their owner's broker keeps."""


@data.command("budget")
def budget(
    name: Annotated[str, typer.Argument(help="The dataset's name: party/asset.", show_default=False)],
    epsilon: Annotated[str | None, typer.Option("--epsilon", help="What all runs together may spend.")] = None,
    delta: Annotated[str | None, typer.Option("--delta", help="The same for delta, such as 0.00001.")] = None,
    unit: Annotated[
        str | None, typer.Option("--unit", help="Whose presence is hidden: example (one row) or user (all of theirs).")
    ] = None,
    full: Full = False,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """A dataset's privacy budget: what is spent, what is left, and by which jobs. With options: set it. From then on
    only jobs with 'privacy' in their recipe get the data, as long as the budget lasts; what a job may spend at worst is
    taken when it gets its first key, and never given back. The budget holds for all versions of the dataset and over
    all contracts, and can be changed but not taken off."""
    with at_home(home) as place:
        if epsilon is None and delta is None and unit is None:
            found = operations.privacy_budget(place, name)
        else:
            found = operations.set_privacy_budget(place, name, epsilon=epsilon, delta=delta, unit=unit)
    result(found, [*_summary(found), *_jobs(found, full=full)], as_json=as_json)


def _summary(found: dict[str, Any]) -> list[str]:
    name, kept = found["name"], found["budget"]
    if kept is None:
        return [f"{name} has no privacy budget; set one with --epsilon and --delta."]
    lines = columns(
        [
            ("", "budget", "spent", "left"),
            ("epsilon", kept["epsilon"], kept["spent_epsilon"], kept["left_epsilon"]),
            ("delta", kept["delta"], kept["spent_delta"], kept["left_delta"]),
        ]
    )
    lines.append(f"For each {kept['unit']} in {name}, over {kept['runs']} runs.")
    if kept["unbounded"]:
        lines.append(
            f"{kept['unbounded']} more runs used the data without privacy of this unit, before the budget asked for it;"
            " what they revealed is in no sum."
        )
    return lines


def _jobs(found: dict[str, Any], *, full: bool) -> list[str]:
    rows = [
        (
            "job",
            job["job"] if full else job["job"][:16],
            job["submitter"] or "can't be read",
            "" if job["contract_name"] is None else f"{job['contract_name']} serial {job['serial']}",
            day(job["created"]) if job["created"] else "",
            "no privacy"
            if job["epsilon"] is None
            else f"epsilon {job['epsilon']}, delta {job['delta']}, {job['unit']}",
        )
        for job in found["jobs"]
    ]
    return columns(rows, full=full)
