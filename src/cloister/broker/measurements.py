"""Which measurements this owner serves beyond its contracts, and which no longer: releases, approvals, revocations.

Approving is loosening, so it takes every party of a contract; their approvals travel between brokers as revocations do,
and count only with a party's signature. Revoking is tightening: it takes this owner alone, and holds at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

from ..contracts import Card, Contract, check_contract, read_contract
from ..contracts.releases import (
    Approval,
    Release,
    approval_envelope,
    approved_releases,
    check_successor,
    read_approval,
    read_release,
)
from ..crypto import Envelope, fingerprint
from ..errors import CloisterError, Denied, Malformed, Misuse, Untrusted
from ..fields import Fields
from .core import Core
from .errands import ROUND, visit
from .knowledge import instance_change
from .policy_store import (
    MOST_APPROVALS,
    approvals_change,
    newest_approvals,
    revoked_change,
    revoked_measurements,
    stored_approvals,
)
from .rates import Rates, too_many
from .state import Change

__all__ = ["Measurements"]

_KEY: Final = "release-key"
_RELEASE: Final = "release"
_MOST_REVOKED: Final = 4096
_APPROVALS_RATE: Final = 1 / 60
_APPROVALS_BURST: Final = 64.0
"""Approvals a second of one party under one contract that are taken, and logged: in the long run, and at once."""


class Measurements:
    """What the owner says about measurements, and what the other parties said to it."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._learning = threading.Lock()
        self._rates = Rates(_APPROVALS_RATE, _APPROVALS_BURST, names=core.limits.rate_names)

    # Releases.

    def trust(self, key: bytes) -> str:
        """Pin the key (Ed25519, 32 bytes) that signs releases. Its fingerprint is returned, for people to compare.

        A new key begins a new line of releases, so only its owner's word can change it.
        """
        state = self._core.ledger.state
        with self._core.ledger.turn():
            row = state.row("facts", name=_KEY)
            if row is None or row["value"] != key.hex():
                changes = [_fact(_KEY, key.hex()), _fact(_RELEASE, "")]
                self._commit("release.trusted", {"fingerprint": fingerprint(key)}, changes)
        return fingerprint(key)

    def newest(self) -> Release | None:
        """The newest release that this owner's broker has seen."""
        row = self._core.ledger.state.row("facts", name=_RELEASE)
        return None if row is None or not row["value"] else self._read(row["value"])

    def _read(self, text: str) -> Release:
        row = self._core.ledger.state.row("facts", name=_KEY)
        if row is None:
            raise Misuse("release.untrusted", "No release key is pinned here; compare it and pin it first.")
        return read_release(Envelope.from_bytes(text.encode()), bytes.fromhex(row["value"]))

    def _learn_release(self, text: str) -> Release:
        """Within a turn: the release is this broker's newest from now on, or it is refused."""
        release, newest = self._read(text), self.newest()
        check_successor(release, newest)
        if newest is None or newest.digest != release.digest:
            details: dict[str, str | int] = {
                "number": release.number,
                "release": release.digest.hex(),
                "version": release.version,
                "vulnerable": len(release.vulnerable),
            }
            self._commit("release.known", details, [_fact(_RELEASE, text)])
        return release

    def learn_release(self, text: str) -> Release:
        """Take note of a release. Raises Untrusted for another key's, Denied ``release.rollback`` for an older one."""
        with self._core.ledger.turn():
            return self._learn_release(text)

    # Approvals.

    def approve(self, text: str, digests: Sequence[bytes]) -> dict[str, Any]:
        """This party's approval of a release under each of these contracts; all or none. Then the others are told.

        Raises what ``learn_release`` raises, and Denied for a contract that isn't in force here or a release that names
        something revoked.
        """
        core, own = self._core, self._core.parties.card.name
        with core.ledger.turn():
            contracts = [self._approvable(digest) for digest in digests]
            release = self._read(text)
            if revoked := set(revoked_measurements(core.ledger.state)) & {*release.measurements, *release.agents}:
                raise Denied("measurement.revoked", f"The release names {min(revoked)[:16]}…, which is revoked here.")
            self._learn_release(text)
            made = []
            for contract in contracts:
                known = self._approvals(contract)
                found = [a for a in known if (a.party, a.release) == (own, release.digest)]
                if not found:
                    key = core.parties.signing
                    envelope = approval_envelope(contract.digest, own, release, key, now=core.clock())
                    self._put(contract, known, read_approval(envelope, contract))
                made.append(contract)
        return {"contracts": self._tell(made, release), "release": release.digest.hex()}

    def _approvable(self, digest: bytes) -> Contract:
        contract = self._core.knowledge.contract(digest)
        if contract is None or self._core.parties.card.name not in contract.parties:
            raise Misuse("contract.unknown", "This broker knows no such contract of its party; give it the contract.")
        check_contract(contract, self._core.knowledge.contract_state(contract), now=self._core.clock())
        return contract

    def accept(self, contract_envelope: Envelope, envelope: Envelope) -> None:
        """Another party's approval. Only for contracts that are known here: nobody else gets to write here.

        What changes nothing writes nothing. Raises Denied ``approval.old`` for one that a newer one has replaced,
        Unavailable ``rate.approvals`` where its party brings too many at once.
        """
        contract = read_contract(contract_envelope)
        with self._core.ledger.turn():
            known_contract = self._core.knowledge.contract(contract.digest)
            if known_contract is None:
                raise Denied("contract.unknown", "This broker vouches for no such contract.")
            check_contract(known_contract, self._core.knowledge.contract_state(contract), now=self._core.clock())
            approval = read_approval(envelope, known_contract)
            known = self._approvals(known_contract)
            if approval.party != self._core.parties.card.name and not _holds(known, approval):
                self._put(known_contract, known, approval)

    def _approvals(self, contract: Contract) -> list[Approval]:
        return [read_approval(e, contract) for e in stored_approvals(self._core.ledger.state, contract.digest)]

    def _put(self, contract: Contract, known: list[Approval], approval: Approval) -> None:
        theirs = newest_approvals([*(a for a in known if a.party == approval.party), approval])
        if approval not in theirs:
            raise Denied("approval.old", "Newer approvals of that party are held here; this one is of no use any more.")
        if approval.party != self._core.parties.card.name:
            wait = self._rates.take(f"{contract.digest.hex()} {approval.party}")
            if wait:
                raise too_many("rate.approvals", wait)
        kept = [a for a in known if a.party != approval.party or a in theirs]
        details: dict[str, str | int] = {
            "contract": contract.digest.hex(),
            "measurement": ",".join(one[:16] for one in approval.measurements),
            "party": approval.party,
            "release": approval.release.hex(),
            "version": approval.version,
        }
        change = approvals_change(contract.digest, tuple(a.envelope for a in (*kept, approval)))
        self._commit("measurement.approved", details, [change], target=contract.digest.hex())

    def approvals(self, digest: bytes) -> tuple[Envelope, ...]:
        """What this broker holds for a contract: for its peers, who need it as much, and for its own decisions."""
        return stored_approvals(self._core.ledger.state, digest)

    def shown(self, digest: bytes) -> list[str]:
        """The same as text for a peer: this party's own first, each party's newest first, as many as a peer reads.

        So no other party's approvals, however many, keep a peer from getting ours.
        """
        contract, own = self._core.knowledge.contract(digest), self._core.parties.card.name
        held = [] if contract is None else self._approvals(contract)
        held.sort(key=lambda a: (a.party != own, -a.issued))
        texts, size = [], 0
        for text in (_text(a.envelope) for a in held):
            size += len(text)
            if size > self._core.limits.peer_answer // 2:
                break
            texts.append(text)
        return texts

    # Revocations.

    def revoke(self, measurement: str, reason: str) -> dict[str, Any]:
        """Serve this workload or agent no more, under whatever contract, for good. Raises Misuse where too many are.

        Leases under the contracts that name or approved it are cut: which of their runs were measured so is not looked
        up, because a run that wasn't can resume, and one that was must not go on.
        """
        state = self._core.ledger.state
        with self._core.ledger.turn():
            revoked = revoked_measurements(state)
            if measurement in revoked:
                return {"leases_cut": 0, "measurement": measurement, "reason": revoked[measurement]}
            if len(revoked) >= _MOST_REVOKED:
                raise Misuse(
                    "measurement.many", f"At most {_MOST_REVOKED} measurements are revoked; make new contracts."
                )
            contracts = {c.digest for c in self._contracts() if self._concerns(c, measurement)}
            live = [i for i in self._core.knowledge.instances(cut=0) if i.contract in contracts]
            changes = [revoked_change(revoked | {measurement: reason})]
            changes += [instance_change(replace(instance, cut=True)) for instance in live]
            details: dict[str, str | int] = {"leases_cut": len(live), "reason": reason}
            self._commit("measurement.revoked", details, changes, target=measurement)
        return {"leases_cut": len(live), "measurement": measurement, "reason": reason}

    def _concerns(self, contract: Contract, measurement: str) -> bool:
        """Whether the contract lets a measurement in. Also where that can't be told: what a party brought must not keep
        this owner from tightening, and a run that is cut in vain can resume."""
        if measurement in {*contract.platform.measurements, *contract.platform.agents}:
            return True
        try:
            return any(measurement in {*a.measurements, *a.agents} for a in self._approvals(contract))
        except CloisterError:
            return True

    # What there is, and the peers.

    def listing(self) -> dict[str, Any]:
        release = self.newest()
        row = self._core.ledger.state.row("facts", name=_KEY)
        return {
            "contracts": [self._standing(contract) for contract in self._contracts()],
            "release": None if release is None else release.envelope.to_bytes().decode(),
            "release_key": None if row is None else row["value"],
            "revoked": revoked_measurements(self._core.ledger.state),
        }

    def _standing(self, contract: Contract) -> dict[str, Any]:
        """``damaged``: the approvals under this contract can't be read, and nothing runs under it."""
        same = {"contract": contract.digest.hex(), "name": contract.name, "serial": contract.serial}
        try:
            approvals = self._approvals(contract)
        except (Malformed, Untrusted):
            return {**same, "damaged": True, "releases": []}
        by_release: dict[bytes, list[Approval]] = {}
        for approval in approvals:
            by_release.setdefault(approval.release, []).append(approval)
        complete = {a.release for a in approved_releases(contract, [a.envelope for a in approvals])}
        return {
            **same,
            "releases": [
                {
                    "agents": list(found[0].agents),
                    "complete": release in complete,
                    "measurements": list(found[0].measurements),
                    "missing": sorted(set(contract.parties) - {a.party for a in found}),
                    "release": release.hex(),
                    "version": found[0].version,
                }
                for release, found in sorted(by_release.items())
            ],
        }

    def _contracts(self) -> list[Contract]:
        """Those of this party that have not ended."""
        now, own = self._core.clock(), self._core.parties.card.name
        found = [
            self._core.knowledge.contract(bytes.fromhex(row["digest"]))
            for row in self._core.ledger.state.rows("contracts", revoked_by=None)
        ]
        return [c for c in found if c is not None and now < c.expires and own in c.parties]

    def _tell(self, contracts: Sequence[Contract], release: Release) -> list[dict[str, Any]]:
        """Who got our approval and who didn't: that one asks us as soon as it has approved itself."""
        own, cards = self._core.parties.card.name, self._core.parties.pinned()
        reached: dict[bytes, list[str]] = {contract.digest: [] for contract in contracts}
        errands: dict[str, list[Callable[[], object]]] = {}

        def post(card: Card, contract: Contract, body: dict[str, Any]) -> None:
            self._core.peers.post(card, "/cloister/v1/approvals", body)
            reached[contract.digest].append(card.name)

        for contract in contracts:
            mine = next(a for a in self._approvals(contract) if (a.party, a.release) == (own, release.digest))
            body = {"approval": _text(mine.envelope), "contract": _text(contract.envelope)}
            for name in sorted((set(contract.parties) - {own}) & cards.keys()):
                errands.setdefault(name, []).append(partial(post, cards[name], contract, body))
        visit(errands, seconds=ROUND * self._core.limits.peer_seconds)
        return [
            {
                "contract": contract.digest.hex(),
                "name": contract.name,
                "reached": sorted(reached[contract.digest]),
                "unreached": sorted(set(contract.parties) - {own, *reached[contract.digest]}),
            }
            for contract in contracts
        ]

    def learn(self) -> None:
        """Ask the peers for approvals that are missing under contracts for which this party approved something. What
        they show counts only with a party's signature; who does not answer is asked again in the next round."""
        with self._learning:
            cards, addresses = self._core.parties.pinned(), self._core.peers.addresses()
            errands: dict[str, list[Callable[[], object]]] = {}
            for contract in self._contracts():
                wanted = {name for one in self._standing(contract)["releases"] for name in one["missing"]}
                for name in sorted(wanted & cards.keys() & addresses.keys()):
                    errands.setdefault(name, []).append(partial(self._ask, cards[name], contract))
            visit(errands, seconds=ROUND * self._core.limits.peer_seconds)

    def _ask(self, card: Card, contract: Contract) -> None:
        answer = self._core.peers.get(card, f"/cloister/v1/approvals/{contract.digest.hex()}")
        most = MOST_APPROVALS * len(contract.parties)
        for envelope in Fields(answer, "peer's answer").items("approvals", _envelope, limit=most):
            try:
                self.accept(contract.envelope, envelope)
            except (Denied, Malformed, Untrusted):
                continue  # that one does not hold, and keeps none of the others away

    def _commit(
        self, kind: str, details: dict[str, str | int], changes: list[Change], *, target: str | None = None
    ) -> None:
        self._core.ledger.commit(kind, target=target or self._core.parties.card.name, details=details, changes=changes)


def _fact(name: str, value: str) -> Change:
    return Change("facts", {"name": name, "value": value})


def _holds(known: list[Approval], approval: Approval) -> bool:
    return any((a.party, a.consents_to) == (approval.party, approval.consents_to) for a in known)


def _envelope(value: Any) -> Envelope:
    if not isinstance(value, str):
        raise Malformed("approval.form", "An approval is not the text of an envelope.")
    return Envelope.from_bytes(value.encode())


def _text(envelope: Envelope) -> str:
    return envelope.to_bytes().decode()
