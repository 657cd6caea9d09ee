"""Who a party is: a card with its public keys, how a card replaces another, and how one is declared compromised.

Trust begins when a person compares a card's fingerprint by another channel and pins the card. From then on a
newer card is accepted only if the pinned signing key signed it, so nobody who runs a directory can swap keys.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

from ..crypto import Envelope, Signer, fingerprint, sign_document
from ..crypto.tls import public_key_pin
from ..errors import Denied, Malformed, Untrusted
from ..fields import Fields

__all__ = [
    "CARD_TYPE",
    "COMPROMISE_TYPE",
    "Card",
    "PartyKeys",
    "check_compromise",
    "compromise_statement",
    "log_origin",
    "make_card",
    "read_card",
    "replace_card",
]

CARD_TYPE = "application/vnd.cloister.party+json"
COMPROMISE_TYPE = "application/vnd.cloister.compromise+json"
HPKE_PUBLIC = 1216


@dataclass(frozen=True)
class PartyKeys:
    """Public keys of one party. ``tls`` is the raw TLS key; contracts pin its SubjectPublicKeyInfo's digest."""

    signing: bytes
    status: bytes
    receipt: bytes
    tls: bytes
    hpke: bytes

    @property
    def tls_pin(self) -> bytes:
        return public_key_pin(self.tls)

    def document(self) -> dict[str, Any]:
        ed = {name: getattr(self, name).hex() for name in ("signing", "status", "receipt", "tls")}
        return {**ed, "hpke": base64.b64encode(self.hpke).decode()}

    @classmethod
    def read(cls, value: Any) -> PartyKeys:
        f = Fields(value, "party's keys")
        keys = cls(f.hex("signing", 32), f.hex("status", 32), f.hex("receipt", 32), f.hex("tls", 32), f.base64("hpke"))
        f.done()
        # Roles must not share a key: a status key on a busy server must not be able to sign contracts.
        if len({keys.signing, keys.status, keys.receipt, keys.tls}) != 4 or len(keys.hpke) != HPKE_PUBLIC:
            raise Malformed("party.keys", "A party's keys are not five distinct keys of the expected sizes.")
        return keys


@dataclass(frozen=True)
class Card:
    """One party's public identity. ``serial`` grows with every rotation; ``part_of`` names a team's organization."""

    name: str
    kind: str
    part_of: str | None
    serial: int
    keys: PartyKeys
    issued: int
    envelope: Envelope

    @property
    def fingerprint(self) -> str:
        """What two people read to each other."""
        return fingerprint(self.envelope.payload)

    @property
    def log_origin(self) -> str:
        return log_origin(self.name)


def log_origin(party: str) -> str:
    """The name of a party's audit log in its checkpoints and signed notes."""
    return f"cloister.invalid/log/{party}"


def make_card(
    name: str, keys: PartyKeys, signers: tuple[Signer, ...], *, serial: int, issued: int, part_of: str | None = None
) -> Card:
    """Sign a card with the new signing key and, when rotating, with the old one too."""
    body = {
        "issued": issued,
        "keys": keys.document(),
        "kind": "team" if part_of else "organization",
        "name": name,
        "part_of": part_of,
        "serial": serial,
        "type": "party/v1",
    }
    return read_card(sign_document(CARD_TYPE, body, *signers))


def read_card(envelope: Envelope) -> Card:
    """Parse a card that is signed by the signing key it carries. That proves consistency, not who the party is."""
    f = Fields(envelope.document(), "party card")
    f.text("type", choices=("party/v1",))
    part_of = None if f.raw("part_of") is None else f.party("part_of")
    card = Card(
        name=f.party("name"),
        kind=f.text("kind", choices=("organization", "team")),
        part_of=part_of,
        serial=f.integer("serial", low=1),
        keys=PartyKeys.read(f.raw("keys")),
        issued=f.integer("issued"),
        envelope=envelope,
    )
    f.done()
    if (card.kind == "team") != (card.part_of is not None):
        raise Malformed("party.kind", "A team's card names its organization, and an organization's card none.")
    envelope.verify(CARD_TYPE, [card.keys.signing])
    return card


def replace_card(pinned: Card, offered: Card) -> Card:
    """The card to pin from now on. Raises Untrusted unless ``offered`` is the same or a signed successor."""
    if offered.name != pinned.name or offered.part_of != pinned.part_of:
        raise Untrusted("party.other", "The card is of another party than the pinned one.")
    if offered.envelope.payload == pinned.envelope.payload:
        return pinned
    if offered.serial <= pinned.serial:
        raise Untrusted("party.rollback", f"The card of {pinned.name} is older than the pinned one.")
    try:
        offered.envelope.verify(CARD_TYPE, [pinned.keys.signing])
    except Untrusted:
        raise Untrusted(
            "party.rotation",
            f"The new card of {pinned.name} is not signed by the pinned key; compare its fingerprint with them.",
        ) from None
    return offered


def compromise_statement(card: Card, key: Signer, *, now: int) -> Envelope:
    """A party's word that its present keys are no longer its own. Any of its signing and status keys may say so."""
    body = {"card": card.envelope.digest.hex(), "issued": now, "name": card.name, "type": "compromise/v1"}
    return sign_document(COMPROMISE_TYPE, body, key)


def check_compromise(envelope: Envelope, card: Card) -> None:
    """Raises unless ``envelope`` declares ``card`` compromised. A thief of the key may say so too: that only denies."""
    envelope.verify(COMPROMISE_TYPE, [card.keys.signing, card.keys.status])
    f = Fields(envelope.document(), "compromise statement")
    f.text("type", choices=("compromise/v1",))
    f.integer("issued")
    if f.party("name") != card.name or f.hex("card", 32) != card.envelope.digest:
        raise Denied("party.compromise", "The statement speaks of another card.")
    f.done()
