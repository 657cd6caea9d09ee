"""What keys were used for, from the audit log alone: there is no second record that could tell another story.

``KeyUse.add`` takes one event after the other and is pure; ``Usage`` reads what the log has grown by. What is unusual
is marked with the rule in words. The rules compare a key with its own past only, so each needs some past to speak.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..audit import AuditLog, Facts, parse_event

__all__ = ["KeyUse", "Mark", "Usage", "UseTable", "asset_of"]

_HOUR, _DAY = 3600, 86_400
_PAST = 10  # uses before the hours of the day say anything
_PAST_DAYS = 3
_CROWD = 3  # times the most of any hour before
_LEAST_CROWD = 4
_BURST = 10  # refusals in an hour
_REST = 90  # days
_MARKS = 50  # that are kept of one key; the rest is counted
_PAGE = 1024


@dataclass(frozen=True)
class Mark:
    """One unusual use: the rule's name, when (unix seconds), the log entry, and why in words."""

    rule: str
    at: int
    entry: int
    words: str

    def document(self) -> dict[str, Any]:
        return {"at": self.at, "entry": self.entry, "rule": self.rule, "words": self.words}


class _Hours:
    """Events of one kind by clock hour: how many in the present one, and the most in any before it."""

    def __init__(self) -> None:
        self.hour = self.count = self.most = self.hours = 0

    def add(self, at: int, count: int = 1) -> None:
        hour = at // _HOUR
        if hour != self.hour:
            self.most, self.hour, self.count = max(self.most, self.count), hour, 0
            self.hours += 1
        self.count += count


@dataclass
class KeyUse:
    """One key's row. ``kind``: asset, or kek (then ``name`` is its epoch). Times are unix seconds, 0 for never."""

    kind: str
    name: str
    digest: str = ""
    version: int = 0
    releases: int = 0
    refused: int = 0
    opened: int = 0  # handed to the owner's own client
    first: int = 0
    last: int = 0
    last_job: str = ""
    shredded: int = 0
    jobs: set[str] = field(default_factory=set)
    instances: set[str] = field(default_factory=set)
    marks: list[Mark] = field(default_factory=list)
    marked: int = 0
    _seen: dict[str, set[str]] = field(default_factory=lambda: {"attester": set(), "measurement": set()})
    _day_hours: Counter[int] = field(default_factory=Counter)
    _days: set[int] = field(default_factory=set)
    _releases: _Hours = field(default_factory=_Hours)
    _refusals: _Hours = field(default_factory=_Hours)

    def add_release(self, entry: int, facts: Facts) -> None:
        """Judge a release by what came before it, then count it."""
        self._judge_release(entry, facts)
        self.releases += 1
        self.first, self.last = self.first or facts.time, facts.time
        self.last_job = str(facts.details.get("job", ""))
        self.jobs.add(self.last_job)
        self.instances.add(str(facts.details.get("instance", "")))
        self._day_hours[facts.time % _DAY // _HOUR] += 1
        self._days.add(facts.time // _DAY)
        for what, seen in self._seen.items():
            seen.add(str(facts.details.get(what, "")))

    def add_refusal(self, entry: int, facts: Facts) -> None:
        before = facts.details.get("suppressed_before", 0)
        count = 1 + (before if isinstance(before, int) else 0)
        crowded = self._refusals.count
        self._refusals.add(facts.time, count)
        crowded = crowded if self._refusals.count > count else 0
        self.refused += count
        limit = max(_BURST, _CROWD * self._refusals.most)
        if self._refusals.count > limit >= crowded:
            words = f"more than {limit} refused tries in one hour; never more than {self._refusals.most} before"
            self._mark("refusals", entry, facts, words)

    def add_opening(self, facts: Facts) -> None:
        self.opened += 1
        self.first, self.last = self.first or facts.time, facts.time

    def _judge_release(self, entry: int, facts: Facts) -> None:
        hour = facts.time % _DAY // _HOUR
        if self.releases >= _PAST and len(self._days) >= _PAST_DAYS and not self._day_hours[hour]:
            words = f"released between {hour:02d}:00 and {hour:02d}:59 UTC, an hour of the day without a release before"
            self._mark("hour", entry, facts, words)
        for what, seen in self._seen.items():
            found = str(facts.details.get(what, ""))
            if self.releases and found not in seen:
                self._mark(
                    what, entry, facts, f"first release to the {what} {found[:16]}, never seen with this key before"
                )
        if self.releases and facts.time - self.last > _REST * _DAY:
            words = f"first release after {(facts.time - self.last) // _DAY} days without one"
            self._mark("rest", entry, facts, words)
        before = self._releases.count if facts.time // _HOUR == self._releases.hour else 0
        self._releases.add(facts.time)
        limit = max(_LEAST_CROWD - 1, _CROWD * self._releases.most)
        if self._releases.hours > 1 and self._releases.count > limit >= before:
            words = f"more than {limit} releases in one hour; never more than {self._releases.most} before"
            self._mark("crowd", entry, facts, words)

    def _mark(self, rule: str, entry: int, facts: Facts, words: str) -> None:
        self.marked += 1
        self.marks = [*self.marks, Mark(rule, facts.time, entry, words)][-_MARKS:]

    def document(self) -> dict[str, Any]:
        plain = ("kind", "name", "digest", "version", "releases", "refused", "opened", "first", "last", "last_job")
        return {
            **{key: getattr(self, key) for key in plain},
            "instances": len(self.instances),
            "jobs": len(self.jobs),
            "marks": [mark.document() for mark in self.marks],
            "shredded": self.shredded,
            "unusual": self.marked,
        }


def asset_of(facts: Facts) -> str | None:
    """The digest (hex) of the asset whose key an event is about; None for all others."""
    if facts.kind == "key.released" and facts.details.get("resource_kind") == "asset-key":
        return str(facts.details.get("resource", ""))
    if facts.kind == "key.refused":
        kind, _, tag = str(facts.details.get("resource", "")).partition("/")
        return tag if kind == "asset-key" else None
    return facts.target if facts.kind in ("asset.sealed", "asset.opened") else None


class UseTable:
    """Rows by key, grown event by event."""

    def __init__(self) -> None:
        self.assets: dict[str, KeyUse] = {}
        self.keks: dict[int, KeyUse] = {}

    def add(self, entry: int, facts: Facts) -> None:
        if facts.kind in ("asset.shredded", "asset.expired") and facts.outcome == "success":
            return self._shredded(facts)
        digest = asset_of(facts)
        if digest is None:
            return None
        if facts.kind == "asset.sealed":
            name, version = str(facts.details.get("name", "")), facts.details.get("version", 0)
            self.assets[digest] = KeyUse("asset", name, digest, version if isinstance(version, int) else 0)
            return None
        row = self.assets.get(digest)
        if row is None:
            return None  # asked for by that digest, but none of ours: nothing of this vault was used
        if facts.kind == "key.refused":
            return row.add_refusal(entry, facts)
        epoch = facts.details.get("kek_epoch")
        kek = self.keks.setdefault(epoch, KeyUse("kek", str(epoch))) if isinstance(epoch, int) else None
        for one in (row, kek):
            if one is not None and facts.kind == "key.released":
                one.add_release(entry, facts)
            elif one is not None:
                one.add_opening(facts)
        return None

    def _shredded(self, facts: Facts) -> None:
        digests = "".join(str(v) for k, v in sorted(facts.details.items()) if k.startswith("digests"))
        for digest in (digests[i : i + 64] for i in range(0, len(digests), 64)):
            if digest in self.assets:
                self.assets[digest].shredded = facts.time

    def rows(self) -> list[KeyUse]:
        """Assets by name and version, then KEKs by epoch."""
        assets = sorted(self.assets.values(), key=lambda row: (row.name, row.version))
        return [*assets, *(self.keks[epoch] for epoch in sorted(self.keks))]


class Usage:
    """The table of one log, brought up to date when it is asked for. Its memory grows with distinct jobs and runs."""

    def __init__(self, log: AuditLog) -> None:
        self._log = log
        self._cursor = 0
        self._table = UseTable()
        self._lock = threading.Lock()

    def document(self) -> dict[str, Any]:
        with self._lock:
            self._catch_up()
            return {"keys": [row.document() for row in self._table.rows()], "log_size": self._cursor}

    def assets(self) -> Mapping[str, KeyUse]:
        """By digest. Within a turn nothing is released meanwhile, so it is all that ever was."""
        with self._lock:
            self._catch_up()
            return dict(self._table.assets)

    def _catch_up(self) -> None:
        size = self._log.size
        while self._cursor < size:
            end = min(self._cursor + _PAGE, size)
            for index, leaf in enumerate(self._log.entries(self._cursor, end), self._cursor):
                self._table.add(index, parse_event(leaf))
            self._cursor = end
