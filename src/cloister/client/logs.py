"""A party's own audit log, read through its broker and checked without believing it."""

from __future__ import annotations

import base64
import binascii
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..audit import Checkpoint, Facts, parse_event, verify_checkpoint
from ..contracts import log_origin
from ..crypto.merkle import RootHasher
from ..errors import Malformed, Misuse, Unavailable, Untrusted
from .agent import OwnerAgent
from .progress import Progress, Step, silent
from .supervisor import Home

__all__ = ["Exported", "LogCheck", "Wanted", "export_events", "show_log", "verify_log"]

_PAGE = 200
_COPY = 1 << 20

Each = Callable[[int, bytes, "Facts | None"], None]


@dataclass(frozen=True)
class LogCheck:
    """What holds. ``compared``: size of the head kept here before, which the log still contains; 0 at first."""

    party: str
    size: int
    root: str
    compared: int
    kinds: dict[str, int]

    def document(self) -> dict[str, Any]:
        return {**vars(self), "verified": True}


@dataclass(frozen=True)
class Wanted:
    """Which entries: indexes from ``first`` to ``last``, times (POSIX seconds) from ``since`` to just before ``until``,
    and one ``kind``. None leaves an end open. Raises Misuse for a range that has nothing in it whatever is logged."""

    first: int = 0
    last: int | None = None
    since: int | None = None
    until: int | None = None
    kind: str | None = None

    def __post_init__(self) -> None:
        if self.first < 0 or (self.last is not None and self.last < self.first):
            raise Misuse("audit.range", "The last entry comes before the first; give them the other way round.")
        if self.since is not None and self.until is not None and self.until <= self.since:
            raise Misuse("audit.range", "The time to end at is not after the time to begin at.")

    def holds(self, index: int) -> bool:
        """Whether an entry's place is in the range."""
        return index >= self.first and (self.last is None or index <= self.last)

    def takes(self, facts: Facts) -> bool:
        """Whether what was logged is wanted, wherever it lies."""
        begun = self.since is None or facts.time >= self.since
        ended = self.until is not None and facts.time >= self.until
        return begun and not ended and self.kind in (None, facts.kind)


@dataclass(frozen=True)
class Exported:
    """``written`` entries of a log that ``check`` found whole."""

    check: LogCheck
    written: int

    def document(self) -> dict[str, Any]:
        return {**self.check.document(), "written": self.written}


def export_events(home: Home, party: str, out: IO[bytes], wanted: Wanted, *, progress: Progress = silent) -> Exported:
    """Write the wanted entries of a party's log to ``out``: OCSF events, each the very bytes that were logged, one a
    line.

    The whole log is checked as ``verify_log`` checks it, and nothing is written to ``out`` unless it is right; until
    then what is wanted lies in a file without a name. Raises as ``verify_log``, Malformed for an entry that is no
    event, and OSError where there is no room.
    """
    written, strange = 0, False
    with tempfile.TemporaryFile() as kept:

        def keep(index: int, leaf: bytes, facts: Facts | None) -> None:
            nonlocal written, strange
            if not wanted.holds(index):
                return
            if facts is None:
                strange = True  # first of all, whether it is what was logged
            elif wanted.takes(facts):
                kept.write(leaf + b"\n")  # canonical JSON has no line feed of its own
                written += 1

        check = verify_log(home, party, progress=progress, each=keep)
        if strange:
            raise Malformed("event.form", "A log entry is not a Cloister audit event.")
        kept.seek(0)
        while part := kept.read(_COPY):
            out.write(part)
    return Exported(check, written)


def verify_log(home: Home, party: str, *, progress: Progress = silent, each: Each | None = None) -> LogCheck:
    """Check every entry against the head that the party's key signed, and against the head kept from the last time.

    Raises Untrusted when an entry, the head or the history differs. The kept head lies beside the home's parties,
    away from the broker's own folder, so that a log which was put back to an older state is noticed. ``each`` gets
    index, bytes and facts (None for what is no event) of every entry, before anything is known to be right.
    """
    agent = home.agent(party)
    origin, key = log_origin(party), agent.card.keys.receipt
    note = str(agent.audit_head()["note"])
    head = verify_checkpoint(note, origin, key)
    kept_at = home.path / "heads" / f"{party}.note"
    kept = verify_checkpoint(kept_at.read_text(), origin, key) if kept_at.is_file() else None
    if kept is not None and kept.size > head.size:
        raise Untrusted("audit.rollback", f"The log of {party} is shorter than when it was last checked here.")
    kinds = _rebuild(agent, head, kept, progress, each)
    _keep(kept_at, note)
    return LogCheck(party, head.size, head.root.hex(), kept.size if kept else 0, dict(sorted(kinds.items())))


def _rebuild(
    agent: OwnerAgent,
    head: Checkpoint,
    kept: Checkpoint | None,
    progress: Progress,
    each: Each | None,
) -> Counter[str]:
    tree, kinds = RootHasher(), Counter[str]()
    for entry in _entries(agent, 0, head.size):
        if kept is not None and tree.size == kept.size:
            _same(tree, kept, "audit.rewritten", "The log was rewritten since it was last checked here.")
        leaf = _leaf(entry)
        facts = _facts(leaf)
        if each is not None:
            each(tree.size, leaf, facts)
        tree.add(leaf)
        # Of the bytes that the head covers, never of what the broker says of them.
        kinds["unknown" if facts is None else facts.kind] += 1
        progress(Step("check", tree.size, head.size, "entries"))
    if kept is not None and kept.size == head.size:
        _same(tree, kept, "audit.rewritten", "The log was rewritten since it was last checked here.")
    _same(tree, head, "audit.root", "The log's entries are not those that its signed head covers.")
    return kinds


def _same(tree: RootHasher, head: Checkpoint, code: str, message: str) -> None:
    if (tree.size, tree.root()) != (head.size, head.root):
        raise Untrusted(code, message)


def _entries(agent: OwnerAgent, start: int, end: int) -> Iterator[dict[str, Any]]:
    while start < end:
        page = list(agent.audit_entries(start, min(_PAGE, end - start))["entries"])
        if not page or len(page) > end - start:
            raise Untrusted("audit.truncated", "The log ends before its signed head.")
        yield from page
        start += len(page)


def _leaf(entry: dict[str, Any]) -> bytes:
    try:
        return base64.b64decode(entry["leaf"], validate=True)
    except (KeyError, TypeError, ValueError, binascii.Error):
        raise Malformed("audit.entry", "The broker's log entry can't be read; update the client.") from None


def _facts(leaf: bytes) -> Facts | None:
    try:
        return parse_event(leaf)
    except Malformed:
        return None


def _keep(path: Path, note: str) -> None:
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        draft = path.with_suffix(".draft")
        draft.write_text(note)
        draft.replace(path)
    except OSError:
        raise Unavailable("audit.keep", "The log is right, but its head can't be kept here; free disk space.") from None


def show_log(home: Home, party: str, *, last: int = 20, kind: str | None = None) -> list[dict[str, Any]]:
    """The newest ``last`` entries (of ``kind``), oldest first, as the broker tells them: ``verify_log`` checks."""
    agent = home.agent(party)
    size = int(agent.audit_head()["size"])
    found: list[dict[str, Any]] = []
    end = size
    while end > 0 and len(found) < last:
        start = max(0, end - _PAGE)
        page = [e for e in _entries(agent, start, end) if kind is None or e["kind"] == kind]
        found = page + found
        end = start
    return [{k: v for k, v in entry.items() if k != "leaf"} for entry in found[-last:]]
