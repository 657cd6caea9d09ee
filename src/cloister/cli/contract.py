"""``contract``: propose, look at, sign, revoke."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..client import Agreement, operations
from .options import As, HomeFolder, Json, Yes, at_home, read_file
from .terminal import ask, columns, note, result

__all__ = ["contract"]

contract = typer.Typer(no_args_is_help=True, help="Contracts: what the parties agree on, and how it ends.")

Reference = Annotated[str, typer.Argument(help="A contract's name, its digest, or the digest's beginning.")]


@contract.command("new")
def new(
    file: Annotated[Path, typer.Argument(help="contract.yaml; README.md shows one with every key.")],
    party: As = None,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """Make a proposal from contract.yaml, for every party to look at and sign."""
    text = read_file(file)
    with at_home(home) as place:
        made = operations.new_contract(place, text, folder=file.absolute().parent, party=party)
    steps = f"Next, each of {', '.join(made.missing)}: cloister contract sign {made.contract.name} --as PARTY"
    result(made.document(), [*_summary(made), steps], as_json=as_json)


def _summary(agreement: Agreement) -> list[str]:
    signed = ", ".join(agreement.signed) or "nobody"
    waiting = f"; waiting for {', '.join(agreement.missing)}" if agreement.missing else ""
    return columns([*agreement.summary, ("signed by", signed + waiting), ("state", _state(agreement))])


def _state(agreement: Agreement) -> str:
    return "in force" if agreement.reason is None else agreement.reason


@contract.command("sign")
def sign(
    reference: Reference, party: As = None, yes: Yes = False, home: HomeFolder = None, as_json: Json = False
) -> None:
    """Sign a contract for a party, after showing it. When the last party signs, it comes into force."""
    with at_home(home) as place:
        acting = place.choose(party)
        shown = operations.show_contract(place, reference, acting)
        for line in _summary(shown):
            note(line)
        ask(f"Sign this as {acting}?", yes=yes)
        signed = operations.sign_contract(place, shown, acting)
    state = "It is in force." if not signed.missing else f"Still to sign: {', '.join(signed.missing)}."
    result(signed.document(), [f"{acting} has signed {signed.contract.name}. {state}"], as_json=as_json)


@contract.command("show")
def show(reference: Reference, party: As = None, home: HomeFolder = None, as_json: Json = False) -> None:
    """What a contract says, who signed it, and whether it is in force."""
    with at_home(home) as place:
        found = operations.show_contract(place, reference, party)
    result(found.document(), _summary(found), as_json=as_json)


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
    reference: Reference,
    reason: Annotated[str, typer.Option("--reason", help="One sentence for the other parties.")],
    party: As = None,
    yes: Yes = False,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """End a contract, alone and for good. A run under it stops within one lease."""
    with at_home(home) as place:
        acting = place.choose(party)
        found = operations.show_contract(place, reference, acting)
        ask(f"Revoke {found.contract.name} serial {found.contract.serial} as {acting}, for good?", yes=yes)
        done = operations.revoke_contract(place, found, acting, reason)
    lines = [f"{found.contract.name} is revoked; runs under it stop within {found.contract.lease_seconds} seconds."]
    if done.get("unreached"):
        lines.append(f"Not reached yet: {', '.join(done['unreached'])}; their brokers learn it from yours.")
    result(done, lines, as_json=as_json)
