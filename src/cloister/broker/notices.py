"""Telling the peers: revocations at once, the log's head in the background. Best effort; nothing waits for it."""

from __future__ import annotations

import threading

from ..contracts import Contract
from ..errors import CloisterError
from .core import Core

__all__ = ["Notices"]


class Notices:
    """A thread that shows our head to the peers when it has grown. A burst of changes makes one notice."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heads", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def revoked(self, contract: Contract, revocation: str) -> tuple[list[str], list[str]]:
        """(who took the revocation, who could not be told). The others learn it when our statement fails to come."""
        body = {"contract": contract.envelope.to_bytes().decode(), "revocation": revocation}
        reached: list[str] = []
        unreached: list[str] = []
        cards = self._core.parties.pinned()
        for name in sorted(set(contract.parties) - {self._core.parties.card.name}):
            try:
                self._core.peers.post(cards[name], "/cloister/v1/revocations", body)
            except (CloisterError, KeyError):
                unreached.append(name)  # the answer says so, and the owner decides what to do
            else:
                reached.append(name)
        return reached, unreached

    def _run(self) -> None:
        shown = -1
        while not self._stop.wait(self._core.limits.heads_interval):
            size = self._core.ledger.log.size
            if size != shown:
                self._core.herald.show_all()
                shown = size
