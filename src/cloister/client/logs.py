"""A party's own audit log, read through its broker and checked without believing it."""

from __future__ import annotations

import base64
import binascii
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..audit import Checkpoint, verify_checkpoint
from ..contracts import log_origin
from ..crypto.merkle import RootHasher
from ..errors import Malformed, Unavailable, Untrusted
from .agent import OwnerAgent
from .progress import Progress, Step, silent
from .supervisor import Home

__all__ = ["LogCheck", "show_log", "verify_log"]

_PAGE = 200


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


def verify_log(home: Home, party: str, *, progress: Progress = silent) -> LogCheck:
    """Check every entry against the head that the party's key signed, and against the head kept from the last time.

    Raises Untrusted when an entry, the head or the history differs. The kept head lies beside the home's parties,
    away from the broker's own folder, so that a log which was put back to an older state is noticed.
    """
    agent = home.agent(party)
    origin, key = log_origin(party), agent.card.keys.receipt
    note = str(agent.audit_head()["note"])
    head = verify_checkpoint(note, origin, key)
    kept_at = home.path / "heads" / f"{party}.note"
    kept = verify_checkpoint(kept_at.read_text(), origin, key) if kept_at.is_file() else None
    if kept is not None and kept.size > head.size:
        raise Untrusted("audit.rollback", f"The log of {party} is shorter than when it was last checked here.")
    kinds = _rebuild(agent, head, kept, progress)
    _keep(kept_at, note)
    return LogCheck(party, head.size, head.root.hex(), kept.size if kept else 0, dict(sorted(kinds.items())))


def _rebuild(agent: OwnerAgent, head: Checkpoint, kept: Checkpoint | None, progress: Progress) -> Counter[str]:
    tree, kinds = RootHasher(), Counter[str]()
    for entry in _entries(agent, 0, head.size):
        if kept is not None and tree.size == kept.size:
            _same(tree, kept, "audit.rewritten", "The log was rewritten since it was last checked here.")
        tree.add(_leaf(entry))
        kinds[str(entry["kind"])] += 1
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
