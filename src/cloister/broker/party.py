"""The party whose broker this is: its keys in the vault, its card, and the cards of others that it pinned."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from ..contracts import Card, PartyKeys, check_compromise, compromise_statement, make_card, read_card, replace_card
from ..crypto import Envelope, Signer, frame, hkdf
from ..errors import Denied, Misuse
from ..fields import party_name
from ..keys import CHECKPOINT, RECEIPT, SIGNING, STATUS, TLS, KeyVault, hpke_key
from .clock import Clock
from .ledger import Ledger
from .state import Change, State

__all__ = ["OwnKeys", "Parties", "first_card"]


def first_card(vault: KeyVault, name: str, *, part_of: str | None, now: int) -> Card:
    """The card of a new party. Raises Malformed for a name that no party can have."""
    parent = None if part_of is None else party_name(part_of)
    keys = OwnKeys(vault)
    signer = keys.signing(1)
    return make_card(party_name(name), keys.public(signer), (signer,), serial=1, issued=now, part_of=parent)


def _signing_name(serial: int) -> str:
    """One secret per card, so that a rotation can stop half-way without losing the key that still counts."""
    return SIGNING if serial == 1 else f"{SIGNING}-{serial}"


class OwnKeys:
    """The party's private keys. They stay in this process."""

    def __init__(self, vault: KeyVault) -> None:
        self.vault = vault
        self.status = vault.signing_key(STATUS)
        self.receipt = vault.signing_key(RECEIPT)
        self.hpke = hpke_key(vault)

    def signing(self, serial: int) -> Signer:
        """The signing key of the card of this serial."""
        return self.vault.signing_key(_signing_name(serial))

    def new_signing(self, serial: int) -> Signer:
        """A fresh one for the next card, in the vault before anybody hears of it."""
        return self.vault.create_signing_key(_signing_name(serial), replace=True)

    def public(self, signing: Signer) -> PartyKeys:
        tls = self.vault.signing_key(TLS).public  # of its seed: TLS needs the key itself, so it is a secret
        return PartyKeys(signing.public, self.status.public, self.receipt.public, tls, self.hpke.public)

    def tls_seed(self) -> bytes:
        return self.vault.secret(TLS)

    def checkpoint_share(self, owner: str, contract: bytes, job: bytes, kind: str) -> bytes:
        """This owner's 32 bytes of a derived key (PROTOCOL §3). The same for every instance of the job."""
        info = frame("cloister/share/v1", owner, contract, job, kind)
        return hkdf(self.vault.secret(CHECKPOINT), info=info)


class Parties:
    """The own card and the pins. Reading is cheap; every change is logged."""

    def __init__(self, keys: OwnKeys, ledger: Ledger, clock: Clock) -> None:
        self._keys = keys
        self._ledger = ledger
        self._state: State = ledger.state
        self._clock = clock

    @property
    def card(self) -> Card:
        row = self._state.row("facts", name="card")
        if row is None:
            raise Misuse("party.absent", "This broker has no party yet; create one first.")
        return _read(row["value"])

    @property
    def signing(self) -> Signer:
        return self._keys.signing(self.card.serial)

    def pinned(self) -> dict[str, Card]:
        """Cards by name, our own among them: a contract names us too."""
        own = self.card
        return {row["name"]: _read(row["card"]) for row in self._state.rows("pins")} | {own.name: own}

    def compromised(self) -> frozenset[str]:
        names = {row["name"] for row in self._state.rows("pins", compromised=1)}
        own = self._state.row("facts", name="compromised") is not None
        return frozenset(names | ({self.card.name} if own else set()))

    def pin(self, text: str, fingerprint: str | None) -> Card:
        """Pin a card. The first of a party needs the fingerprint that a person compared; later ones need the pinned
        key's signature. After a compromise only a compared fingerprint helps: the old key may be the thief's."""
        offered = _read(text)
        with self._ledger.turn():
            if offered.name == self.card.name:
                raise Misuse("pin.self", "A party does not pin its own card.")
            row = self._state.row("pins", name=offered.name)
            if row is None or row["compromised"]:
                if fingerprint != offered.fingerprint:
                    raise Denied(
                        "pin.fingerprint", f"Compare the fingerprint of {offered.name} with them, and give it here."
                    )
                if row is not None and _read(row["card"]).keys.signing == offered.keys.signing:
                    raise Denied("pin.compromised", "This card still carries the signing key that was declared lost.")
            else:
                old = _read(row["card"])
                if replace_card(old, offered) is old:
                    return old
            self._put_pin(offered, compromised=False, kind="party.pinned", details={"serial": offered.serial})
        return offered

    def rotate_signing(self) -> Card:
        """A new signing key, and a card that old and new key sign. Contracts name keys, so sign them anew."""
        with self._ledger.turn():
            old = self.card
            new = self._keys.new_signing(old.serial + 1)
            keys = replace(old.keys, signing=new.public)
            signers = (new, self._keys.signing(old.serial))
            card = make_card(old.name, keys, signers, serial=old.serial + 1, issued=self._clock(), part_of=old.part_of)
            self._put_facts("party.key_rotated", {"card": _text(card)}, {"key": "signing", "serial": card.serial})
        return card

    def declare_compromised(self) -> Envelope:
        """Our own keys are no longer ours: from now on this broker gives nothing, and peers can be told."""
        with self._ledger.turn():
            statement = compromise_statement(self.card, self.signing, now=self._clock())
            self._put_facts("party.compromised", {"compromised": "1"}, {"by": "self"})
        return statement

    def distrust(self, name: str, statement: str | None) -> None:
        """Deny every contract with ``name`` from now on: on its own signed word, or on our owner's."""
        with self._ledger.turn():
            row = self._state.row("pins", name=name)
            if row is None:
                raise Misuse("pin.absent", f"The card of {name} is not pinned here.")
            card = _read(row["card"])
            if statement is not None:
                check_compromise(Envelope.from_bytes(statement.encode()), card)
            by = "statement" if statement is not None else "owner"
            self._put_pin(card, compromised=True, kind="party.compromised", details={"by": by})

    def _put_pin(self, card: Card, *, compromised: bool, kind: str, details: dict[str, str | int]) -> None:
        row = {"name": card.name, "card": _text(card), "compromised": int(compromised)}
        more = {**details, "fingerprint": card.fingerprint}
        self._ledger.commit(kind, target=card.name, details=more, changes=[Change("pins", row)])

    def _put_facts(self, kind: str, facts: dict[str, str], details: dict[str, str | int]) -> None:
        facts = {**facts, "vault_revision": str(self._keys.vault.revision)}
        changes = [Change("facts", {"name": name, "value": value}) for name, value in facts.items()]
        self._ledger.commit(kind, target=self.card.name, details=details, changes=changes)


@lru_cache(maxsize=256)
def _read(text: str) -> Card:
    return read_card(Envelope.from_bytes(text.encode()))


def _text(card: Card) -> str:
    return card.envelope.to_bytes().decode()
