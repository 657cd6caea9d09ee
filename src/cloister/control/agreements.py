"""Contracts as the control plane knows them: proposals, signatures that come together, revocations, and their state.

What it says of a state is a service to the reader. Brokers decide by their own pins and their own memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from ..contracts import CONTRACT_TYPE, Contract, ContractState, check_contract, read_contract, read_revocation
from ..crypto import Envelope
from ..errors import Denied, Untrusted
from .database import Database
from .directory import Directory
from .errors import NotFound
from .limits import Limits
from .tables import contract_assets, contract_parties, contracts, jobs, revocations

__all__ = ["Agreements", "Held", "revoked_by"]

# Runs that certainly count against the budget. A run that failed may or may not have been admitted: brokers know.
_COUNTED = ("queued", "running", "succeeded")


@dataclass(frozen=True)
class Held:
    """A stored contract, its revocations and what a broker would say of it now."""

    contract: Contract
    revocations: tuple[str, ...]
    state: ContractState

    def refusal(self, *, now: int) -> Denied | Untrusted | None:
        """Why no broker would serve this contract; None if it is in force as far as known here."""
        try:
            check_contract(self.contract, self.state, now=now)
        except (Denied, Untrusted) as error:
            return error
        return None

    def signers(self) -> list[str]:
        return [name for name in sorted(self.contract.parties) if has_signed(self.contract, name)]

    def document(self, *, now: int) -> dict[str, Any]:
        refusal = self.refusal(now=now)
        signed = self.signers()
        return {
            "assets": {asset.name: asset.digest.hex() for asset in self.contract.assets},
            "contract": self.contract.envelope.to_bytes().decode(),
            "digest": self.contract.digest.hex(),
            "expires": self.contract.expires,
            "missing": sorted(set(self.contract.parties) - set(signed)),
            "name": self.contract.name,
            "outputs": [output.name for output in self.contract.outputs],
            "parties": sorted(self.contract.parties),
            "reason": None if refusal is None else refusal.message,
            "revocations": list(self.revocations),
            "serial": self.contract.serial,
            "signed": signed,
            "state": "contract.in-force" if refusal is None else refusal.code,
        }


def revoked_by(party: str) -> Denied:
    """The refusal that brokers give, too."""
    return Denied("contract.revoked", f"The contract was revoked by {party}.", party=party)


def has_signed(contract: Contract, party: str) -> bool:
    """Whether ``party``'s signature, by the key that the document carries, is there. For showing, not for trusting."""
    try:
        contract.envelope.verify(CONTRACT_TYPE, [contract.parties[party].signing])
    except Untrusted:
        return False
    return True


def merge_signatures(known: Envelope, offered: Envelope, keys: list[bytes]) -> Envelope:
    """``known`` with the signatures of ``offered`` that hold by one of ``keys``; the rest is left behind."""
    merged = Envelope(known.payload_type, known.payload)
    for key in keys:
        for keyid, signature in (*known.signatures, *offered.signatures):
            single = Envelope(known.payload_type, known.payload, ((key.hex(), signature),))
            if keyid == key.hex() and _holds(single, key):
                merged = merged.with_signature(keyid, signature)
                break
    return merged


def _holds(envelope: Envelope, key: bytes) -> bool:
    try:
        envelope.verify(CONTRACT_TYPE, [key])
    except Untrusted:
        return False
    return True


class Agreements:
    """Stores what is genuine, shows it to the parties alone."""

    def __init__(self, database: Database, directory: Directory, limits: Limits) -> None:
        self._database = database
        self._directory = directory
        self._limits = limits

    def offer(self, envelope: Envelope, party: str, *, now: int) -> Held:
        """Store a proposal or add signatures. Raises Denied unless ``party`` is a party of it."""
        contract = read_contract(envelope)
        self._check_offer(contract, party)
        keys = [k.signing for k in contract.parties.values()]
        digest = contract.digest.hex()
        with self._database.write() as connection:
            row = connection.execute(select(contracts.c.envelope).where(contracts.c.digest == digest)).scalar()
            known = _envelope(row) if row else Envelope(envelope.payload_type, envelope.payload)
            merged = merge_signatures(known, envelope, keys)
            if row is None:
                self._check_room(connection, party)
                self._insert(connection, contract, party, now)
            values = {"envelope": merged.to_bytes().decode(), "signed": int(len(merged.signatures) == len(keys))}
            connection.execute(update(contracts).where(contracts.c.digest == digest).values(**values))
            signers = {keyid for keyid, _ in merged.signatures}
            signed = [name for name, k in contract.parties.items() if k.signing.hex() in signers]
            mine = contract_parties.c.contract == digest
            connection.execute(
                update(contract_parties).where(mine, contract_parties.c.party.in_(signed)).values(signed=1)
            )
        return self.get(digest, party)

    def _check_offer(self, contract: Contract, party: str) -> None:
        if party not in contract.parties:
            raise Denied("contract.party", f"The contract does not name {party} as a party.")
        cards = self._directory.cards()
        for name, keys in contract.parties.items():
            if name not in cards:
                raise Denied("contract.unpinned", f"{name} is not in this directory; ask them to publish their card.")
            if cards[name].keys != keys:
                raise Untrusted("contract.keys", f"The contract carries other keys of {name} than the directory.")

    def _check_room(self, connection: Connection, party: str) -> None:
        mine = select(func.count()).select_from(contracts).where(contracts.c.proposer == party, contracts.c.signed == 0)
        if connection.execute(mine).scalar_one() >= self._limits.unsigned_contracts:
            raise Denied("contract.proposals", "Too many of your proposals are unsigned; sign some first.")

    @staticmethod
    def _insert(connection: Connection, contract: Contract, party: str, now: int) -> None:
        digest = contract.digest.hex()
        row = {"digest": digest, "name": contract.name, "serial": contract.serial, "envelope": "", "signed": 0}
        connection.execute(insert(contracts).values(**row, proposer=party, stored=now))
        connection.execute(
            insert(contract_parties), [{"contract": digest, "party": p, "signed": 0} for p in contract.parties]
        )
        assets = [{"contract": digest, "asset": asset.digest.hex()} for asset in contract.assets]
        if assets:
            connection.execute(insert(contract_assets), assets)

    def digests(self, party: str) -> list[str]:
        """Contracts that ``party`` is a party to, newest first."""
        joined = contracts.join(contract_parties, contracts.c.digest == contract_parties.c.contract)
        query = select(contracts.c.digest).select_from(joined).where(contract_parties.c.party == party)
        with self._database.read() as connection:
            return list(
                connection.execute(query.order_by(contracts.c.stored.desc(), contracts.c.serial.desc())).scalars()
            )

    def get(self, reference: str, party: str | None) -> Held:
        """By digest or name (the highest serial). ``party`` None asks for the node or the service itself."""
        cards = self._directory.cards()
        with self._database.read() as connection:
            query = select(contracts).where((contracts.c.digest == reference) | (contracts.c.name == reference))
            if party is not None:
                mine = select(contract_parties.c.contract).where(contract_parties.c.party == party)
                query = query.where(contracts.c.digest.in_(mine))
            row = connection.execute(query.order_by(contracts.c.serial.desc(), contracts.c.stored.desc())).first()
            if row is None:
                raise NotFound("contract.unknown", "There is no such contract here, or you are not a party to it.")
            contract = read_contract(_envelope(row.envelope))
            ended = connection.execute(
                select(revocations.c.party, revocations.c.envelope)
                .where(revocations.c.contract == row.digest)
                .order_by(revocations.c.stored)
            ).all()
            newest = self._newest_serial(connection, contract)
            counted = select(jobs.c.digest).where(jobs.c.contract == row.digest, jobs.c.state.in_(_COUNTED))
            runs = frozenset(bytes.fromhex(d) for d in connection.execute(counted).scalars())
        state = ContractState(cards, frozenset(), ended[0].party if ended else None, newest, runs)
        return Held(contract, tuple(e.envelope for e in ended), state)

    @staticmethod
    def _newest_serial(connection: Connection, contract: Contract) -> int:
        """Names are not global: a newer serial supersedes only where at least one party signed both."""
        sharing = select(contract_parties.c.contract).where(contract_parties.c.party.in_(list(contract.parties)))
        query = select(func.max(contracts.c.serial)).where(
            contracts.c.name == contract.name, contracts.c.signed == 1, contracts.c.digest.in_(sharing)
        )
        return connection.execute(query).scalar() or 0

    def revoke(self, digest: str, envelope: Envelope, party: str, *, now: int) -> None:
        """Store a genuine revocation; queued runs of the contract end. Whoever runs one stops by its leases."""
        held = self.get(digest, party)
        revoker, reason = read_revocation(envelope, held.contract)
        digest = held.contract.digest.hex()
        key = (revocations.c.contract == digest) & (revocations.c.party == revoker)
        with self._database.write() as connection:
            if connection.execute(select(revocations.c.stored).where(key)).first() is None:
                row = {"contract": digest, "party": revoker, "reason": reason, "stored": now}
                connection.execute(insert(revocations).values(**row, envelope=envelope.to_bytes().decode()))
            waiting = update(jobs).where(jobs.c.contract == digest, jobs.c.state == "queued")
            connection.execute(waiting.values(state="revoked", error=revoked_by(revoker).to_wire(), finished=now))


def _envelope(text: str) -> Envelope:
    return Envelope.from_bytes(text.encode())
