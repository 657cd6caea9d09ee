"""A log that its own broker tampers with, or that was put back to an older state, is noticed by ``audit verify``."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cloister.audit import AuditLog, encode_event, event, parse_event
from cloister.client import Home, Wanted, operations
from cloister.contracts import log_origin
from cloister.errors import CloisterError, Malformed, Misuse, Unavailable, Untrusted
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
    kind = "unknown" if leaf == b"{}" else parse_event(leaf).kind
    return {"index": index, "kind": kind, "leaf": base64.b64encode(leaf).decode()}


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


def test_a_broker_that_misnames_what_was_logged(stand: Stand) -> None:
    """A release that is told as something harmless: what counts is what the signed head covers."""
    stand.log.append(encode_event(event("key.released", actor="lab", target="x", now=1)))
    for edit in (lambda e: {**e, "kind": "asset.sealed"}, lambda e: {"leaf": e["leaf"]}):
        stand.edit = lambda entries, edit=edit: [edit(one) for one in entries]
        assert operations.verify_log(stand.home, "lab").kinds == {"key.released": 1}


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


def exported(stand: Stand, **wanted: Any) -> list[bytes]:
    out = io.BytesIO()
    done = operations.export_events(stand.home, "lab", out, Wanted(**wanted))
    lines = out.getvalue().splitlines(keepends=True)
    assert (done.written, done.check.size) == (len(lines), stand.log.size)
    assert all(line.endswith(b"\n") for line in lines)
    return [line[:-1] for line in lines]


def test_an_export_is_the_very_entries(stand: Stand) -> None:
    stand.write(450)
    assert exported(stand) == stand.log.entries(0, 450)
    assert (stand.path / "heads" / "lab.note").read_text() == stand.log.head()


@pytest.mark.parametrize(
    ("wanted", "indexes"),
    [
        ({}, range(9)),
        ({"first": 3}, range(3, 9)),
        ({"first": 2, "last": 2}, range(2, 3)),
        ({"first": 7, "last": 700}, range(7, 9)),
        ({"first": 9}, range(0)),
        ({"since": 102}, range(2, 9)),
        ({"until": 102}, range(2)),
        ({"since": 103, "until": 105}, range(3, 5)),
        ({"since": 103, "first": 4, "last": 5}, range(4, 6)),
        ({"since": 109}, range(0)),
        ({"kind": "key.released"}, range(1, 9, 2)),
        ({"kind": "key.refused"}, range(0)),
    ],
    ids=str,
)
def test_an_export_of_a_part(stand: Stand, wanted: dict[str, Any], indexes: range) -> None:
    for number in range(9):
        kind = "key.released" if number % 2 else "asset.sealed"
        stand.log.append(encode_event(event(kind, actor="lab", target=f"t{number}", now=100 + number)))
    found = [parse_event(leaf).target for leaf in exported(stand, **wanted)]
    assert found == [f"t{number}" for number in indexes]


@pytest.mark.parametrize(
    "wanted", [{"first": -1}, {"first": 3, "last": 2}, {"since": 5, "until": 5}, {"since": 5, "until": 4}]
)
def test_a_range_with_nothing_in_it(wanted: dict[str, Any]) -> None:
    with pytest.raises(Misuse) as caught:
        Wanted(**wanted)
    assert caught.value.code == "audit.range"


def test_nothing_is_exported_of_a_log_that_is_not_right(stand: Stand, tmp_path: Path) -> None:
    stand.write(450)
    other = encode_event(event("asset.sealed", actor="lab", target="another", now=1))
    edits = {
        "audit.root": lambda e: [entry(0, other), *e[1:]] if e[0]["index"] == 400 else e,
        "audit.truncated": lambda e: e if e[0]["index"] < 400 else [],
        "audit.entry": lambda e: [{**one, "leaf": "!"} for one in e],
        "audit.root, too": lambda e: [{**one, "leaf": base64.b64encode(b"{}").decode()} for one in e],
    }
    for code, edit in edits.items():
        stand.edit = edit
        out = io.BytesIO()
        with pytest.raises(CloisterError) as caught:
            operations.export_events(stand.home, "lab", out, Wanted())
        assert (caught.value.code, out.getvalue()) == (code.partition(",")[0], b"")
    assert not (stand.path / "heads").exists(), "no head of it is kept"


def test_an_entry_that_is_no_event_is_told_once_the_log_is_right(stand: Stand) -> None:
    stand.write(2)
    stand.log.append(b"{}")
    out = io.BytesIO()
    with pytest.raises(Malformed) as caught:
        operations.export_events(stand.home, "lab", out, Wanted())
    assert (caught.value.code, out.getvalue()) == ("event.form", b"")
    assert len(exported(stand, last=1)) == 2
