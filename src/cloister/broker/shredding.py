"""Destroying the keys of assets for good: logged first, then gone from the state, then the KEK that they were under.

Without the last step an old copy of the broker's database would still open: so every shredding obliges to a new KEK,
under which all other keys are wrapped anew, and to the destruction of the old ones (``rotation``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import Denied, Misuse
from .assets import Assets
from .decision import Instance
from .knowledge import Knowledge, instance_change
from .ledger import Ledger
from .retention import Retention, check_held, check_unheld, overdue
from .rotation import Rotation, fact
from .state import Change, Row
from .usage import KeyUse, Usage

__all__ = ["Shredder"]

_DIGESTS = 100  # of them in one detail of a log entry
_VERSIONS = 400  # in one entry
_SHOWN_JOBS = 50


class Shredder:
    """``shred`` on the owner's word, ``expire`` when the time is over."""

    def __init__(
        self,
        assets: Assets,
        retention: Retention,
        rotation: Rotation,
        usage: Usage,
        knowledge: Knowledge,
        ledger: Ledger,
        clock: Callable[[], int],
    ) -> None:
        self._assets = assets
        self._retention = retention
        self._rotation = rotation
        self._usage = usage
        self._knowledge = knowledge
        self._ledger = ledger
        self._clock = clock

    def shred(self, name: str, versions: Sequence[int] | None, reason: str) -> dict[str, Any]:
        """Destroy the keys of these versions, or of all. ``Rotation.finish`` has to follow; a crash can't prevent it.

        What was shredded before is told again, so that the command can be repeated; a lease that runs over it although,
        because the clock was set back since, ends now. Raises Misuse for versions that
        there are not, Denied("asset.held") under a hold on it, or on what a run used together with it: without this
        key no broker lets that run go on from its checkpoint. That refusal is logged.
        """
        self._usage.assets()  # most of the reading happens before others have to wait for the turn
        if self._retention.held():
            self._knowledge.used_names(())
        with self._ledger.turn():
            rows = self._chosen(name, versions)
            fresh = [row for row in rows if row["shredded"] is None]
            try:
                check_held(name, self._retention.held().get(name))
                check_unheld(*self._evidence(fresh))
            except Denied as refusal:
                details: dict[str, str | int] = {"code": refusal.code, "name": name, "reason": refusal.message}
                self._ledger.append("asset.shredded", target=name, details=details, outcome="failure")
                raise
            told = self._destroy("asset.shredded", name, fresh, reason, chosen=rows)
            used = self._usage.assets()
        return {
            **told,
            "versions": [self._told(r, used) for r in rows],
            "beyond_recall": self._beyond_recall(rows, used),
        }

    def expire(self, row: Row) -> bool:
        """The same for one version whose time is over; False if it was shredded, held or kept longer meanwhile, or a
        run used it together with what is held."""
        if self._evidence([row])[0]:
            return False  # looked at again within the turn; what is kept for long keeps nobody waiting each time
        with self._ledger.turn():
            fresh = self._assets.known(bytes.fromhex(row["digest"]))
            if not overdue([fresh], self._retention.held(), now=self._clock()) or self._evidence([fresh])[0]:
                return False
            self._destroy(
                "asset.expired", row["name"], [fresh], "The time for which it may be kept is over.", chosen=[fresh]
            )
            return True

    def _evidence(self, rows: Sequence[Row]) -> tuple[set[str], dict[str, str]]:
        """Names of what is held and was used by a run together with one of these versions, and all holds. Within a
        turn where something follows; it costs a look at every admitted run, and nothing where nothing is held."""
        held = self._retention.held()
        if not held or not rows:
            return set(), held
        return self._knowledge.used_names(held, beside={bytes.fromhex(row["digest"]) for row in rows}), held

    def _chosen(self, name: str, versions: Sequence[int] | None) -> list[Row]:
        rows = self._assets.versions(name)
        if not rows:
            raise Misuse(
                "asset.unknown", f"This broker has no asset {name}; 'cloister key list' shows those there are."
            )
        if versions is None:
            chosen = rows
        else:
            there = {row["version"]: row for row in rows}
            missing = sorted(set(versions) - set(there))
            if missing or not versions:
                raise Misuse("asset.version", f"{name} has no version {', '.join(map(str, missing)) or 'to shred'}.")
            chosen = [there[version] for version in sorted(set(versions))]
        if len(chosen) > _VERSIONS:
            raise Misuse("shred.many", f"At most {_VERSIONS} versions are shredded at once; name some with --version.")
        return chosen

    def _destroy(self, kind: str, name: str, rows: list[Row], reason: str, *, chosen: list[Row]) -> dict[str, Any]:
        """One entry and one change for all of it, so that nothing is ever half done. Call it within a turn.

        ``rows``: those of the ``chosen`` ones that still have a key.
        """
        now = self._clock()
        cut = self._holders({bytes.fromhex(row["digest"]) for row in chosen}, now=now)
        if not rows and not cut:
            return {"epochs": [], "leases_cut": 0, "name": name}
        used = self._usage.assets()
        digests = [row["digest"] for row in rows]
        epochs = sorted({row["epoch"] for row in rows})
        uses = [used[digest] for digest in digests if digest in used]
        details: dict[str, str | int] = {
            **_named(digests),
            "epochs": ",".join(map(str, epochs))[:8000],
            "instances": len(set().union(*(use.instances for use in uses))),
            "jobs": len(set().union(*(use.jobs for use in uses))),
            "leases_cut": len(cut),
            "name": name,
            "reason": reason,
            "releases": sum(use.releases for use in uses),
            "versions": ",".join(str(row["version"]) for row in rows),
        }
        gone = {"wrapped": None, "epoch": None, "shredded": now, "reason": reason}
        changes = [Change("assets", {**row, **gone}) for row in rows]
        changes += [instance_change(replace(instance, cut=True)) for instance in cut]
        changes += self._ended_tasks(name, set(digests))
        if rows:
            changes.append(self._rotation.order(kind))
        target = digests[0] if len(digests) == 1 else name
        self._ledger.commit(kind, target=target, details=details, changes=changes)
        return {"epochs": epochs, "leases_cut": len(cut), "name": name}

    def _holders(self, digests: set[bytes], *, now: int) -> list[Instance]:
        """Live instances of runs that use one of these assets: they may hold its key, so their leases end now."""
        return [
            instance
            for instance in self._knowledge.instances(cut=0)
            if now < instance.lease.expires and self._may_hold(instance, digests)
        ]

    def _may_hold(self, instance: Instance, digests: set[bytes]) -> bool:
        """Where that can't be told it may: a lease too many that ends costs a restart, one too few a key."""
        used = self._knowledge.job_assets(instance.job)
        return used is None or not used.isdisjoint(digests)

    def _ended_tasks(self, name: str, sources: set[str]) -> list[Change]:
        """A re-encryption that reads what is shredded can't go on, and the key that it made for the copy goes, too."""
        running = self._ledger.state.rows("tasks", name=name, state="running")
        ended = {"wrapped": None, "epoch": None, "state": "ended"}
        return [Change("tasks", {**row, **ended}) for row in running if row["source"] in sources]

    def _told(self, row: Row, used: Mapping[str, KeyUse]) -> dict[str, Any]:
        fresh = self._assets.known(bytes.fromhex(row["digest"]))
        use = used.get(row["digest"]) or KeyUse("asset", row["name"])
        return {
            "digest": row["digest"],
            "first": use.first,
            "instances": len(use.instances),
            "jobs": sorted(use.jobs)[:_SHOWN_JOBS],
            "jobs_total": len(use.jobs),
            "last": use.last,
            "opened": use.opened,
            "reason": fresh["reason"],
            "releases": use.releases,
            "shredded": fresh["shredded"],
            "version": row["version"],
        }

    def _beyond_recall(self, rows: Iterable[Row], used: Mapping[str, KeyUse]) -> list[str]:
        """What no shredding reaches, in sentences. What the vault can't destroy comes with the rotation's end."""
        said = []
        for row in rows:
            use = used.get(row["digest"])
            what = f"{row['name']} version {row['version']}"
            if use is not None and use.releases:
                said.append(
                    f"The key of {what} was released {use.releases} times, to {len(use.instances)} starts of "
                    f"{len(use.jobs)} jobs, the last on {_day(use.last)}: what they learned from it stays learned."
                )
            if use is not None and use.opened:
                said.append(f"Your own client got the key of {what} {use.opened} times, to re-encrypt it.")
        split = fact(self._ledger, "recovery_split")
        if split is not None:
            said.append(
                f"Recovery shares were made on {_day(split)}: together with a backup of the vault file and one of the "
                "broker's state from before today they open what was wrapped then; destroy those backups."
            )
        return said


def _named(digests: Sequence[str]) -> dict[str, str]:
    """Digests as details of an entry, one after the other without anything between: ``digests0``, ``digests1``, …"""
    parts = [digests[i : i + _DIGESTS] for i in range(0, len(digests), _DIGESTS)]
    return {f"digests{number}": "".join(part) for number, part in enumerate(parts)}


def _day(seconds: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))
