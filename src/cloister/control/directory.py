"""The directory: cards and addresses by name. A convenience; nobody trusts it, because parties pin cards themselves."""

from __future__ import annotations

import re
from functools import lru_cache

from sqlalchemy import Connection, func, insert, select, update

from ..contracts import Card, read_card, replace_card
from ..crypto import Envelope
from ..errors import Denied, Malformed, Untrusted
from .database import Database
from .limits import Limits
from .tables import parties

__all__ = ["NODE", "Directory"]

NODE = "node"  # the node agent signs under this name, so no party may have it
_ADDRESS = re.compile(r"[A-Za-z0-9.-]{1,253}:[0-9]{1,5}|\[[0-9a-fA-F:.]{2,45}\]:[0-9]{1,5}")


class Directory:
    """First come, first served per name; afterwards only a successor that the present key signed."""

    def __init__(self, database: Database, *, node_key: bytes, limits: Limits) -> None:
        self._database = database
        self._node_key = node_key
        self._limits = limits

    def key_of(self, party: str) -> bytes | None:
        """The key that must have signed ``party``'s requests; None for strangers."""
        if party == NODE:
            return self._node_key
        with self._database.read() as connection:
            found = connection.execute(select(parties.c.signing).where(parties.c.name == party)).scalar()
        return bytes.fromhex(found) if found else None

    def listing(self) -> dict[str, dict[str, str]]:
        with self._database.read() as connection:
            rows = connection.execute(select(parties.c.name, parties.c.card, parties.c.address)).all()
        return {name: {"address": address, "card": card} for name, card, address in rows}

    def cards(self) -> dict[str, Card]:
        """Every registered card, which here stands for the pins that brokers hold."""
        return {name: _card(entry["card"]) for name, entry in self.listing().items()}

    def register(self, card: Card, address: str, *, now: int) -> None:
        """Store a card. Raises Denied (reserved name, full directory), Untrusted (not the known card's successor)."""
        if not _ADDRESS.fullmatch(address):
            raise Malformed("directory.address", "A broker's address is written host:port.")
        if card.name == NODE:
            raise Denied("directory.reserved", "The name 'node' is the node agent's own; choose another.")
        values = {
            "address": address,
            "card": card.envelope.to_bytes().decode(),
            "signing": card.keys.signing.hex(),
            "updated": now,
        }
        with self._database.write() as connection:
            known = connection.execute(select(parties.c.card).where(parties.c.name == card.name)).scalar()
            if known is None:
                self._check_room(connection)
                connection.execute(insert(parties).values(name=card.name, **values))
                return
            accept_successor(_card(known), card)
            connection.execute(update(parties).where(parties.c.name == card.name).values(**values))

    def _check_room(self, connection: Connection) -> None:
        count = connection.execute(select(func.count()).select_from(parties)).scalar_one()
        if count >= self._limits.parties:
            raise Denied("directory.full", "The directory takes no more parties; ask the operator.")


def accept_successor(known: Card, offered: Card) -> None:
    """Raises Untrusted unless ``offered`` is ``known`` or follows it by the present key's own signature."""
    try:
        replace_card(known, offered)
    except Untrusted as error:
        raise Untrusted(
            "directory.taken", f"The name {known.name} is taken here by another key.", why=error.code
        ) from None


@lru_cache(maxsize=4096)
def _card(text: str) -> Card:
    return read_card(Envelope.from_bytes(text.encode()))
