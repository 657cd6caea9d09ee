"""Contracts from the parties' side: look at, sign, revoke.

The control plane stores them and is trusted for that alone. What is signed, revoked or run is chosen among contracts
that were drafted in this home or that a party's own broker knows; any other one is named by its whole digest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..contracts import CONTRACT_TYPE, Contract, read_contract
from ..crypto import Envelope
from ..errors import CloisterError, Misuse, Untrusted
from .control import ControlClient
from .describe import describe
from .drafts import Draft, drafts
from .known import KnownContract, find_known, known_contracts
from .references import check_answer, choose, is_beginning, is_digest
from .supervisor import Home

__all__ = [
    "Agreement",
    "contract_to_revoke",
    "contract_to_run",
    "contract_to_sign",
    "find_contract",
    "list_contracts",
    "read_agreement",
    "revoke_contract",
    "show_contract",
    "sign_contract",
]


@dataclass(frozen=True)
class Agreement:
    """A contract as the control plane has it now. ``stored_with``: local parties whose brokers got the signed whole.

    ``asked``: the reference by which it was found. ``state`` and ``reason`` are the control plane's word.
    """

    contract: Contract
    state: str
    reason: str | None
    signed: tuple[str, ...]
    missing: tuple[str, ...]
    stored_with: tuple[str, ...] = ()
    asked: str = ""

    @property
    def summary(self) -> list[tuple[str, str]]:
        return self.rows()

    def rows(self, here: Mapping[str, str] | None = None, *, full: bool = False) -> list[tuple[str, str]]:
        """The contract in words; ``here``: what runs here, to compare its platform with (``this_node``)."""
        return describe(self.contract, here=here, full=full)

    def document(self) -> dict[str, Any]:
        return {
            "digest": self.contract.digest.hex(),
            "missing": list(self.missing),
            "name": self.contract.name,
            "reason": self.reason,
            "serial": self.contract.serial,
            "signed": list(self.signed),
            "state": self.state,
            "stored_with": list(self.stored_with),
            "summary": [{"what": what, "value": value} for what, value in self.rows(full=True)],
        }


def read_agreement(answer: dict[str, Any], asked: str, stored_with: tuple[str, ...] = ()) -> Agreement:
    """The control plane's answer about the contract ``asked``, a name or whole digest. Raises Untrusted for another."""
    contract = read_contract(Envelope.from_bytes(str(answer["contract"]).encode()))
    check_answer(contract, asked)
    # Who signed is looked up, not believed. By the document's own keys: brokers compare those with the pinned ones.
    signed = tuple(name for name in sorted(contract.parties) if _has_signed(contract, name))
    missing = tuple(sorted(set(contract.parties) - set(signed)))
    reason = None if answer["reason"] is None else str(answer["reason"])
    return Agreement(contract, str(answer["state"]), reason, signed, missing, stored_with, asked)


def _has_signed(contract: Contract, party: str) -> bool:
    try:
        contract.envelope.verify(CONTRACT_TYPE, [contract.parties[party].signing])
    except Untrusted:
        return False
    return True


def find_contract(client: ControlClient, reference: str) -> Agreement:
    """To look at: by digest, a digest's unique beginning, or name (the highest serial). Raises Misuse, Untrusted."""
    if is_beginning(reference) and not is_digest(reference):
        found = sorted({d for c in client.contracts() if (d := str(c["digest"])).startswith(reference)})
        if len(found) > 1:
            raise Misuse("contract.ambiguous", "More than one contract's digest begins so; write more of it.")
        if found:
            return replace(read_agreement(client.contract(found[0]), found[0]), asked=reference)
    return read_agreement(client.contract(reference), reference)


def show_contract(home: Home, reference: str, party: str | None = None) -> Agreement:
    return find_contract(home.control(home.choose(party)), reference)


def list_contracts(home: Home, party: str | None = None) -> list[dict[str, Any]]:
    return home.control(home.choose(party)).contracts()


# --- signing --------------------------------------------------------------------------------------------------------


def contract_to_sign(home: Home, reference: str, party: str) -> Agreement:
    """The contract that ``reference`` may mean to somebody who is about to sign it.

    A name, or a digest's beginning, means one that was drafted in this home or that a party of it signed before. What
    anybody else proposed is named by its whole digest, after comparing that with them. Raises Misuse
    ``contract.compare``, which says the digest, for anything else.
    """
    client = home.control(party)
    chosen = choose(_vouched(home), reference)
    if chosen is None:
        found = find_contract(client, reference)
        if found.contract.digest.hex() != reference:
            raise _compare(found.contract)
        return found
    if chosen.name == reference and chosen.digest in {k.digest for k in known_contracts(home.agent(party))}:
        newest = find_contract(client, reference)
        if newest.contract.serial > chosen.serial:
            raise _compare(newest.contract)  # signing the old one again would look like signing this one
    return read_agreement(client.contract(chosen.digest), chosen.digest)


def sign_contract(home: Home, agreement: Agreement, party: str) -> Agreement:
    """Have the party's broker sign exactly the contract that was shown, and share the signature.

    Once it is whole, it is stored with every party's broker that lives here. Signing twice changes nothing. Raises
    Misuse ``contract.compare`` for a contract of somebody else's that was not asked for by its whole digest.
    """
    contract = agreement.contract
    digest = contract.digest.hex()
    if party not in contract.parties:
        raise Misuse("contract.party", f"{party} is no party to this contract.")
    if agreement.asked != digest and digest not in {one.digest for one in _vouched(home)}:
        raise _compare(contract)
    signed = home.agent(party).sign_contract(contract.envelope)
    if signed.payload != contract.envelope.payload:
        raise Untrusted("contract.signed", "The broker signed another document than the one that was shown.")
    answer = home.control(party).offer(signed)
    result = read_agreement(answer, digest)
    return result if result.missing else read_agreement(answer, digest, _store_everywhere(home, result.contract))


def _vouched(home: Home) -> list[Draft | KnownContract]:
    """What this home drafted, and what its parties signed."""
    return [*drafts(home.path), *(k for agent in home.running_agents().values() for k in known_contracts(agent))]


def _compare(contract: Contract) -> Misuse:
    digest = contract.digest.hex()
    return Misuse(
        "contract.compare",
        f"{contract.name} serial {contract.serial} was not drafted in this home: compare its digest {digest} with "
        "whoever proposed it, look at it with 'cloister contract show', then sign it by that digest.",
        digest=digest,
    )


def _store_everywhere(home: Home, contract: Contract) -> tuple[str, ...]:
    stored = []
    for name, agent in home.running_agents().items():
        if name in contract.parties:
            agent.store_contract(contract.envelope)
            stored.append(name)
    return tuple(stored)


# --- running under one, and ending it -------------------------------------------------------------------------------


def contract_to_run(home: Home, reference: str, party: str) -> Contract:
    """The contract for a job: by name the newest serial that the party's own broker has complete.

    A newer one that the party signed, and that the others have signed since, is given to the broker first. One that
    nobody else signed yet is returned only if there is no other, for the broker to say who is missing. Raises Misuse.
    """
    agent, client = home.agent(party), home.control(party)
    known = known_contracts(agent)
    complete = choose([one for one in known if one.complete], reference)
    signed = choose(known, reference)
    if signed is None:
        if is_digest(reference):  # named exactly: the broker checks every signature before it signs a job under it
            return find_contract(client, reference).contract
        return find_known(agent, reference).contract
    if not signed.complete:
        try:
            merged = read_agreement(client.contract(signed.digest), signed.digest)
        except Misuse:
            if complete is None:
                raise
        else:
            if not merged.missing:
                agent.store_contract(merged.contract.envelope)
            if not merged.missing or complete is None:
                return merged.contract
    return (complete or signed).contract


def contract_to_revoke(home: Home, reference: str, party: str) -> KnownContract:
    """Among the contracts that the party's own broker knows; by name the newest serial that the party signed."""
    return find_known(home.agent(party), reference)


def revoke_contract(home: Home, agreement: Agreement | KnownContract, party: str, reason: str) -> dict[str, Any]:
    """End a contract, alone and at once. The party's own broker is what counts; telling the others is best effort.

    ``in_force``: serials of the same name that this does not end.
    """
    contract, agent = agreement.contract, home.agent(party)
    revocation, reached = agent.revoke(contract.digest, reason)
    others = [k for k in known_contracts(agent) if k.name == contract.name and k.complete]
    newest = max((k.serial for k in others), default=0)
    result = {
        "contract": contract.digest.hex(),
        "in_force": [k.digest for k in others if k.serial == newest and k.revoked_by is None],
        "name": contract.name,
        "party": party,
        "serial": contract.serial,
        **reached,
    }
    try:
        home.control(party).report_revocation(contract.digest.hex(), revocation)
    except CloisterError as error:
        return {**result, "control": error.message}
    return {**result, "control": "told"}
