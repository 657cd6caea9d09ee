"""``pull`` and ``verify``: outputs, and whether their story holds."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from ..client import ASSURANCE, Pulled, Verified, operations
from ..errors import CloisterError, Misuse
from .options import As, HomeFolder, Json, ShowProgress, at_home, read_file
from .terminal import Bars, columns, result

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    app.command("pull")(pull)
    app.command("verify")(verify)


def pull(
    output: Annotated[str, typer.Argument(help="The output's name: party/name.")],
    to: Annotated[Path, typer.Option("--to", help="A new folder for it.")],
    party: As = None,
    progress: ShowProgress = False,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """Fetch an output, verify its whole story, and decrypt it into a folder."""
    with at_home(home) as place:
        owner = output.partition("/")[0]
        acting = party or (owner if owner in place.parties() else place.choose(None))
        with Bars(progress) as bars:
            pulled = operations.pull(place, output, to, acting, progress=bars)
    lines = [*_verdict(pulled.verified), *_made(pulled), f"{len(pulled.files)} file(s) are in {to}."]
    result(pulled.document(), lines, as_json=as_json)


def _made(pulled: Pulled) -> list[str]:
    """Which run this is of, and its figures: another one of the same name may have been expected."""
    verified = pulled.verified
    when = datetime.datetime.fromtimestamp(verified.permitted, tz=datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    figures = [(metric, f"base {base}", f"tuned {tuned}") for metric, (base, tuned) in pulled.figures.items()]
    return [f"Made by job {verified.job}, let out {when}.", *columns(figures)]


def verify(
    folder: Annotated[Path, typer.Argument(help="A folder that 'cloister pull' wrote.")],
    trust: Annotated[
        list[Path] | None, typer.Option("--trust", help="A card that you compared; may be given several times.")
    ] = None,
    contract: Annotated[
        str | None,
        typer.Option("--contract", help="The contract that it must be under: its digest, the beginning, or its name."),
    ] = None,
    party: As = None,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """Check a bundle offline: signatures, logs, appraisals, permits, files. Exit code 4 if anything does not hold."""
    cards = [operations.parse_card(read_file(path)) for path in trust or []]
    pins = {card.name: card for card in cards}
    if not pins:
        pins = _pins_of_party(home, party)
    verified = operations.verify_bundle(folder, pins, expected_contract=contract)
    result(verified.document(), _verdict(verified), as_json=as_json)


def _pins_of_party(home: Path | None, party: str | None) -> dict[str, Any]:
    """The cards that a party of this machine pinned; any one of them, since they judge the same documents."""
    with at_home(home) as place:
        try:
            agents = place.running_agents()
        except CloisterError:
            raise Misuse(
                "verify.pins", "Give the cards that you compared with --trust, or start Cloister here."
            ) from None
        if party is not None:
            return place.agent(party).pinned_cards()
        pins = [agent.pinned_cards() for agent in agents.values()]
        if not pins:
            raise Misuse("verify.pins", "No party is unlocked here; give the cards that you compared with --trust.")
        return max(pins, key=len)


def _verdict(verified: Verified) -> list[str]:
    steps = [f"  {number}. {step}" for number, step in enumerate(verified.steps, 1)]
    return ["Verified:", *steps, f"Assurance level {ASSURANCE.get(verified.assurance, verified.assurance)}."]
