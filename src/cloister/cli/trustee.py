"""``key trustee``: what a party stores at a stock key broker, where a contract says that its keys come from there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..client import operations
from .options import As, HomeFolder, Json, Yes, at_home
from .terminal import ask, result

__all__ = ["trustee"]

_AFTER = (
    "Store each file as the resource of its path, let the key broker's policy hand it to the guests that the contract "
    "names only, and remove the folder. No shredding of Cloister's reaches what is stored there."
)


def trustee(
    reference: Annotated[str, typer.Argument(metavar="CONTRACT", help="The contract: its name or digest.")],
    to: Annotated[Path, typer.Option("--to", help="Folder for the files; it will hold keys in plain text.")],
    party: As = None,
    yes: Yes = False,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """Write the keys that a contract takes from a party's stock key broker (a Trustee), for storing them there. Each
    names contract and asset, and works in runs under that contract only."""
    with at_home(home) as place:
        acting = place.choose(party)
        ask(f"This writes keys of {acting} in plain text below {to}. Go on?", yes=yes)
        done = operations.trustee_keys(place, reference, to, party=acting)
    lines = [f"{to / key['path']}: the key of {key['name']}" for key in done["keys"]]
    lines.append(f"They work under the contract {done['contract']} only.")
    result(done, [*lines, _AFTER], as_json=as_json)
