"""What else can be done to a vault's roots: destroy the secret under all checkpoints, make recovery shares, replace the
master key, and destroy what a device holds and the vault's file does not name."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from ..crypto import random_bytes
from ..errors import CloisterError, Denied, Misuse, Unavailable, Untrusted
from ..keys import CHECKPOINT, Vault, rekey, split_root
from ..keys.orphans import Swept
from ..keys.renewal import check_credential
from .decision import Instance
from .knowledge import Knowledge, instance_change
from .ledger import Details, Ledger
from .retention import Retention, check_unheld
from .rotation import fact, fact_change
from .state import Change
from .sweeping import Doomed, decide_sweep
from .wrapped import CARRIERS

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
        self._shredding = threading.Lock()  # of checkpoints: one thread at a time, and not within a turn
        self._changing = threading.Lock()  # splitting or rekeying: a new master key would make new shares useless
        self._rekeying = False
        self._unnamed = 0  # orphans, as far as was looked
        self._late: list[str] = []  # holds that came too late for checkpoints

    # Checkpoints.

    def shred_checkpoints(self, reason: str) -> int:
        """Make every checkpoint unreadable that this party's share went into; the number of leases that were cut.

        A checkpoint's key is derived from every owner's share, and the shares from one secret in each vault: without
        it, none of them can be made again. So it is all or none: Denied("asset.held") where a run used what is under a
        legal hold; that refusal is logged. Runs that are under way end: what they hold could go on writing.
        """
        # Replicas change a vault one alone: what can't be carried out now must not be announced (``Vault.guard``).
        with self._vault.guard(), self._shredding:
            with self._ledger.turn():
                pending = fact(self._ledger, "checkpoints")
                if pending is not None and self._replaced(pending):
                    return self._done(pending)  # nothing but the word of it was missing
                pending, cut = self._announce(reason)
            self._replace(pending)
        return cut

    def resume(self) -> None:
        """Finish a destruction that is announced. A hold that came before the secret was replaced stops it until it is
        lifted; one that came after that is told that it came too late."""
        if not self._shredding.acquire(blocking=False):
            return  # the thread that has it finishes, or the next round does
        try:
            with self._ledger.turn():
                pending = fact(self._ledger, "checkpoints")
                if pending is None:
                    return
                if self._replaced(pending):
                    self._done(pending)
                    return
                self._check_evidence()
            self._replace(pending)
        finally:
            self._shredding.release()

    def _announce(self, reason: str) -> tuple[dict[str, Any], int]:
        """Within a turn, so that no hold is put on anything meanwhile. What is stored names the secret that is to go: a
        newer one in the vault says that it is gone."""
        try:
            self._check_evidence()
        except Denied as refusal:
            self._refuse("checkpoints.shredded", refusal)
        live = self._live()
        pending = {"reason": reason, "secret": self._secret()}
        changes = [instance_change(replace(instance, cut=True)) for instance in live]
        details: Details = {"leases_cut": len(live), "reason": reason, "stage": "begun"}
        self._commit("checkpoints.shredded", details, [*changes, fact_change("checkpoints", pending)])
        return pending, len(live)

    def _replace(self, pending: dict[str, Any]) -> None:
        """Outside the turn: the vault may be busy with a slow device, and nobody's lease waits for it. Until it is done
        no share is given out (``check_shares``). A hold that comes now was put on after this was announced."""
        self._vault.put_secret(CHECKPOINT, random_bytes(32), replace=True)
        with self._ledger.turn():
            self._done(pending)

    def _done(self, pending: dict[str, Any]) -> int:
        """Within a turn. The number of leases that were cut: of runs that began since it was announced."""
        live, held = self._live(), self._evidence()
        details: dict[str, str | int] = {"leases_cut": len(live), "reason": pending["reason"], "stage": "done"}
        if held:
            details["held_later"] = ",".join(held)[:2000]
            self._late.append(
                f"The hold on {', '.join(held)[:2000]} came after the destruction of all checkpoints had begun, so "
                "those of runs that used it are destroyed as well."
            )
        changes = [instance_change(replace(instance, cut=True)) for instance in live]
        self._commit("checkpoints.shredded", details, [*changes, fact_change("checkpoints", None), self._revision()])
        return len(live)

    def _secret(self) -> int:
        """Counts how often the secret under all checkpoints was replaced."""
        infos = self._vault.keys()
        return next(info.epoch for info in infos if (info.name, info.kind) == (CHECKPOINT, "secret"))

    def _replaced(self, pending: dict[str, Any]) -> bool:
        known = pending.get("secret")  # an older version didn't store it: replacing the secret twice does no harm
        return known is not None and self._secret() > int(known)

    def _check_evidence(self) -> None:
        """A hold keeps what was made of an asset, too. Within a turn, so that none is put on it meanwhile."""
        check_unheld(self._evidence(), self._retention.held())

    def _evidence(self) -> list[str]:
        """What is under a hold and was used by runs."""
        held = self._retention.held()
        return sorted(self._knowledge.used_names(set(held))) if held else []

    # Recovery shares and the master key.

    def split(self, threshold: int, shares: int) -> list[str]:
        """Recovery shares of the vault's root, ``threshold`` of which restore it. Logged before they are made.

        Whoever has them and a backup of the vault file has the keys: they go to people, never into a file or a log.
        """
        if not 2 <= threshold <= shares <= 16:
            raise Misuse("recovery.shares", "Of 2 to 16 shares, at least 2 are needed, and no more than there are.")
        details: Details = {"shares": shares, "threshold": threshold}
        with self._vault.guard(), self._changing:
            with self._ledger.turn():
                self._commit("vault.split", details, [fact_change("recovery_split", self._clock())])
            made = split_root(self._vault, threshold, shares)
            with self._ledger.turn():
                self._commit("vault.split", {**details, "stage": "made"}, [self._revision()])
        return made

    @property
    def was_split(self) -> bool:
        """Whether recovery shares were ever made, as far as this broker knows."""
        return fact(self._ledger, "recovery_split") is not None

    def rekey(self, credential: bytes) -> tuple[str, ...]:
        """A new master key for the vault; returns what is out of its reach, in sentences. Logged before it is made.

        ``credential``: the present passphrase of a vault in a file. Another one is refused before anything is
        announced, Denied("vault.passphrase"), and that is logged. Recovery shares open the file no more, and backups
        of before are none any more.
        """
        with self._vault.guard(), self._changing:
            self._rekeying = True
            try:
                return self._rekey(credential)
            finally:
                self._rekeying = False

    def _rekey(self, credential: bytes) -> tuple[str, ...]:
        try:
            check_credential(self._vault, credential)
        except Denied as refusal:
            with self._ledger.turn():
                self._refuse("vault.rekeyed", refusal)
        with self._ledger.turn():
            self._commit("vault.rekeyed", {"stage": "begun"}, [fact_change("rekeying", self._clock())])
        remains = rekey(self._vault, credential, split=self.was_split)
        with self._ledger.turn():
            details: Details = {"remains": " ".join(remains)[:4000] or "nothing", "stage": "done"}
            self._commit("vault.rekeyed", details, [fact_change("rekeying", None), self._revision()])
        return remains

    def check_rekeyed(self) -> None:
        """Raises Unavailable("rekey.unfinished") where a new master key was begun and a crash or an error came between:
        nothing but another one can tell, because the file is whole with the old key as with the new one."""
        began = fact(self._ledger, "rekeying")
        if began is not None and not self._rekeying:
            raise Unavailable(
                "rekey.unfinished",
                f"a new master key was begun on {time.strftime('%Y-%m-%d', time.gmtime(began))} and not seen to its "
                "end, so the vault file may have the old one or the new one; give 'cloister key rekey' again. A device "
                "may hold a root key that nothing uses since, and then no KEK is destroyed until 'cloister key sweep'.",
            )

    # What a device holds and the file does not name.

    def count_orphans(self) -> None:
        """At start. None is destroyed then: this home may be an older or restored copy, and what it lacks another's."""
        self._unnamed = len(self._vault.orphans())

    def notes(self) -> list[str]:
        if not self._unnamed:
            return list(self._late)
        return [
            f"The device holds {self._unnamed} keys of this vault that its file does not name: a crash left them, or "
            "another copy of the file uses them, so they are kept. Where no other copy is in use, 'cloister key sweep' "
            "destroys those that no key here needs.",
            *self._late,
        ]

    def orphans(self) -> dict[str, Any]:
        """How many there are, what of that a sweep would destroy and what it would keep, ``which`` (a digest that
        ``sweep`` wants back), and whether a peer confirmed at start that this state is the newest: to an older copy of
        a home, keys that are in use look like orphans."""
        doomed = self._doomed(self._vault.orphans())
        seen = {"orphans": doomed.found, "which": doomed.which, "witnessed": self._knowledge.witnessed}
        return {**doomed.document(), **seen}

    def sweep(self, which: str) -> dict[str, Any]:
        """Destroy those of the ``orphans`` that the owner was shown to be doomed. Logged before it is done.

        Raises Misuse("sweep.changed") where it would be others, Untrusted("vault.rollback") where the file is older
        than what this broker remembers; that refusal is logged. What the device raises in the middle is raised after
        the log has how many were destroyed by then; the same command again goes on.
        """
        found = self._vault.orphans()
        doomed = self._doomed(found)
        if doomed.which != which:
            raise Misuse("sweep.changed", "The device holds other keys than were counted; give the command again.")
        self._unnamed = len(found)
        swept = Swept((), ())
        if doomed.handles:
            with self._ledger.turn():
                try:
                    known = remembered_revision(self._ledger, self._vault)
                except Untrusted as refusal:
                    self._refuse("vault.swept", refusal)
                details: Details = {"keys": len(doomed.keys), "roots": len(doomed.roots), "stage": "begun"}
                self._commit("vault.swept", details, [])
            swept = self._vault.sweep_orphans(known_revision=known, among=doomed.handles)
            self._unnamed -= len(swept.destroyed)
            self._tell(doomed, swept)
        gone = doomed.only(swept.destroyed)
        return {**gone.document(), "destroyed": len(swept.destroyed), "remains": sorted(set(swept.remains))}

    def _tell(self, doomed: Doomed, swept: Swept) -> None:
        gone, remains = doomed.only(swept.destroyed), " ".join(sorted(set(swept.remains)))[:4000] or "nothing"
        details: Details = {"keys": len(gone.keys), "remains": remains, "roots": len(gone.roots)}
        error = swept.stopped
        with self._ledger.turn():
            if error is None:
                self._commit("vault.swept", {**details, "stage": "done"}, [self._revision()])
            else:
                why: Details = {"code": error.code, "reason": error.message, "stage": "broken off"}
                self._ledger.append(
                    "vault.swept", target=self._vault.owner, details={**details, **why}, outcome="failure"
                )
        if error is not None:
            raise error

    def _doomed(self, orphans: Sequence[bytes]) -> Doomed:
        # Rows before epochs: what a rotation changes meanwhile makes this keep too much, never too little.
        tables = [row for table in CARRIERS for row in self._ledger.state.rows(table)]
        return decide_sweep(orphans, self._vault.other_roots(), self._vault.epochs(), tables)

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
