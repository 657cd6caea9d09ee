"""A log that its own broker tampers with, or that was put back to an older state, is noticed by ``audit verify``."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cloister.audit import AuditLog, encode_event, event, parse_event
from cloister.client import Home, operations
from cloister.contracts import log_origin
from cloister.errors import CloisterError, Malformed, Unavailable, Untrusted
from tests.control_world import Party


class Stand:
    """A home with one party, whose broker answers from a real log; ``edit`` falsifies its answers."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "home"
        self.path.mkdir()
        self.party = Party("lab")
        self.log = self.fresh(folder / "log")
        self.edit: Any = lambda entries: entries
        self.home = cast(Home, self)

    def fresh(self, folder: Path) -> AuditLog:
        return AuditLog.create(folder, origin=log_origin("lab"), signer=self.party.receipt)

    def write(self, count: int, log: AuditLog | None = None, target: str = "x") -> None:
        for _ in range(count):
            (log or self.log).append(encode_event(event("asset.sealed", actor="lab", target=target, now=1)))

    def agent(self, _: str) -> Any:
        def entries(start: int, count: int) -> dict[str, Any]:
            leaves = self.log.entries(start, min(start + count, self.log.size))
            return {"entries": self.edit([entry(start + i, leaf) for i, leaf in enumerate(leaves)])}

        def head() -> dict[str, Any]:
            return {"note": self.log.head(), "size": self.log.size}

        return SimpleNamespace(card=self.party.card, audit_head=head, audit_entries=entries)


def entry(index: int, leaf: bytes) -> dict[str, Any]:
    return {"index": index, "kind": parse_event(leaf).kind, "leaf": base64.b64encode(leaf).decode()}


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    made = Stand(tmp_path)
    yield made
    made.log.close()


def refused(stand: Stand, kind: type[CloisterError], code: str) -> None:
    kept = stand.path / "heads" / "lab.note"
    before = kept.read_bytes() if kept.exists() else None
    with pytest.raises(kind) as caught:
        operations.verify_log(stand.home, "lab")
    assert caught.value.code == code
    assert (kept.read_bytes() if kept.exists() else None) == before, "the kept head stays what it was"


def test_a_log_of_many_pages(stand: Stand) -> None:
    stand.write(450)
    check = operations.verify_log(stand.home, "lab")
    assert (check.size, check.compared, check.kinds) == (450, 0, {"asset.sealed": 450})
    stand.write(3)
    assert operations.verify_log(stand.home, "lab").compared == 450
    assert len(operations.show_log(stand.home, "lab", last=210)) == 210


def test_an_empty_log(stand: Stand) -> None:
    assert operations.verify_log(stand.home, "lab").size == 0
    assert operations.show_log(stand.home, "lab") == []


def test_a_changed_entry(stand: Stand) -> None:
    stand.write(5)
    other = encode_event(event("asset.sealed", actor="lab", target="another", now=1))
    stand.edit = lambda entries: [entry(0, other), *entries[1:]]
    refused(stand, Untrusted, "audit.root")


def test_a_hidden_entry(stand: Stand) -> None:
    stand.write(5)
    for edit in (lambda e: e[1:], lambda e: e[:-1], lambda e: [], lambda e: [*e, *e]):
        stand.edit = edit
        refused(stand, Untrusted, "audit.truncated")
    stand.edit = lambda entries: entries[::-1]
    refused(stand, Untrusted, "audit.root")


def test_a_log_that_was_put_back(stand: Stand, tmp_path: Path) -> None:
    stand.write(5)
    operations.verify_log(stand.home, "lab")
    stand.log.close()
    stand.log = stand.fresh(tmp_path / "older")
    stand.write(3)
    refused(stand, Untrusted, "audit.rollback")


@pytest.mark.parametrize("more", [0, 4])
def test_a_log_that_was_rewritten(stand: Stand, tmp_path: Path, more: int) -> None:
    """By somebody who holds the log's own key: only the head that was kept tells."""
    stand.write(5)
    operations.verify_log(stand.home, "lab")
    stand.log.close()
    stand.log = stand.fresh(tmp_path / "rewritten")
    stand.write(5 + more, target="nicer")
    refused(stand, Untrusted, "audit.rewritten")


def test_a_head_by_another_key(stand: Stand) -> None:
    stand.write(2)
    stand.party.card = Party("lab").card
    with pytest.raises(Untrusted):
        operations.verify_log(stand.home, "lab")


def test_an_unreadable_entry(stand: Stand) -> None:
    stand.write(2)
    stand.edit = lambda entries: [{**e, "leaf": "!"} for e in entries]
    refused(stand, Malformed, "audit.entry")


def test_a_head_that_cannot_be_kept(stand: Stand) -> None:
    stand.write(2)
    (stand.path / "heads").touch()
    with pytest.raises(Unavailable) as caught:
        operations.verify_log(stand.home, "lab")
    assert caught.value.code == "audit.keep"
