"""What else can be done to a vault's roots: destroy the secret under all checkpoints, and make recovery shares."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

from ..crypto import random_bytes
from ..errors import Denied, Misuse
from ..keys import CHECKPOINT, KeyVault
from .decision import Instance
from .knowledge import Knowledge, instance_change
from .ledger import Ledger
from .rotation import fact, fact_change
from .state import Change

__all__ = ["RootKeys", "Splitter", "check_shares"]

Splitter = Callable[[int, int], list[str]]  # threshold and number of shares of this vault's root


def check_shares(ledger: Ledger) -> None:
    """Raises Denied("checkpoints.shredding") while checkpoints are announced to be destroyed and are not yet: what a
    run would write with a share of the old secret would be lost in the middle of it. Call it within a turn."""
    if fact(ledger, "checkpoints") is not None:
        raise Denied(
            "checkpoints.shredding", "This party is destroying its checkpoints; try again when its broker has finished."
        )


class RootKeys:
    """``split`` is the vault's own (``keys.recovery``); this logs it, and remembers that shares exist."""

    def __init__(
        self, vault: KeyVault, knowledge: Knowledge, ledger: Ledger, clock: Callable[[], int], split: Splitter
    ) -> None:
        self._vault = vault
        self._knowledge = knowledge
        self._ledger = ledger
        self._clock = clock
        self._split = split
        self._finishing = threading.Lock()  # the owner's command and the keeper may both come to finish

    def shred_checkpoints(self, reason: str) -> int:
        """Make every checkpoint unreadable that this party's share went into; the number of leases that were cut.

        A checkpoint's key is derived from every owner's share, and the shares from one secret in each vault: without
        it, none of them can be made again. Runs that are under way end: what they hold could go on writing.
        """
        with self._ledger.turn():
            live = self._live()
            changes = [instance_change(replace(instance, cut=True)) for instance in live]
            changes.append(fact_change("checkpoints", {"reason": reason}))
            details: dict[str, str | int] = {"leases_cut": len(live), "reason": reason, "stage": "begun"}
            self._ledger.commit("checkpoints.shredded", target=self._vault.owner, details=details, changes=changes)
        self.resume()
        return len(live)

    def resume(self) -> None:
        """Finish a destruction that is announced; also the one that a crash interrupted, where twice does no harm."""
        with self._finishing:
            pending = fact(self._ledger, "checkpoints")
            if pending is None:
                return
            self._vault.put_secret(CHECKPOINT, random_bytes(32), replace=True)
            with self._ledger.turn():
                live = self._live()  # runs that began since it was announced
                details: dict[str, str | int] = {"leases_cut": len(live), "reason": pending["reason"], "stage": "done"}
                changes = [instance_change(replace(instance, cut=True)) for instance in live]
                changes += [fact_change("checkpoints", None), self._revision()]
                self._ledger.commit("checkpoints.shredded", target=self._vault.owner, details=details, changes=changes)

    def split(self, threshold: int, shares: int) -> list[str]:
        """Recovery shares of the vault's root, ``threshold`` of which restore it. Logged before they are made.

        Whoever has them and a backup of the vault file has the keys: they go to people, never into a file or a log.
        """
        if not 2 <= threshold <= shares <= 16:
            raise Misuse("recovery.shares", "Of 2 to 16 shares, at least 2 are needed, and no more than there are.")
        with self._ledger.turn():
            details: dict[str, str | int] = {"shares": shares, "threshold": threshold}
            changes = [fact_change("recovery_split", self._clock())]
            self._ledger.commit("vault.split", target=self._vault.owner, details=details, changes=changes)
        made = self._split(threshold, shares)
        with self._ledger.turn():
            done: dict[str, str | int] = {**details, "stage": "made"}
            self._ledger.commit("vault.split", target=self._vault.owner, details=done, changes=[self._revision()])
        return made

    def _live(self) -> list[Instance]:
        now = self._clock()
        return [i for i in self._knowledge.instances(cut=0) if now < i.lease.expires]

    def _revision(self) -> Change:
        return Change("facts", {"name": "vault_revision", "value": str(self._vault.revision)})
