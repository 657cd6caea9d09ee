"""``org`` and ``team``: parties, their cards, and whom they trust."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..client import Created, operations
from ..errors import Misuse
from .options import As, HomeFolder, Json, PassphraseFile, Yes, at_home, read_file
from .passphrase import read_passphrase
from .terminal import ask, columns, note, result, spinner

__all__ = ["org", "team"]

org = typer.Typer(no_args_is_help=True, help="Organizations: create, unlock, compare and pin cards.")
team = typer.Typer(no_args_is_help=True, help="Teams: parties of their own inside an organization.")

_SHORTCUT = (
    "pinned without comparing fingerprints, because one person runs them all on this machine; "
    "across machines use 'cloister org export' and 'cloister org trust'"
)


VaultDriver = Annotated[
    str | None,
    typer.Option(
        "--vault", help="What keeps the KEKs: file, tpm, pkcs11, transit, aws, gcp or azure (docs/vaults.md)."
    ),
]
VaultOptions = Annotated[
    list[str] | None, typer.Option("--vault-option", help="KEY=VALUE of that driver; may be given several times.")
]
DatabaseFile = Annotated[
    Path | None,
    typer.Option(
        "--database", help="File (0600) with the URL of a PostgreSQL for the party's state and log; else in the home."
    ),
]


StockGuests = Annotated[
    bool | None,
    typer.Option("--stock-guests/--no-stock-guests", help="Serve plain KBS guests, where a contract allows them."),
]
FetchCollateral = Annotated[
    bool | None,
    typer.Option("--fetch-collateral/--no-fetch-collateral", help="Ask vendors for what attestation needs."),
]


@org.command("create")
def create(
    name: str,
    vault: VaultDriver = None,
    vault_option: VaultOptions = None,
    database: DatabaseFile = None,
    stock_guests: StockGuests = None,
    fetch_collateral: FetchCollateral = None,
    passphrase_file: PassphraseFile = None,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """Create an organization: a vault under a passphrase or in a device, keys, a card, an audit log, and a broker that
    serves them."""
    kept: dict[str, Any] = {"vault": operations.vault_choice(vault, vault_option or []), "database": database}
    kept["switches"] = operations.broker_switches(stock_guests, fetch_collateral)
    _create(name, None, kept, passphrase_file, home, as_json)


@team.command("create")
def create_team(
    name: str,
    of: Annotated[str, typer.Option("--of", help="The organization that it belongs to.")],
    vault: VaultDriver = None,
    vault_option: VaultOptions = None,
    database: DatabaseFile = None,
    stock_guests: StockGuests = None,
    fetch_collateral: FetchCollateral = None,
    passphrase_file: PassphraseFile = None,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """Create a team: a party with its own keys, broker and log, whose card names its organization."""
    kept: dict[str, Any] = {"vault": operations.vault_choice(vault, vault_option or []), "database": database}
    kept["switches"] = operations.broker_switches(stock_guests, fetch_collateral)
    _create(name, of, kept, passphrase_file, home, as_json)


def _create(
    name: str, part_of: str | None, kept: dict[str, Any], file: Path | None, home: Path | None, as_json: bool
) -> None:
    with at_home(home) as place:
        place.status()  # say that nothing runs before asking for a passphrase
        passphrase = read_passphrase(name, file, twice=True)
        with spinner(f"creating {name}"):
            made = operations.create_party(place, name, passphrase, part_of=part_of, **kept)
        result(made.document(), [f"{name} is created.", *_lines(made)], as_json=as_json)


def _lines(made: Created) -> list[str]:
    lines = [f"fingerprint  {made.fingerprint}"]
    if made.paired:
        lines.append(f"{made.name} and {', '.join(made.paired)}: {_SHORTCUT}.")
    if made.locked:
        lines.append(f"Locked, so not paired yet: {', '.join(made.locked)}. 'cloister org unlock' does it.")
    return lines


@org.command("unlock")
def unlock(
    name: str,
    vault: VaultDriver = None,
    vault_option: VaultOptions = None,
    database: DatabaseFile = None,
    stock_guests: StockGuests = None,
    fetch_collateral: FetchCollateral = None,
    passphrase_file: PassphraseFile = None,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """Open a party's vault after a restart: its broker starts and answers again. The vault's driver and the database's
    file and the switches are remembered; name them only where they change, as after a recovery."""
    choice = operations.vault_choice(vault, vault_option or [])
    switches = operations.broker_switches(stock_guests, fetch_collateral)
    with at_home(home) as place:
        place.status()
        passphrase = read_passphrase(name, passphrase_file, twice=False)
        with spinner(f"unlocking {name}"):
            opened = operations.unlock(place, name, passphrase, vault=choice, database=database, switches=switches)
        result(opened.document(), [f"{name} is unlocked.", *_lines(opened)], as_json=as_json)


@org.command("migrate")
def migrate(
    name: str,
    database: Annotated[Path, typer.Option("--database", help="File (0600) with the URL of an empty PostgreSQL.")],
    passphrase_file: PassphraseFile = None,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """Move a locked party's state and log from its home into a PostgreSQL, where replicas can share them, and unlock it
    there. Everything is compared before it counts; what was in the home is set aside."""
    with at_home(home) as place:
        place.status()
        passphrase = read_passphrase(name, passphrase_file, twice=False)
        with spinner(f"moving {name}"):
            moved = operations.migrate(place, name, passphrase, database)
    lines = [f"{name} is moved and unlocked: {moved.rows} rows, {moved.entries} log entries.", *_lines(moved.party)]
    aside = [f"Set aside, to be removed when you like: {path}" for path in moved.aside]
    result(moved.document(), [*lines, *aside], as_json=as_json)


@org.command("list")
def list_parties(home: HomeFolder = None, as_json: Json = False) -> None:
    """The parties that live here, and the cards that each has pinned."""
    with at_home(home) as place:
        rows = operations.list_parties(place)
    lines = []
    for row in rows:
        kind = f"team of {row['part_of']}" if row.get("part_of") else row.get("kind", "")
        lines.append((row["name"], row["state"], kind, row.get("fingerprint", row.get("problem", ""))))
        for name, pin in sorted(row.get("pins", {}).items()):
            lines.append(("  pinned", name, "COMPROMISED" if pin["compromised"] else "", pin["fingerprint"]))
    result({"parties": rows}, columns(lines) or ["No party lives here yet."], as_json=as_json)


@org.command("export")
def export(
    party: As = None,
    to: Annotated[Path | None, typer.Option("--to", help="File to write; stdout otherwise.")] = None,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """Write a party's card for others, and show the fingerprint to compare with them over another channel."""
    with at_home(home) as place:
        card = place.agent(place.choose(party)).card
    text = card.envelope.to_bytes().decode()
    document = {"card": text, "fingerprint": card.fingerprint, "name": card.name}
    if to is not None:
        _write(to, text + "\n")
        return result(document, [f"{card.name}  {card.fingerprint}"], as_json=as_json)
    note(f"fingerprint  {card.fingerprint}")
    return result(document, [text], as_json=as_json)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError:
        raise Misuse("file.write", f"The file {path} can't be written; name another.") from None


@org.command("trust")
def trust(
    card_file: Annotated[Path, typer.Argument(help="The other party's exported card.")],
    fingerprint: Annotated[str | None, typer.Option("--fingerprint", help="What they read to you.")] = None,
    party: As = None,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """Pin another party's card after comparing its fingerprint with them. Later cards follow by signature."""
    card = operations.parse_card(read_file(card_file))
    with at_home(home) as place:
        acting = place.choose(party)
        known = place.agent(acting).pins().get(card.name)
        if fingerprint is None and (known is None or known[1]):
            fingerprint = _ask_fingerprint(card.name)
        operations.trust(place, acting, card, fingerprint)
    document = {"fingerprint": card.fingerprint, "party": acting, "pinned": card.name}
    result(document, [f"{acting} has pinned {card.name}  {card.fingerprint}"], as_json=as_json)


def _ask_fingerprint(name: str) -> str:
    """Typed, not shown: who only presses "y" compares nothing."""
    if not sys.stdin.isatty():
        raise Misuse("trust.fingerprint", f"Compare the fingerprint with {name} and give it with --fingerprint.")
    note(f"Ask {name}, over another channel, for their fingerprint, and type what they say:")
    return sys.stdin.readline().strip().lower()


@org.command("rotate")
def rotate(party: As = None, yes: Yes = False, home: HomeFolder = None, as_json: Json = False) -> None:
    """Give a party a new signing key. Its contracts carry the old one, so they are to be signed anew."""
    with at_home(home) as place:
        acting = place.choose(party)
        ask(f"Contracts of {acting} must be signed anew afterwards. Rotate its signing key?", yes=yes)
        card = place.agent(acting).rotate_signing()
        operations.publish(place, acting)
        told = _tell_others(place, acting)
    document = {"fingerprint": card.fingerprint, "name": acting, "told": told}
    told_line = [f"Pinned the new card: {', '.join(told)}."] if told else []
    result(document, [f"{acting} has a new card  {card.fingerprint}", *told_line], as_json=as_json)


def _tell_others(place: Any, acting: str) -> list[str]:
    card = place.agent(acting).card
    told = []
    for name, agent in place.running_agents().items():
        if name != acting and acting in agent.pins():
            agent.pin(card, None)  # the old key signed it, so nothing is to be compared
            told.append(name)
    return told


@org.command("compromised")
def compromised(
    who: Annotated[str | None, typer.Argument(help="Whose keys; the acting party's own if left out.")] = None,
    statement: Annotated[
        Path | None, typer.Option("--statement", help="The other party's own signed statement, if they sent one.")
    ] = None,
    party: As = None,
    yes: Yes = False,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """Declare keys compromised. From then on no contract with them is in force; only a newly compared card helps."""
    text = None if statement is None else read_file(statement).decode("utf-8", "replace").strip()
    with at_home(home) as place:
        acting = place.choose(party)
        named = who or acting
        ask(f"Every contract with {named} stops working for {acting}, for good. Declare its keys compromised?", yes=yes)
        answer = place.agent(acting).compromised(None if who in (None, acting) else who, text)
    lines = [f"{acting} now refuses every contract with the present keys of {named}."]
    if "statement" in answer and named == acting:
        lines += ["Send this statement to the other parties:", str(answer["statement"])]
    result({**answer, "by": acting, "compromised": named}, lines, as_json=as_json)
