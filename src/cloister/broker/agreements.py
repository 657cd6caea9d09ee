"""What the party signs and takes back: contracts, revocations, in-force statements, jobs, requests."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..contracts import (
    Contract,
    Recipe,
    Terms,
    check_contract,
    check_job,
    check_signatures,
    in_force_statement,
    job_envelope,
    read_contract,
    read_job,
    read_revocation,
    revocation_envelope,
)
from ..contracts.requests import authorization_header
from ..crypto import Envelope, random_bytes
from ..errors import CloisterError, Denied, Misuse, Untrusted
from .core import Core
from .knowledge import contract_change, instance_change
from .privacy import reserve
from .state import Change

__all__ = ["Agreements", "Status"]

_CLASSES = {"data": "dataset", "base": "model", "program": "program", "general": "dataset"}


@dataclass(frozen=True)
class Status:
    """A party's answer about a contract: its fresh statement, or why not, with the revocation if there is one."""

    statement: Envelope | None
    refusal: CloisterError | None
    revocation: str | None


class Agreements:
    """Contracts as this broker's party sees them."""

    def __init__(self, core: Core) -> None:
        self._keys = core.keys
        self._parties = core.parties
        self._assets = core.assets
        self._knowledge = core.knowledge
        self._ledger = core.ledger
        self._clock = core.clock

    # Contracts.

    def sign(self, envelope: Envelope) -> Envelope:
        """Our signature on a contract, added to those that it has. The same contract again gives the same answer."""
        contract = read_contract(envelope)
        with self._ledger.turn():
            row = self._knowledge.contract_row(contract.digest)
            if row is None or not row["signed"]:
                self._check_signable(contract)
                change = contract_change(contract, row, signed=1)
                self._commit("contract.signed", contract, {"stage": "signed"}, [change])
            elif row["revoked_by"] is not None:
                raise Denied("contract.revoked", f"The contract was revoked by {row['revoked_by']}.")
        return envelope.signed_by(self._parties.signing)

    def store(self, envelope: Envelope) -> Contract:
        """Take over a fully signed contract: from now on, older serials of its name are superseded here."""
        contract = read_contract(envelope)
        with self._ledger.turn():
            self._check_party(contract)
            check_signatures(contract, self._parties.pinned())
            row = self._knowledge.contract_row(contract.digest)
            if row is None or not row["complete"]:
                text = envelope.to_bytes().decode()
                change = contract_change(contract, row, envelope=text, complete=1)
                self._commit("contract.signed", contract, {"stage": "complete"}, [change])
        return contract

    def known(self) -> list[dict[str, Any]]:
        """Every contract that this broker remembers, by name and serial: what its owner may refer to by name."""
        rows = sorted(self._ledger.state.rows("contracts"), key=lambda row: (row["name"], row["serial"], row["digest"]))
        return [
            {
                "complete": bool(row["complete"]),
                "contract": row["envelope"],
                "digest": row["digest"],
                "name": row["name"],
                "revoked_by": row["revoked_by"],
                "serial": row["serial"],
                "signed": bool(row["signed"]),
            }
            for row in rows
        ]

    def _check_signable(self, contract: Contract) -> None:
        self._check_party(contract)
        self._check_keys(contract)
        if self._clock() >= contract.expires:
            raise Denied("contract.expired", "The contract has expired already.")
        if contract.serial <= self._knowledge.newest_serial(contract.name, "signed"):
            raise Denied("contract.serial", "A contract of this name with this or a later serial was signed already.")
        own = self._parties.card.name
        for asset in contract.assets:
            if asset.owner == own:
                self._check_asset(asset.name, asset.digest, asset.use, asset.terms)

    def _check_party(self, contract: Contract) -> None:
        if self._parties.card.name not in contract.parties:
            raise Denied("contract.foreign", "This broker's party is no party to the contract.")

    def _check_keys(self, contract: Contract) -> None:
        """Every party's keys in the contract are those pinned here, and nobody is known to have lost them."""
        pinned, lost = self._parties.pinned(), self._parties.compromised()
        for name, keys in contract.parties.items():
            if name not in pinned:
                raise Denied("contract.unpinned", f"The card of {name} is not pinned here; compare and pin it first.")
            if pinned[name].keys != keys:
                raise Untrusted("contract.keys", f"The contract carries other keys of {name} than the pinned ones.")
            if name in lost:
                raise Denied("party.compromised", f"The keys of {name} are declared compromised.", party=name)

    def _check_asset(self, name: str, digest: bytes, use: str, terms: Terms) -> None:
        manifest = self._assets.manifest(digest)
        newest = self._assets.newest(name)
        if manifest.name != name or manifest.asset_class != _CLASSES[use]:
            raise Denied("contract.asset", f"The contract calls {name} something else than its manifest does.")
        if newest is None or newest["digest"] != digest.hex():
            raise Denied("asset.old", f"A newer version of {name} exists; name that one.")
        if manifest.terms.get("terms") != terms.document():
            raise Denied("contract.terms", f"The contract states other terms of {name} than its manifest.")

    # Revocation.

    def revoke(self, digest: bytes, reason: str) -> tuple[Contract, str]:
        """End a contract at once, alone. Returns it with the revocation that stands (the first one)."""
        with self._ledger.turn():
            contract = self._knowledge.contract(digest)
            if contract is None:
                raise Misuse("contract.unknown", "This broker knows no such contract; give it the contract first.")
            self._check_party(contract)
            own = self._parties.card.name
            envelope = revocation_envelope(digest, own, self._keys.status, now=self._clock(), reason=reason)
            read_revocation(envelope, contract)  # never store what others could not read
            return contract, self._put_revocation(contract, own, envelope)

    def accept_revocation(self, contract_envelope: Envelope, envelope: Envelope) -> None:
        """Another party's revocation. Only for contracts of ours: nobody else gets to write here."""
        contract = read_contract(contract_envelope)
        with self._ledger.turn():
            self._check_party(contract)
            if self._knowledge.contract_row(contract.digest) is None:
                check_signatures(contract, self._parties.pinned())
            party, _ = read_revocation(envelope, contract)
            self._put_revocation(contract, party, envelope)

    def _put_revocation(self, contract: Contract, party: str, envelope: Envelope) -> str:
        row = self._knowledge.contract_row(contract.digest)
        if row is not None and row["revocation"] is not None:
            return str(row["revocation"])
        text = envelope.to_bytes().decode()
        live = [i for i in self._knowledge.instances(contract=contract.digest.hex()) if not i.cut]
        changes = [contract_change(contract, row, revoked_by=party, revocation=text)]
        changes += [instance_change(replace(instance, cut=True)) for instance in live]
        self._commit("contract.revoked", contract, {"by": party, "leases_cut": len(live)}, changes)
        return text

    def status(self, digest: bytes) -> Status:
        """Our word that the contract is in force for us now, or none. Raises Unavailable where log or state
        can't be had: a revocation may be logged that the tables lack."""
        with self._ledger.turn():
            return self._status(digest)

    def _status(self, digest: bytes) -> Status:
        contract = self._knowledge.contract(digest)
        row = self._knowledge.contract_row(digest)
        if contract is None or row is None:
            return Status(None, Denied("contract.unknown", "This broker vouches for no such contract."), None)
        try:
            if not row["signed"] and not row["complete"]:
                raise Denied("contract.unsigned", "This broker's party has not signed the contract.")
            self._check_in_force(contract)
        except CloisterError as refusal:
            return Status(None, refusal, row["revocation"])
        statement = in_force_statement(contract, self._parties.card.name, self._keys.status, now=self._clock())
        return Status(statement, None, None)

    def _check_in_force(self, contract: Contract) -> None:
        """As ``check_contract``, but the other parties' signatures may not have reached us yet: whoever gives out a key
        checks them all itself."""
        self._check_keys(contract)
        state = self._knowledge.contract_state(contract)
        if state.revoked_by is not None:
            raise Denied("contract.revoked", f"The contract was revoked by {state.revoked_by}.", party=state.revoked_by)
        if contract.serial < state.newest_serial:
            raise Denied("contract.superseded", "A newer serial of this contract is in force.")
        if not contract.not_before <= self._clock() < contract.expires:
            raise Denied("contract.expired", "The contract is outside its time.")

    # Jobs and requests.

    def sign_job(self, envelope: Envelope, recipe: Any, output: str) -> Envelope:
        """A job of our party under a contract in force, checked by the rules that every broker applies to it."""
        contract = read_contract(envelope)
        self._check_party(contract)
        now = self._clock()
        state = self._knowledge.contract_state(contract)
        check_contract(contract, state, now=now)
        own = self._parties.card.name
        salt = random_bytes(16)
        signed = job_envelope(
            contract, own, Recipe.from_document(recipe), output, self._parties.signing, now=now, salt=salt
        )
        job = read_job(signed, contract)
        check_job(contract, job, state)
        reserve(contract, job, own, self._knowledge.budgets(), admitted=False)  # told now, decided at the release
        return signed

    def sign_request(self, method: str, path: str, body: str | None, audience: str) -> str:
        """The Authorization header of one HTTP request to the control plane."""
        card = self._parties.card
        return authorization_header(
            card.name, self._parties.signing, method=method, path=path, body=body, audience=audience, now=self._clock()
        )

    def _commit(self, kind: str, contract: Contract, details: dict[str, str | int], changes: list[Change]) -> None:
        more: dict[str, str | int] = {**details, "name": contract.name, "serial": contract.serial}
        self._ledger.commit(kind, target=contract.digest.hex(), details=more, changes=changes)
