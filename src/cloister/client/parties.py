"""Parties: create, export, pin. Trust begins with people who compare fingerprints; the one shortcut says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..contracts import Card, read_card
from ..crypto import Envelope
from ..errors import Malformed, Misuse, Unavailable
from ..keys import DriverConfig
from .supervisor import Home

__all__ = [
    "Created",
    "Moved",
    "broker_switches",
    "create_party",
    "list_parties",
    "migrate",
    "parse_card",
    "publish",
    "trust",
    "unlock",
    "vault_choice",
]


@dataclass(frozen=True)
class Created:
    """A new party. ``paired``: parties of this home that were pinned both ways without comparing fingerprints."""

    name: str
    fingerprint: str
    port: int
    paired: tuple[str, ...]
    locked: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        return {
            "fingerprint": self.fingerprint,
            "locked": list(self.locked),
            "name": self.name,
            "paired": list(self.paired),
            "port": self.port,
        }


@dataclass(frozen=True)
class Moved:
    """A party whose record lies in a database now. ``aside``: where the home's own was put, until somebody removes
    it."""

    party: Created
    rows: int
    entries: int
    aside: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        moved = {"aside": list(self.aside), "entries": self.entries, "rows": self.rows}
        return {**self.party.document(), **moved}


def parse_card(text: str | bytes) -> Card:
    """A card from a file that a party exported. Raises Malformed or Untrusted."""
    data = text.encode() if isinstance(text, str) else text
    try:
        return read_card(Envelope.from_bytes(data.strip(), limit=1 << 20))
    except Malformed:
        raise Malformed("card.form", "The file is not a party's card; ask them for 'cloister org export'.") from None


def vault_choice(driver: str | None, options: Sequence[str]) -> DriverConfig | None:
    """From ``pkcs11`` and ``KEY=VALUE`` texts; None where nothing was named. Raises Misuse."""
    if driver is None:
        if options:
            raise Misuse("vault.choice", "Name with --vault what the options are for.")
        return None
    pairs = [option.partition("=") for option in options]
    if not all(key and equals for key, equals, _ in pairs) or len({key for key, _, _ in pairs}) != len(pairs):
        raise Misuse("vault.choice", "Give each --vault-option once, as KEY=VALUE.")
    return DriverConfig(driver, {key: value for key, _, value in pairs})


def broker_switches(stock_guests: bool | None, fetch_collateral: bool | None) -> dict[str, bool]:
    """What a party's broker is to serve or do beyond the usual; None leaves as it is."""
    given = {"fetch_collateral": fetch_collateral, "stock_guests": stock_guests}
    return {name: on for name, on in given.items() if on is not None}


def create_party(
    home: Home,
    name: str,
    passphrase: str,
    *,
    part_of: str | None = None,
    vault: DriverConfig | None = None,
    database: Path | None = None,
    switches: Mapping[str, bool] | None = None,
) -> Created:
    """Start a new party's broker, publish its card, and pin it mutually with the parties of this home.

    ``vault`` names what keeps its KEKs (None: the vault's own file); ``passphrase`` then is that device's credential.
    ``database``: a file (0600) with the URL of the empty PostgreSQL that keeps its state and log (None: its home does).
    ``switches``: see ``broker_switches``.

    That pinning compares nothing: whoever runs all these parties is one person, who started their brokers. Across
    machines people compare fingerprints (``trust``).
    """
    port = home.start_party(
        name, passphrase, create=True, part_of=part_of, vault=vault, database=database, switches=switches
    )
    return _joined(home, name, port)


def _joined(home: Home, name: str, port: int) -> Created:
    card = publish(home, name)
    paired, locked = _pair(home, name)
    return Created(name, card.fingerprint, port, paired, locked)


def publish(home: Home, name: str) -> Card:
    """Put a party's present card and address into the directory."""
    agent = home.agent(name)
    home.control(name).publish(agent.card, f"127.0.0.1:{home.parties()[name]['port']}")
    return agent.card


def _pair(home: Home, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    parties = home.parties()
    mine = home.agent(name)
    paired, locked = [], []
    for other in sorted(set(parties) - {name}):
        if parties[other]["state"] != "running":
            locked.append(other)
            continue
        theirs = home.agent(other)
        mine.pin(theirs.card, theirs.card.fingerprint)
        theirs.pin(mine.card, mine.card.fingerprint)
        paired.append(other)
    addresses = {p: f"127.0.0.1:{parties[p]['port']}" for p in (*paired, name)}
    for party in (*paired, name):
        home.agent(party).set_peers({p: a for p, a in addresses.items() if p != party})
    return tuple(paired), tuple(locked)


def unlock(
    home: Home,
    name: str,
    passphrase: str,
    *,
    vault: DriverConfig | None = None,
    database: Path | None = None,
    switches: Mapping[str, bool] | None = None,
) -> Created:
    """Start an existing party's broker, and do the pairing that was missed while it was locked.

    ``vault`` only where its driver is another one since, as after a recovery; ``database`` only where the file with its
    URL lies elsewhere since; ``switches`` as in ``broker_switches``, each that is left out as it was.
    """
    port = home.start_party(name, passphrase, create=False, vault=vault, database=database, switches=switches)
    return _joined(home, name, port)


def migrate(home: Home, name: str, passphrase: str, database: Path) -> Moved:
    """Move a locked party's state and log from its home into the empty PostgreSQL of the URL in the file ``database``,
    and unlock it there.

    All is compared before it counts; after an error that came before that the home is as it was. Raises Misuse for a
    party whose broker runs (``party.running``) and for a database with a broker in it (``state.taken``).
    """
    answer = home.migrate_party(name, passphrase, database)
    party = _joined(home, name, int(answer["port"]))
    return Moved(party, int(answer["rows"]), int(answer["entries"]), tuple(answer["aside"]))


def trust(home: Home, party: str, card: Card, fingerprint: str | None) -> None:
    """Pin a card for ``party``; the first of a name needs the fingerprint that people compared."""
    agent = home.agent(party)
    agent.pin(card, fingerprint)
    address = home.control(party).directory().get(card.name, {}).get("address")
    if address is not None:
        agent.set_peers({card.name: address})  # a hint only: what answers there must hold the pinned TLS key


def list_parties(home: Home) -> list[dict[str, Any]]:
    """Every party of this home with its pins, and what its broker warns of."""
    rows = []
    for name, known in sorted(home.parties().items()):
        row: dict[str, Any] = {"name": name, "port": known["port"], "state": known["state"]}
        if known["state"] == "running":
            row |= _details(home, name)
        rows.append(row)
    return rows


def _details(home: Home, name: str) -> dict[str, Any]:
    agent = home.agent(name)
    try:
        card, pins = agent.card, agent.pins()
    except Unavailable as error:
        return {"problem": error.message}
    return {
        "fingerprint": card.fingerprint,
        "kind": card.kind,
        "part_of": card.part_of,
        "pins": {n: {"compromised": bad, "fingerprint": c.fingerprint} for n, (c, bad) in pins.items()},
    }
