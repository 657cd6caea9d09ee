"""``job``: submit a recipe, watch it, stop it."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from ..client import Home, Outcome, operations
from ..errors import CloisterError, error_from_wire
from .options import As, Changes, HomeFolder, Json, ShowProgress, at_home, read_file
from .terminal import Bars, columns, result

__all__ = ["job"]

job = typer.Typer(no_args_is_help=True, help="Jobs: runs of a recipe under a contract.")

Reference = Annotated[str, typer.Argument(help="A job's digest, or its beginning.")]


@job.command("submit")
def submit(
    recipe: Annotated[Path, typer.Argument(help="recipe.yaml; 'cloister recipe init' writes one.")],
    contract: Annotated[str, typer.Option("--contract", help="A contract's digest, its beginning, or its name.")],
    changes: Changes = None,
    output: Annotated[str | None, typer.Option("--output", help="Which of the contract's outputs it makes.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Watch it to its end.")] = False,
    party: As = None,
    progress: ShowProgress = False,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """Queue a run of a recipe under a contract. What no broker would serve is refused at once, with the reason."""
    text = read_file(recipe)
    with at_home(home) as place:
        acting = place.choose(party)
        queued = operations.submit(place, text, contract, acting, output=output, changes=changes or ())
        if follow:
            return _follow(place, acting, str(queued["digest"]), progress, as_json)
    lines = [f"Queued as {queued['digest'][:16]}.", f"Watch it: cloister job follow {queued['digest'][:16]}"]
    return result(_plain(queued), lines, as_json=as_json)


@job.command("follow")
def follow_job(
    reference: Reference,
    party: As = None,
    progress: ShowProgress = False,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """Watch a job to its end, and show what came of it."""
    with at_home(home) as place:
        acting = place.choose(party)
        found = operations.find_job(place.control(acting), reference)
        _follow(place, acting, str(found["digest"]), progress, as_json)


def _follow(place: Home, acting: str, digest: str, progress: bool, as_json: bool) -> None:
    with Bars(progress) as bars:
        pins = place.agent(acting).pinned_cards()
        outcome = operations.follow(place.control(acting), digest, progress=bars, on_code=bars.say, pins=pins)
    if not outcome.succeeded:
        raise _why(outcome)
    result(outcome.document(), _outcome_lines(outcome), as_json=as_json)


def _why(outcome: Outcome) -> CloisterError:
    """A run that did not succeed ends this command with the run's own reason."""
    state, error = outcome.job["state"], outcome.job.get("error")
    if error is not None:
        return error_from_wire(error)
    sentences = {
        "cancelled": ("job.cancelled", "The job was cancelled by a party of its contract."),
        "revoked": ("contract.revoked", "The job was stopped because a party revoked its contract."),
        "denied": ("job.denied", "A broker denied the job its keys; its owner's audit log says why."),
    }
    code, message = sentences.get(state, ("job.failed", "The job failed; the node's log says where."))
    kind = "denied" if state in ("denied", "revoked") else "unavailable"
    return error_from_wire({"code": code, "details": {}, "kind": kind, "message": message})


def _outcome_lines(outcome: Outcome) -> list[str]:
    rows: list[tuple[object, ...]] = [
        ("gate", gate["metric"], f"at least {gate['margin']} above the base",
         "passed" if gate["passed"] is True else "NOT PASSED")
        for gate in outcome.gates
    ]  # fmt: skip
    rows += [("telemetry", name, f"last {value}") for name, value in sorted(outcome.values.items())]
    recipients = ", ".join(outcome.recipients)
    pull = f"Recipients ({recipients}) get the figures and the files: cloister pull {outcome.job['output']} --to FOLDER"
    return [_verdict(outcome), *columns(rows), pull]


def _verdict(outcome: Outcome) -> str:
    if outcome.verified is None:
        return "The control plane says that the run succeeded; nothing was verified here."
    return "The run succeeded: its release record verifies against the cards pinned here."


@job.command("list")
def list_jobs(party: As = None, home: HomeFolder = None, as_json: Json = False) -> None:
    """The jobs under a party's contracts, newest first."""
    with at_home(home) as place:
        found = operations.list_jobs(place, party)
    rows = [(j["digest"][:16], j["state"], j["output"], f"by {j['submitter']}", _when(j["submitted"])) for j in found]
    result({"jobs": found}, columns(rows) or ["No jobs yet."], as_json=as_json)


@job.command("show")
def show(reference: Reference, party: As = None, home: HomeFolder = None, as_json: Json = False) -> None:
    """A job's state, times and, if it did not succeed, the reason."""
    with at_home(home) as place:
        found = operations.find_job(place.control(place.choose(party)), reference)
    error = found.get("error") or {}
    rows = [
        ("job", found["digest"]),
        ("contract", found["contract"]),
        ("output", found["output"]),
        ("submitter", found["submitter"]),
        ("state", found["state"]),
        *((name, _when(found[name])) for name in ("submitted", "started", "finished") if found.get(name)),
        *((f"{stage} s", seconds) for stage, seconds in sorted((found.get("timings") or {}).items())),
        *([("reason", error["message"])] if error else []),
    ]
    result(_plain(found), columns(rows), as_json=as_json)


@job.command("plot")
def plot(
    reference: Reference,
    to: Annotated[Path, typer.Option("--to", help="The PNG to write.")],
    party: As = None,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """Draw what a job told while it ran: as much as its contract lets out. Its sealed output holds the whole curves."""
    with at_home(home) as place:
        client = place.control(place.choose(party))
        digest = str(operations.find_job(client, reference)["digest"])
        operations.write_file(to, operations.plot_job(client, digest))
    result({"job": digest, "file": str(to)}, [f"Drawn: {to}"], as_json=as_json)


@job.command("cancel")
def cancel(reference: Reference, party: As = None, home: HomeFolder = None, as_json: Json = False) -> None:
    """Stop a job. Any party of its contract may."""
    with at_home(home) as place:
        done = operations.cancel_job(place, reference, party)
    result(_plain(done), [f"{done['digest'][:16]} is cancelled."], as_json=as_json)


def _plain(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key != "job"}


def _when(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds, tz=datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
