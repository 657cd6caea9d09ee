"""``policy``: what an owner asks of hardware beyond what contracts name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..client import operations
from ..errors import Denied
from .options import As, HomeFolder, Json, Yes, at_home, read_file
from .terminal import ask, columns, note, result

__all__ = ["policy"]

policy = typer.Typer(
    no_args_is_help=True, help="A party's appraisal policy: what its broker asks of hardware before it gives a key."
)

File = Annotated[Path, typer.Argument(help="The policy, JSON; docs/spec/appraisal.md shows the form.")]


def _rules(found: dict[str, Any]) -> list[str]:
    return columns([(rule["about"], rule["rule"]) for rule in found["rules"]], full=True)


@policy.command("set")
def set_policy(file: File, party: As = None, yes: Yes = False, home: HomeFolder = None, as_json: Json = False) -> None:
    """Make a file the party's policy. It holds at once: a run that it refuses ends at its next renewal."""
    text = read_file(file)
    with at_home(home) as place:
        acting = place.choose(party)
        for line in _rules(operations.explain_policy(text)):
            note(line)
        ask(f"Make this the policy of {acting}?", yes=yes)
        done = operations.set_policy(place, acting, text)
    result(done, [f"The broker of {acting} now appraises by policy {done['digest']}."], as_json=as_json)


@policy.command("show")
def show(party: As = None, home: HomeFolder = None, as_json: Json = False) -> None:
    """The party's policy, rule by rule, with those that are built in."""
    with at_home(home) as place:
        found = operations.show_policy(place, place.choose(party))
    result(found, [f"policy {found['digest']}", *_rules(found)], as_json=as_json)


@policy.command("check")
def check(
    file: File,
    evidence: Annotated[
        Path, typer.Option("--evidence", help="An attestation result token, or appraised devices as JSON.")
    ],
    as_json: Json = False,
) -> None:
    """Try a policy on evidence that was appraised before, without setting it. Exit code 3 where it would refuse."""
    found = operations.check_policy(read_file(file), read_file(evidence))
    lines = [f"{f['device']} ({f['platform']}): {f['rule']}; found {f['found']}" for f in found["findings"]]
    if not found["accepted"]:
        result(found, lines, as_json=as_json)
        raise Denied("policy.check", f"The policy refuses this evidence ({found['code']}).")
    result(found, [f"The policy accepts it: {', '.join(found['devices']) or 'no device'}."], as_json=as_json)
