"""``audit``: a party's log."""

from __future__ import annotations

import datetime
from typing import Annotated

import typer

from ..client import operations
from .options import As, HomeFolder, Json, ShowProgress, at_home
from .terminal import Bars, columns, result

__all__ = ["audit"]

audit = typer.Typer(no_args_is_help=True, help="The audit log of a party: what was released, permitted and refused.")


@audit.command("verify")
def verify(party: As = None, progress: ShowProgress = False, home: HomeFolder = None, as_json: Json = False) -> None:
    """Check every entry against the signed head, and the head against the one that was kept here the last time."""
    with at_home(home) as place, Bars(progress) as bars:
        check = operations.verify_log(place, place.choose(party), progress=bars)
    before = (
        f"it contains the {check.compared} entries that were checked before" if check.compared else "first check here"
    )
    lines = [f"The log of {check.party} is whole: {check.size} entries, {before}."]
    result(check.document(), [*lines, *columns([(k, n) for k, n in check.kinds.items()])], as_json=as_json)


@audit.command("show")
def show(
    last: Annotated[int, typer.Option("--last", min=1, max=10_000, help="How many of the newest entries.")] = 20,
    kind: Annotated[str | None, typer.Option("--kind", help="Only this kind, for example key.released.")] = None,
    party: As = None,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """The newest entries of a party's log."""
    with at_home(home) as place:
        acting = place.choose(party)
        entries = operations.show_log(place, acting, last=last, kind=kind)
    rows = [
        (e["index"], _when(int(e["time"])), e["kind"], e["outcome"], str(e["target"])[:24], _details(e["details"]))
        for e in entries
    ]
    result({"entries": entries, "party": acting}, columns(rows) or ["No such entries."], as_json=as_json)


def _details(details: dict[str, object]) -> str:
    return " ".join(f"{name}={str(value)[:24]}" for name, value in sorted(details.items()))


def _when(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds, tz=datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
