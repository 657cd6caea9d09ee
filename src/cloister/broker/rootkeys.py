"""What else can be done to a vault's roots: destroy the secret under all checkpoints, make recovery shares, replace the
master key, and destroy what a device holds and the vault's file does not name."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from ..crypto import frame, random_bytes, sha256
from ..errors import CloisterError, Denied, Misuse, Unavailable, Untrusted
from ..keys import CHECKPOINT, Vault, rekey, split_root
from ..keys.renewal import check_credential
from .decision import Instance
from .knowledge import Knowledge, instance_change
from .ledger import Details, Ledger
from .retention import Retention, check_unheld
from .rotation import fact, fact_change
from .state import Change

__all__ = ["RootKeys", "check_shares", "remembered_revision"]


def check_shares(ledger: Ledger) -> None:
    """Raises Denied("checkpoints.shredding") while checkpoints are announced to be destroyed and are not yet: what a
    run would write with a share of the old secret would be lost in the middle of it. Call it within a turn."""
    if fact(ledger, "checkpoints") is not None:
        raise Denied(
            "checkpoints.shredding", "This party is destroying its checkpoints; try again when its broker has finished."
        )


def remembered_revision(ledger: Ledger, vault: Vault) -> int:
    """The vault's revision that the state remembers, after what a crash left was finished: that may be newer than what
    the vault was opened with, and an older file holds KEKs that were destroyed. Raises Untrusted("vault.rollback")."""
    known = int(fact(ledger, "vault_revision"))
    if vault.revision < known:
        raise Untrusted("vault.rollback", "The vault file is an older copy than the one last used; restore the newest.")
    return known


class RootKeys:
    """What is done to the vault here is the vault's own (``keys``); this decides whether, and logs it first."""

    def __init__(
        self, vault: Vault, retention: Retention, knowledge: Knowledge, ledger: Ledger, clock: Callable[[], int]
    ) -> None:
        self._vault = vault
        self._retention = retention
        self._knowledge = knowledge
        self._ledger = ledger
        self._clock = clock
        self._rekeying = threading.Lock()
        self._unnamed = 0  # orphans, as far as was looked

    # Checkpoints.

    def shred_checkpoints(self, reason: str) -> int:
        """Make every checkpoint unreadable that this party's share went into; the number of leases that were cut.

        A checkpoint's key is derived from every owner's share, and the shares from one secret in each vault: without
        it, none of them can be made again. So it is all or none: Denied("asset.held") where a run used what is under a
        legal hold; that refusal is logged. Runs that are under way end: what they hold could go on writing.
        """
        with self._ledger.turn():
            try:
                self._check_evidence()
            except Denied as refusal:
                self._refuse("checkpoints.shredded", refusal)
            live = self._live()
            changes = [instance_change(replace(instance, cut=True)) for instance in live]
            changes.append(fact_change("checkpoints", {"reason": reason}))
            details: Details = {"leases_cut": len(live), "reason": reason, "stage": "begun"}
            self._commit("checkpoints.shredded", details, changes)
            self._destroy_checkpoints(reason)
        return len(live)

    def resume(self) -> None:
        """Finish a destruction that is announced; also the one that a crash interrupted, where twice does no harm. A
        hold that came meanwhile stops it until it is lifted."""
        with self._ledger.turn():
            pending = fact(self._ledger, "checkpoints")
            if pending is not None:
                self._check_evidence()
                self._destroy_checkpoints(pending["reason"])

    def _check_evidence(self) -> None:
        """A hold keeps what was made of an asset, too. Within a turn, so that none is put on it meanwhile."""
        held = self._retention.held()
        if held:
            check_unheld(self._knowledge.used_names(set(held)), held)

    def _destroy_checkpoints(self, reason: str) -> None:
        self._vault.put_secret(CHECKPOINT, random_bytes(32), replace=True)
        live = self._live()  # runs that began since it was announced
        details: Details = {"leases_cut": len(live), "reason": reason, "stage": "done"}
        changes = [instance_change(replace(instance, cut=True)) for instance in live]
        self._commit("checkpoints.shredded", details, [*changes, fact_change("checkpoints", None), self._revision()])

    # Recovery shares and the master key.

    def split(self, threshold: int, shares: int) -> list[str]:
        """Recovery shares of the vault's root, ``threshold`` of which restore it. Logged before they are made.

        Whoever has them and a backup of the vault file has the keys: they go to people, never into a file or a log.
        """
        if not 2 <= threshold <= shares <= 16:
            raise Misuse("recovery.shares", "Of 2 to 16 shares, at least 2 are needed, and no more than there are.")
        details: Details = {"shares": shares, "threshold": threshold}
        with self._ledger.turn():
            self._commit("vault.split", details, [fact_change("recovery_split", self._clock())])
        made = split_root(self._vault, threshold, shares)
        with self._ledger.turn():
            self._commit("vault.split", {**details, "stage": "made"}, [self._revision()])
        return made

    def rekey(self, credential: bytes) -> tuple[str, ...]:
        """A new master key for the vault; returns what is out of its reach, in sentences. Logged before it is made.

        ``credential``: the present passphrase of a vault in a file. Another one is refused before anything is
        announced, Denied("vault.passphrase"), and that is logged. Recovery shares open the file no more.
        """
        with self._rekeying:
            try:
                check_credential(self._vault, credential)
            except Denied as refusal:
                with self._ledger.turn():
                    self._refuse("vault.rekeyed", refusal)
            with self._ledger.turn():
                self._commit("vault.rekeyed", {"stage": "begun"}, [fact_change("rekeying", self._clock())])
            remains = rekey(self._vault, credential)
            with self._ledger.turn():
                details: Details = {"remains": " ".join(remains)[:4000], "stage": "done"}
                self._commit("vault.rekeyed", details, [fact_change("rekeying", None), self._revision()])
        return remains

    def check_rekeyed(self) -> None:
        """Raises Unavailable("rekey.unfinished") where a new master key was begun and a crash or an error came between:
        nothing but another one can tell, because the file is whole with the old key as with the new one."""
        began = fact(self._ledger, "rekeying")
        if began is not None and not self._rekeying.locked():
            raise Unavailable(
                "rekey.unfinished",
                f"a new master key was begun on {time.strftime('%Y-%m-%d', time.gmtime(began))} and not seen to its "
                "end, so the vault file may have the old one or the new one; give 'cloister key rekey' again.",
            )

    # What a device holds and the file does not name.

    def count_orphans(self) -> None:
        """At start. None is destroyed then: this home may be an older or restored copy, and what it lacks another's."""
        self._unnamed = len(self._vault.orphans())

    def notes(self) -> list[str]:
        if not self._unnamed:
            return []
        return [
            f"The device holds {self._unnamed} keys of this vault that its file does not name: a crash left them, or "
            "another copy of the file uses them, so they are kept; 'cloister key sweep' destroys them."
        ]

    def orphans(self) -> dict[str, Any]:
        """How many there are, ``which`` (a digest that ``sweep`` wants back), and whether a peer confirmed at start
        that this state is the newest: to an older copy of a home, keys that are in use look like orphans."""
        found = self._vault.orphans()
        return {"orphans": len(found), "which": _which(found), "witnessed": self._knowledge.witnessed}

    def sweep(self, which: str) -> dict[str, Any]:
        """Destroy the ``orphans`` that the owner was shown. Logged before it is done.

        Raises Misuse("sweep.changed") where it would be others, Untrusted("vault.rollback") where the file is older
        than what this broker remembers; that refusal is logged.
        """
        found = self._vault.orphans()
        if _which(found) != which:
            raise Misuse("sweep.changed", "The device holds other keys than were counted; give the command again.")
        if not found:
            self._unnamed = 0
            return {"destroyed": 0, "remains": []}
        details: Details = {"keys": len(found)}
        with self._ledger.turn():
            try:
                known = remembered_revision(self._ledger, self._vault)
            except Untrusted as refusal:
                self._refuse("vault.swept", refusal)
            self._commit("vault.swept", {**details, "stage": "begun"}, [])
        remains = sorted(set(self._vault.sweep_orphans(known_revision=known, among=found)))
        self._unnamed = 0
        with self._ledger.turn():
            said = {"remains": " ".join(remains)[:4000] or "nothing"}
            self._commit("vault.swept", {**details, **said, "stage": "done"}, [self._revision()])
        return {"destroyed": len(found), "remains": remains}

    def _live(self) -> list[Instance]:
        now = self._clock()
        return [i for i in self._knowledge.instances(cut=0) if now < i.lease.expires]

    def _revision(self) -> Change:
        return Change("facts", {"name": "vault_revision", "value": str(self._vault.revision)})

    def _commit(self, kind: str, details: Details, changes: list[Change]) -> None:
        self._ledger.commit(kind, target=self._vault.owner, details=details, changes=changes)

    def _refuse(self, kind: str, refusal: CloisterError) -> NoReturn:
        """A try that was refused stands in the log, too. Call it within a turn."""
        details: Details = {"code": refusal.code, "reason": refusal.message}
        self._ledger.append(kind, target=self._vault.owner, details=details, outcome="failure")
        raise refusal


def _which(orphans: Sequence[bytes]) -> str:
    return sha256(frame("cloister/orphans/v1", *sorted(orphans))).hex()
