"""Starting: is what lies here the newest that ever was? And creating: vault, card, state and log of a new party."""

from __future__ import annotations

from dataclasses import dataclass

from ..contracts import Card, read_card
from ..crypto import Argon2Params, Envelope
from ..errors import Malformed, Misuse, Untrusted
from ..fields import party_name
from ..keys import Vault, create_vault, open_vault, provision_party
from .clock import Clock
from .config import Limits, Settings
from .ledger import Ledger
from .party import OwnKeys, first_card
from .record import Place, Record, place_of
from .state import Change, Intent, State

__all__ = ["Opened", "create_home", "open_home"]


@dataclass(frozen=True)
class Opened:
    """A broker's home and record, opened and checked against each other. ``recovered``: what a crash left half-done."""

    vault: Vault
    record: Record
    card: Card
    recovered: list[Intent]

    def ledger(self, clock: Clock, limits: Limits) -> Ledger:
        """The one way to change the record."""
        record, log_key = self.record, OwnKeys(self.vault).receipt.public
        return Ledger(
            record.state, record.log, clock,
            actor=self.card.name, log_key=log_key, limits=limits, sequence=record.sequence,
        )  # fmt: skip

    def close(self) -> None:
        self.record.close()
        self.vault.close()


def create_home(
    settings: Settings,
    name: str,
    passphrase: bytes,
    *,
    part_of: str | None,
    clock: Clock,
    params: Argon2Params | None = None,
) -> None:
    """A new party in an empty folder. What a crash leaves half-made is refused later, and never mended silently: it
    could as well be a party from which somebody removed a file."""
    if settings.vault.exists() or settings.card.exists():
        raise Misuse("party.exists", "There is a party in this folder already, or a part of one; use an empty folder.")
    place = place_of(settings)
    try:
        place.check_vacant()
        _create(settings, place, name, passphrase, part_of=part_of, clock=clock, params=params)
    except BaseException:
        place.close()
        raise


def _create(
    settings: Settings,
    place: Place,
    name: str,
    passphrase: bytes,
    *,
    part_of: str | None,
    clock: Clock,
    params: Argon2Params | None,
) -> None:
    settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    vault = create_vault(
        settings.vault, passphrase, party_name(name), driver=settings.vault_driver, params=params, clock=clock
    )
    try:
        provision_party(vault)
        card = first_card(vault, name, part_of=part_of, now=clock())
        _first_entry(place, settings.limits, vault, card, clock)
    finally:
        vault.close()
    # The card comes last: where there is one, everything else is there.
    draft = settings.card.with_suffix(".draft")
    draft.write_bytes(card.envelope.to_bytes())
    draft.rename(settings.card)


def _first_entry(place: Place, limits: Limits, vault: Vault, card: Card, clock: Clock) -> None:
    record = place.create(card, vault, OwnKeys(vault).receipt)
    try:
        ledger = Opened(vault, record, card, []).ledger(clock, limits)
        facts = {"card": card.envelope.to_bytes().decode(), "vault_revision": str(vault.revision)}
        with ledger.turn():
            ledger.commit(
                "org.created",
                target=card.name,
                details={"fingerprint": card.fingerprint, "kind": card.kind},
                changes=[Change("facts", {"name": k, "value": v}) for k, v in facts.items()],
            )
    finally:
        record.close()


def open_home(settings: Settings, passphrase: bytes, *, moving: bool = False) -> Opened:
    """Open everything, and refuse what was put back from an older copy.

    ``passphrase``: the vault's credential. ``moving``: a database's record, beside what is left of the home's own.
    Raises Misuse (no party here, ``migration.unfinished``), Denied (wrong passphrase), Untrusted (``vault.rollback``,
    ``vault.other_copy``, ``state.rollback``, ``state.moved``, ``audit.rollback``, or what a damaged file gives),
    Unavailable (another process has it open, or the database can't be reached).
    """
    if not settings.card.exists():
        raise Misuse("party.absent", "There is no party in this folder; create one first.")
    place = place_of(settings, moving=moving)
    try:
        state = place.open_state()
    except BaseException:
        place.close()
        raise
    try:
        card, revision = _facts(state)
        vault = open_vault(settings.vault, passphrase, least_revision=revision, driver=settings.vault_driver)
    except BaseException:
        state.close()
        raise
    try:
        keys = OwnKeys(vault)
        if vault.owner != card.name or keys.public(keys.signing(card.serial)) != card.keys:
            raise Untrusted("vault.other", "The vault in this folder does not hold the keys of the party's card.")
        record = place.open(state, card, vault, keys.receipt)
    except BaseException:
        vault.close()
        state.close()
        raise
    opened = Opened(vault, record, card, [])
    try:
        opened.recovered.extend(record.reconcile(keys.receipt.public))
    except BaseException:
        opened.close()
        raise
    return opened


def _facts(state: State) -> tuple[Card, int]:
    facts = {row["name"]: row["value"] for row in state.rows("facts")}
    try:
        card = read_card(Envelope.from_bytes(facts["card"].encode()))
        return card, int(facts["vault_revision"])
    except (KeyError, ValueError, Malformed):
        raise Untrusted("state.damaged", "The broker's state is damaged; restore it from a copy.") from None
