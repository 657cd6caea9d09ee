"""``contract``: propose, look at, sign, revoke."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..client import Agreement, operations
from .options import As, Full, HomeFolder, Json, Yes, at_home, read_file
from .terminal import ask, columns, note, result

__all__ = ["contract"]

contract = typer.Typer(no_args_is_help=True, help="Contracts: what the parties agree on, and how it ends.")

Reference = Annotated[
    str, typer.Argument(help="A contract's digest, the digest's beginning (8 digits or more), or its name.")
]
# What may be signed and ended by name is narrower than what may be looked at.
ToSign = Annotated[
    str,
    typer.Argument(help="Its whole digest; or the name of one that was drafted in this home or signed here before."),
]
ToRevoke = Annotated[
    str, typer.Argument(help="Its digest, the digest's beginning, or its name: then the newest that the party signed.")
]


@contract.command("new")
def new(
    file: Annotated[Path, typer.Argument(help="contract.yaml; README.md shows one with every key.")],
    party: As = None,
    full: Full = False,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """Make a proposal from contract.yaml, for every party to look at and sign."""
    text = read_file(file)
    with at_home(home) as place:
        made = operations.new_contract(place, text, folder=file.absolute().parent, party=party)
        here = operations.this_node(place)
    steps = [
        f"Next, each of {', '.join(made.missing)}: cloister contract sign {made.contract.name} --as PARTY",
        f"In another home, after comparing the digest: cloister contract sign {made.contract.digest.hex()} --as PARTY",
    ]
    result(_document(made, here), [*_summary(made, here, full=full), *steps], as_json=as_json)


def _document(agreement: Agreement, here: Mapping[str, str]) -> dict[str, Any]:
    return {**agreement.document(), "this_installation": operations.platform_matches(agreement.contract, here)}


def _summary(agreement: Agreement, here: Mapping[str, str], *, full: bool) -> list[str]:
    signed = ", ".join(agreement.signed) or "nobody"
    waiting = f"; waiting for {', '.join(agreement.missing)}" if agreement.missing else ""
    rows = [*agreement.rows(here, full=full), ("signed by", signed + waiting), ("state", _state(agreement))]
    return columns(rows, full=full)


def _state(agreement: Agreement) -> str:
    return "in force" if agreement.reason is None else agreement.reason


@contract.command("sign")
def sign(
    reference: ToSign,
    party: As = None,
    yes: Yes = False,
    full: Full = False,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """Sign a contract for a party, after showing it. When the last party signs, it comes into force."""
    with at_home(home) as place:
        acting = place.choose(party)
        shown = operations.contract_to_sign(place, reference, acting)
        here = operations.this_node(place)
        for line in _summary(shown, here, full=full):
            note(line)
        ask(f"Sign this as {acting}?", yes=yes)
        signed = operations.sign_contract(place, shown, acting)
    what = f"{signed.contract.name} serial {signed.contract.serial}, {signed.contract.digest.hex()}"
    state = "It is in force." if not signed.missing else f"Still to sign: {', '.join(signed.missing)}."
    result(_document(signed, here), [f"{acting} has signed {what}. {state}"], as_json=as_json)


@contract.command("show")
def show(
    reference: Reference, party: As = None, full: Full = False, home: HomeFolder = None, as_json: Json = False
) -> None:
    """What a contract says, who signed it, and whether it is in force."""
    with at_home(home) as place:
        found = operations.show_contract(place, reference, party)
        here = operations.this_node(place)
    result(_document(found, here), _summary(found, here, full=full), as_json=as_json)


@contract.command("list")
def list_contracts(party: As = None, home: HomeFolder = None, as_json: Json = False) -> None:
    """The contracts that a party is a party to, newest first."""
    with at_home(home) as place:
        found = operations.list_contracts(place, party)
    rows = [
        (c["name"], f"serial {c['serial']}", c["digest"][:16], ", ".join(c["parties"]), c["reason"] or "in force")
        for c in found
    ]
    result({"contracts": found}, columns(rows) or ["No contracts yet."], as_json=as_json)


@contract.command("revoke")
def revoke(
    reference: ToRevoke,
    reason: Annotated[str, typer.Option("--reason", help="One sentence for the other parties.")],
    party: As = None,
    yes: Yes = False,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """End a contract, alone and for good. A run under it stops within one lease."""
    with at_home(home) as place:
        acting = place.choose(party)
        found = operations.contract_to_revoke(place, reference, acting)
        what = f"{found.contract.name} serial {found.contract.serial}"
        ask(f"Revoke {what}, {found.digest}, as {acting}, for good?", yes=yes)
        done = operations.revoke_contract(place, found, acting, reason)
    lines = [f"{what} is revoked; runs under it stop within {found.contract.lease_seconds} seconds."]
    if done.get("unreached"):
        unreached = ", ".join(done["unreached"])
        lines.append(f"Not reached yet: {unreached}. The broker of {acting} keeps telling them until they answer.")
    if done["control"] != "told":
        lines.append(f"The control plane was not told: {done['control']}")
    lines += [f"Another serial of this name is in force still; to end it, too, revoke {d}" for d in done["in_force"]]
    result(done, lines, as_json=as_json)
