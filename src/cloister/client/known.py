"""The contracts that a party's own broker knows: the only ones that a bare name may mean where something follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..contracts import Contract, read_contract
from ..crypto import Envelope
from ..errors import Malformed, Misuse
from ..fields import Fields
from .agent import OwnerAgent
from .references import choose

__all__ = ["KnownContract", "find_known", "known_contracts"]

_LIMIT = 1 << 24


@dataclass(frozen=True)
class KnownContract:
    """``signed``: by the party; ``complete``: its broker saw every party's signature; ``revoked_by``: who ended it."""

    contract: Contract
    signed: bool
    complete: bool
    revoked_by: str | None

    @property
    def digest(self) -> str:
        return self.contract.digest.hex()

    @property
    def name(self) -> str:
        return self.contract.name

    @property
    def serial(self) -> int:
        return self.contract.serial

    @classmethod
    def read(cls, value: Any) -> KnownContract:
        f = Fields(value, "broker's contract")
        contract = read_contract(Envelope.from_bytes(f.text("contract", limit=_LIMIT).encode()))
        known = cls(contract, f.boolean("signed"), f.boolean("complete"), f.optional_text("revoked_by", limit=63))
        said = (f.hex("digest", 32), f.party("name"), f.integer("serial", low=1))
        if said != (contract.digest, contract.name, contract.serial):
            raise Malformed("broker.answer", "The broker's answer names another contract than it carries.")
        return known


def known_contracts(agent: OwnerAgent) -> list[KnownContract]:
    """Those that the party signed, or that every party signed. What others merely revoked is left out."""
    known = [KnownContract.read(value) for value in agent.contracts()]
    return [one for one in known if one.signed or one.complete]


def find_known(agent: OwnerAgent, reference: str) -> KnownContract:
    """By the digest's beginning, else the newest serial of the name that the party signed. Raises Misuse."""
    found = choose(known_contracts(agent), reference)
    if found is None:
        raise Misuse(
            "contract.unknown",
            f"{agent.party} has signed no contract that is called so; 'cloister contract list' shows those there are.",
        )
    return found
