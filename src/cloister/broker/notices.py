"""Telling the peers, and asking them: revocations until everybody has them, the log's head in the background.

Nothing waits for it but the owner who revokes. What is left to tell needs no list of its own: every revocation that is
stored here is due to every party of its contract that has not acknowledged it, also after a crash or a restart.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial

from ..contracts import Card, Contract
from ..crypto import Envelope
from ..errors import CloisterError, Denied, Malformed, Misuse, Untrusted
from .agreements import Agreements
from .core import Core
from .errands import ROUND, visit

__all__ = ["Notices"]


class Notices:
    """A thread that shows our head to the peers when it has grown, and brings revocations to and from them."""

    def __init__(self, core: Core, agreements: Agreements, *, learn: Callable[[], None] = lambda: None) -> None:
        """``learn``: what else to ask the peers for in each round."""
        self._core = core
        self._learn_more = learn
        self._agreements = agreements
        self._asked: set[tuple[str, bytes]] = set()  # parties, and the contracts about which they answered
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="notices", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def revoked(self, contract: Contract, revocation: str) -> tuple[list[str], list[str]]:
        """(who took the revocation, who could not be told). The others are told when they can be reached again; until
        then they learn it when our statement fails to come."""
        reached: list[str] = []
        cards = self._core.parties.pinned()

        def tell(name: str) -> None:
            self._tell(cards[name], contract, revocation)
            reached.append(name)

        others = self._others(contract)
        self._visit({name: [partial(tell, name)] for name in others if name in cards})
        # The answer says who is missing, and the owner decides what to do.
        return sorted(reached), sorted(set(others) - set(reached))

    def resend(self) -> None:
        """Tell every party what it has not acknowledged yet, best effort. Of ended contracts nobody needs to know."""
        told = {(row["party"], row["contract"]) for row in self._core.ledger.state.rows("told")}
        errands = defaultdict(list)
        for contract in self._contracts(revoked=True):
            row = self._core.knowledge.contract_row(contract.digest)
            for card in self._reachable(contract):
                if row is not None and (card.name, contract.digest.hex()) not in told:
                    errands[card.name].append(partial(self._tell, card, contract, row["revocation"]))
        self._visit(errands)  # what a party refuses is due again: perhaps it has not pinned another one yet

    def learn(self) -> None:
        """Ask every party, once for each contract, for a revocation that we may have missed, or forgotten with an older
        copy of our state. What a peer shows counts only with the signature of a party of that contract."""
        errands = defaultdict(list)
        for contract in self._contracts(revoked=False):
            for card in self._reachable(contract):
                if (card.name, contract.digest) not in self._asked:
                    errands[card.name].append(partial(self._ask_once, card, contract))
        self._visit(errands)

    def _visit(self, errands: Mapping[str, Sequence[Callable[[], object]]]) -> None:
        visit(errands, seconds=ROUND * self._core.limits.peer_seconds, stop=self._stop)

    def _ask_once(self, card: Card, contract: Contract) -> None:
        with suppress(Denied, Malformed, Misuse, Untrusted):  # what it said does not hold: that counts as nothing
            self._ask(card, contract)
        self._asked.add((card.name, contract.digest))

    def _tell(self, card: Card, contract: Contract, revocation: str) -> None:
        body = {"contract": contract.envelope.to_bytes().decode(), "revocation": revocation}
        self._core.peers.post(card, "/cloister/v1/revocations", body)
        row = {"contract": contract.digest.hex(), "party": card.name, "at": self._core.clock()}
        self._core.ledger.state.put_hint("told", row)

    def _ask(self, card: Card, contract: Contract) -> None:
        text = self._core.peers.revocation(card, contract.digest)
        if text is not None:
            self._agreements.accept_revocation(contract.envelope, Envelope.from_bytes(text.encode()))

    def _contracts(self, *, revoked: bool) -> list[Contract]:
        """Those that have not ended, as far as they are revoked here or not."""
        now = self._core.clock()
        found = [
            self._core.knowledge.contract(bytes.fromhex(row["digest"]))
            for row in self._core.ledger.state.rows("contracts")
            if (row["revocation"] is not None) is revoked
        ]
        return [contract for contract in found if contract is not None and now < contract.expires]

    def _others(self, contract: Contract) -> list[str]:
        return sorted(set(contract.parties) - {self._core.parties.card.name})

    def _reachable(self, contract: Contract) -> list[Card]:
        """The contract's other parties that are pinned here and have an address."""
        cards, addresses = self._core.parties.pinned(), self._core.peers.addresses()
        return [cards[name] for name in self._others(contract) if name in cards and name in addresses]

    def _run(self) -> None:
        shown, last = -1, 0.0
        while not self._stop.wait(self._core.limits.heads_interval):
            size = self._core.ledger.log.size
            if size == shown and time.monotonic() < last + self._core.limits.notices_interval:
                continue
            shown, last = size, time.monotonic()
            try:
                self._core.herald.show_all()
                self.learn()
                self.resend()
                self._learn_more()
            except CloisterError:
                continue  # our own state can't be read: every request says so, and the next round tries again
