"""A new KEK: every data key is wrapped anew under it, then the old KEKs are destroyed. Survives a crash at any point.

What is left to do follows from what is stored: the fact ``rotation`` names the epoch to reach, the rows name the epoch
that each key is under, the vault the epochs that it still holds. So a rotation that broke off is simply gone on with.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import CloisterError, Denied, Malformed, Untrusted
from .config import Limits
from .ledger import Ledger
from .party import OwnKeys
from .state import Change, Row
from .wrapped import CARRIERS, is_gone, rewrapped

__all__ = ["Rotation", "fact", "fact_change"]

Details = dict[str, str | int]
_FOREIGN = frozenset({"wrap.kek", "wrap.algorithm"})  # refusals of what this vault cannot have wrapped


def fact(ledger: Ledger, name: str) -> Any:
    """A fact that is kept as JSON; None where it isn't set."""
    row = ledger.state.row("facts", name=name)
    return None if row is None or not row["value"] else json.loads(row["value"])


def fact_change(name: str, value: Any) -> Change:
    return Change("facts", {"name": name, "value": "" if value is None else json.dumps(value, sort_keys=True)})


@dataclass
class _Progress:
    """Of the work that is under way."""

    done: int = 0
    total: int = 0
    error: str | None = None


class Rotation:
    """``begin`` obliges, ``finish`` does it; ``rotate`` is both. One thread works, whoever comes second joins it."""

    def __init__(self, keys: OwnKeys, ledger: Ledger, clock: Callable[[], int], limits: Limits) -> None:
        self._vault = keys.vault
        self._ledger = ledger
        self._clock = clock
        self._limits = limits
        self._working = threading.Lock()
        self._stop = threading.Event()
        self._progress = _Progress()
        self._said: dict[int, str | None] = {}  # by the vault of epochs that it destroyed, until the log has it
        self._refused: str | None = None  # by the vault, and said in the log since the start

    # What is due.

    @property
    def pending(self) -> bool:
        return self._target() is not None

    def order(self, reason: str) -> Change:
        """The change that obliges this broker to a KEK newer than the present one. Commit it with what it is for.

        Call it within a turn. What was wrapped when it is committed is under an older KEK than the one to come, also
        where a rotation is under way, which may have wrapped it under the present one already.
        """
        self._progress.error = None  # whoever asks is told how this one goes, not the attempt before
        return fact_change("rotation", {"reason": reason, "target": self._vault.epoch + 1})

    def begin(self, reason: str) -> bool:
        """Announce a rotation in the log; False if one is under way already, which this one joins."""
        with self._ledger.turn():
            if self.pending:
                self._progress.error = None
                return False
            change = self.order(reason)
            details: Details = {"epoch": self._vault.epoch + 1, "reason": reason}
            self._ledger.commit("kek.rotation", target=self._vault.owner, details=details, changes=[change])
            return True

    def rotate(self, reason: str = "demand") -> int:
        """All of it, in this thread. The newest epoch."""
        self.begin(reason)
        with self._working:
            self._finish(None)
        return self._vault.epoch

    # Doing it.

    def stop(self) -> None:
        """Leave off after the present batch; the next start goes on."""
        self._stop.set()

    def finish(self, *, most: int | None = None) -> bool:
        """Go on with what is pending, at most with ``most`` keys. False if something is left, or another thread works.

        Raises what vault and log raise; all that was done until then counts.
        """
        if not self._working.acquire(blocking=False):
            return False
        try:
            self._sweep()
            return self._finish(most)
        except CloisterError as error:
            self._progress.error = error.message
            raise
        finally:
            self._working.release()

    def _sweep(self) -> None:
        """Old KEKs that nothing obliges to destroy: what an older version, or a rotation without a log, left behind."""
        if not self.pending and len(self._vault.epochs()) > 1:
            with self._ledger.turn():
                change = fact_change("rotation", {"reason": "sweep", "target": self._vault.epoch})
                details: Details = {"epoch": self._vault.epoch, "reason": "sweep"}
                self._ledger.commit("kek.rotation", target=self._vault.owner, details=details, changes=[change])

    def _finish(self, most: int | None) -> bool:
        self._progress = _Progress()
        while (target := self._target()) is not None:
            while self._vault.epoch < target:
                self._vault.rotate_kek()
            if not self._rewrap(target, most):
                return False
            self._retire(target)
        return True

    def _rewrap(self, target: int, most: int | None) -> bool:
        progress = self._progress
        progress.total = progress.done + self._left(target)
        for table in CARRIERS:
            lost: set[str] = set()
            while rows := self._batch(table, target, lost):
                if self._stop.is_set() or (most is not None and progress.done >= most):
                    return False
                # Outside the turn: a vault in a device or far away may take long, and nobody's lease waits for it.
                self._commit(table, target, rows, [self._anew(table, row, lost) for row in rows])
        return True

    def _anew(self, table: str, row: Row, lost: set[str]) -> Change | None:
        try:
            return rewrapped(self._vault, table, row)
        except CloisterError as refusal:
            if isinstance(refusal, Denied) and is_gone(refusal):
                lost.add(row[CARRIERS[table][0]])
                return None
            if isinstance(refusal, Untrusted | Malformed) or refusal.code in _FOREIGN:
                raise Untrusted(
                    "wrap.changed",
                    f"The wrapped key of {row['name']} version {row['version']} was changed, so the old KEK is kept; "
                    "restore the broker's state, or shred that version.",
                ) from None
            raise

    def _commit(self, table: str, target: int, rows: Sequence[Row], anew: Sequence[Change | None]) -> None:
        key = CARRIERS[table][0]
        with self._ledger.turn():
            # Only rows that are still as they were read: one that was shredded meanwhile must not get a key again.
            changes = [
                change
                for row, change in zip(rows, anew, strict=True)
                if change is not None and self._ledger.state.row(table, **{key: row[key]}) == row
            ]
            if changes:
                self._progress.done += len(changes)
                details: Details = {
                    "count": len(changes),
                    "done": self._progress.done,
                    "epoch": target,
                    "table": table,
                    "total": max(self._progress.total, self._progress.done),
                }
                self._ledger.commit("kek.rewrapped", target=self._vault.owner, details=details, changes=changes)

    def _retire(self, target: int) -> None:
        """Destroy what is older, once nothing is wrapped under it; the log tells of it after it is done."""
        with self._ledger.turn():
            # Whatever is wrapped from now on is under the newest KEK; whatever was wrapped before is in the tables now.
            if any(self._saveable(table, target) for table in CARRIERS):
                return
        old = [epoch for epoch in self._vault.epochs() if epoch < target]
        if old:
            self._check_sole(target)
        self._announce(target, old)
        for epoch in old:
            self._said[epoch] = self._vault.destroy_epoch(epoch)
        with self._ledger.turn():
            pending = fact(self._ledger, "rotation")
            if pending is None or pending["target"] > target:
                return  # somebody asked for a newer one meanwhile: that one ends it
            announced = fact(self._ledger, "destroying") or []
            now, lost, remains = self._clock(), self._lost(target), self._remains(announced)
            details: Details = {
                "destroyed": len(announced),
                "epoch": target,
                "lost": len(lost),
                "reason": pending["reason"],
                "remains": " ".join(remains)[:4000] or "nothing",
                "rewrapped": self._progress.done,
            }
            last = {**details, "at": now, "lost": lost, "remains": remains}
            changes = [
                fact_change("rotation", None),
                fact_change("destroying", None),
                fact_change("destroyed", last),
                fact_change("rotated_at", now),
                # An older vault file is refused from here on.
                Change("facts", {"name": "vault_revision", "value": str(self._vault.revision)}),
            ]
            self._ledger.commit("kek.destroyed", target=self._vault.owner, details=details, changes=changes)
            self._said.clear()

    def _check_sole(self, target: int) -> None:
        """Before anything is announced, so that the log never tells of a destruction which the vault then refuses. The
        keeper tries again and again: one entry tells of all of that."""
        try:
            self._vault.check_sole()
        except Denied as refusal:
            if self._refused != refusal.code:
                details: Details = {"code": refusal.code, "epoch": target, "reason": refusal.message}
                with self._ledger.turn():
                    self._ledger.append("kek.rotation", target=self._vault.owner, details=details, outcome="failure")
                self._refused = refusal.code
            raise
        self._refused = None

    def _announce(self, target: int, old: Sequence[int]) -> None:
        """Store which epochs are about to be destroyed: the answer at the end tells of all of them, crash or not."""
        with self._ledger.turn():
            known = fact(self._ledger, "destroying") or []
            if set(old) <= set(known):
                return
            epochs = sorted({*known, *old})
            details: Details = {"epoch": target, "epochs": ",".join(map(str, epochs))[:4000], "stage": "destroying"}
            changes = [fact_change("destroying", epochs)]
            self._ledger.commit("kek.rotation", target=self._vault.owner, details=details, changes=changes)

    def _remains(self, announced: Sequence[int]) -> list[str]:
        said = {sentence for sentence in self._said.values() if sentence is not None}
        unheard = [str(epoch) for epoch in announced if epoch not in self._said]
        if unheard:
            said.add(
                f"The broker was stopped while KEK epoch {', '.join(unheard)} was destroyed, so what the driver said "
                "of that is not known: take it that copies may remain."
            )
        return sorted(said)

    # Looking.

    def progress(self) -> dict[str, Any]:
        """``running``: a thread works on it; ``pending``: it is not finished; ``last``: what the last one left."""
        # First: one commit ends it and says what it left, so that whoever reads "not pending" reads that, too.
        pending = self.pending
        now = self._progress
        return {
            "done": now.done,
            "epoch": self._vault.epoch,
            "epochs": list(self._vault.epochs()),
            "error": now.error,
            "last": fact(self._ledger, "destroyed"),
            "pending": pending,
            "running": self._working.locked(),
            "total": max(now.total, now.done),
        }

    def _target(self) -> int | None:
        pending = fact(self._ledger, "rotation")
        return None if pending is None else int(pending["target"])

    def _oldest(self) -> int:
        return min(self._vault.epochs())

    def _left(self, target: int) -> int:
        return sum(self._ledger.state.count_older(table, target, least=self._oldest()) for table in CARRIERS)

    def _batch(self, table: str, target: int, lost: set[str]) -> list[Row]:
        limit = self._limits.rewrap_batch + len(lost)
        rows = self._ledger.state.older(table, target, least=self._oldest(), limit=limit)
        return [row for row in rows if row[CARRIERS[table][0]] not in lost][: self._limits.rewrap_batch]

    def _saveable(self, table: str, target: int) -> bool:
        """Whether a key is still under an older KEK that exists: that KEK must not die yet."""
        held = set(self._vault.epochs())
        rows = self._ledger.state.older(table, target, least=self._oldest(), limit=1 << 31)
        return any(row["epoch"] in held and self._opens(table, row) for row in rows)

    def _opens(self, table: str, row: Row) -> bool:
        try:
            rewrapped(self._vault, table, row)
        except Denied as refusal:
            return not is_gone(refusal)
        return True

    def _lost(self, target: int) -> list[str]:
        """Names whose keys went with a KEK that is gone, for whatever reason: nothing here can bring them back."""
        rows = self._ledger.state.older("assets", target, least=0, limit=1000)
        return sorted({f"{row['name']} version {row['version']}" for row in rows})
