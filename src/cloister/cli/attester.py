"""``attester``: which nodes' TPMs a party takes for what their makers say they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..client import operations
from ..errors import Misuse
from .options import As, HomeFolder, Json, Yes, at_home, read_file
from .terminal import ask, columns, result

__all__ = ["attester"]

attester = typer.Typer(
    no_args_is_help=True, help="Enrolled TPMs: attestation keys that a manufacturer's chip was shown to hold."
)


@attester.command("enrol")
def enrol(
    request: Annotated[Path, typer.Argument(help="The node's request: python -m cloister.node --enrolment")],
    out: Annotated[Path, typer.Option("--out", help="Where the challenge for the node goes.")],
    party: As = None,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """Check a TPM's endorsement certificate and challenge its key. The node has five minutes to answer."""
    text = read_file(request)
    with at_home(home) as place:
        challenge = operations.enrol_attester(place, place.choose(party), text)
    try:
        out.write_text(json.dumps(challenge) + "\n")
    except OSError as error:
        raise Misuse("file.write", f"{out} can't be written: {error.strerror}.") from None
    lines = [f"The challenge is in {out}; on the node: python -m cloister.node --prove {out.name}"]
    result({"challenge": str(out), "id": challenge["id"]}, lines, as_json=as_json)


@attester.command("admit")
def admit(
    proof: Annotated[Path, typer.Argument(help="The node's proof: python -m cloister.node --prove")],
    party: As = None,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """Enrol the TPM that answered. A proof is tried once; after a wrong one begin again."""
    text = read_file(proof)
    with at_home(home) as place:
        record = operations.admit_attester(place, place.choose(party), text)
    result(record, [f"Enrolled {record['ak_name']} at level {record['level']}."], as_json=as_json)


@attester.command("list")
def listing(party: As = None, home: HomeFolder = None, as_json: Json = False) -> None:
    """The enrolled TPMs."""
    with at_home(home) as place:
        found = operations.list_attesters(place, place.choose(party))
    rows: list[tuple[object, ...]] = [("attestation key", "level", "endorsement key", "hardware")]
    rows += [(a["ak_name"], a["level"], a["ek"], a["hardware"]) for a in found]
    lines = columns(rows, full=True) if found else ["No TPM is enrolled; evidence of TPMs is level none here."]
    result({"attesters": found}, lines, as_json=as_json)


@attester.command("remove")
def remove(
    ak_name: Annotated[str, typer.Argument(help="The attestation key, as the list shows it.")],
    party: As = None,
    yes: Yes = False,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """Trust an attestation key no more. What runs above level none on its node ends within one lease."""
    with at_home(home) as place:
        acting = place.choose(party)
        ask(f"Remove this attestation key from the broker of {acting}?", yes=yes)
        record = operations.remove_attester(place, acting, ak_name)
    result(record, [f"Removed {record['ak_name']}."], as_json=as_json)
