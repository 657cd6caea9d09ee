"""State, ledger, sessions, clock and settings, each alone."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloister.audit import AuditLog
from cloister.broker import LIMITS, Settings, steady_clock
from cloister.broker.config import parse_listen
from cloister.broker.ledger import Ledger, reconcile
from cloister.broker.refusals import Refusals
from cloister.broker.sessions import Session, Sessions
from cloister.broker.state import ENTRY, Change, State
from cloister.crypto import SigningKey, random_bytes
from cloister.errors import Denied, Misuse, Unavailable, Untrusted
from tests.broker_world import NOW

pytest_plugins = ["tests.broker_fixtures"]

KEY = SigningKey(b"log key".ljust(32))
ORIGIN = "cloister.invalid/log/hospital"


class Parts:
    """A state and a log in one folder, opened and closed together."""

    def __init__(self, folder: Path, *, create: bool = True) -> None:
        self.folder = folder
        self.state = State.open(folder / "state.db", create=create)
        opener = AuditLog.create if create else AuditLog.open
        self.log = opener(folder / "log", origin=ORIGIN, signer=KEY)
        limits = replace(LIMITS, refusals_per_minute=3, stranger_refusals=2, refusal_buckets=2)
        self.ledger = Ledger(self.state, self.log, lambda: NOW, actor="hospital", log_key=KEY.public, limits=limits)

    def put(self, name: str, value: str) -> None:
        with self.ledger.turn():
            self.ledger.commit("asset.sealed", target=name, details={}, changes=[fact(name, value)])

    def facts(self) -> dict[str, str]:
        return {row["name"]: row["value"] for row in self.state.rows("facts")}

    def close(self) -> None:
        self.state.close()
        self.log.close()


def fact(name: str, value: Any) -> Change:
    return Change("facts", {"name": name, "value": value})


@pytest.fixture
def parts(folder: Path) -> Iterator[Parts]:
    made = Parts(folder)
    yield made
    made.close()


def test_changes_come_with_their_entries(parts: Parts) -> None:
    parts.put("a", "1")
    parts.put("a", "2")
    parts.put("b", "3")
    assert parts.facts() == {"a": "2", "b": "3"}
    progress = parts.state.progress()
    assert (progress.revision, progress.log_size) == (3, parts.log.size)
    assert parts.state.intents() == []
    assert reconcile(parts.state, parts.log, KEY.public) == []


def test_the_entrys_index_can_be_kept(parts: Parts) -> None:
    parts.put("a", "1")
    with parts.ledger.turn():
        receipt = parts.ledger.commit(
            "asset.sealed", target="x", details={}, changes=[Change("permits", {
                "instance": "i", "output": "o", "issued": 5, "entry": ENTRY})],
        )  # fmt: skip
    row = parts.state.row("permits", instance="i")
    assert row is not None
    assert row["entry"] == receipt.index == 1


def test_logged_tables_change_only_through_the_log(parts: Parts) -> None:
    with pytest.raises(Misuse) as refused:
        parts.state.put_hint("facts", {"name": "a", "value": "1"})
    assert refused.value.code == "state.table"
    intent = parts.state.intend([Change("peers", {"name": "lab", "address": "x"})])
    with pytest.raises(Misuse):
        parts.state.apply(intent, 0, 0, bytes(32))
    assert parts.state.rows("peers") == []


@pytest.mark.parametrize(
    ("details", "code"),
    [
        ({"reason": "\ud800"}, "event.details"),
        ({"count": 2**53}, "event.details"),
        ({"reason": "x" * 100_000}, "event.details"),
        ({f"part{n}": "\x00" * 1000 for n in range(60)}, "event.size"),
    ],
)
def test_what_no_entry_can_hold_is_refused_and_breaks_nothing(parts: Parts, details: Any, code: str) -> None:
    parts.put("a", "1")
    size, announced = parts.log.size, parts.state.intend([])
    parts.state.abandon(announced)
    with pytest.raises(Misuse) as refused, parts.ledger.turn():
        parts.ledger.commit("asset.sealed", target="x", details=details, changes=[fact("a", "2")])
    assert (refused.value.code, parts.log.size, parts.state.intents()) == (code, size, [])
    parts.put("b", "3")
    assert parts.facts() == {"a": "1", "b": "3"}
    assert parts.state.progress().revision == announced.revision + 1, "not even a number was used"


def test_numbers_of_abandoned_intents_are_not_used_again(parts: Parts) -> None:
    first = parts.state.intend([fact("a", "1")])
    parts.state.abandon(first)
    assert parts.state.intend([]).revision == first.revision + 1


def test_an_existing_state_is_not_created_over(parts: Parts) -> None:
    for create in (True, False):
        path = parts.folder / ("state.db" if create else "none.db")
        with pytest.raises(Misuse) as refused:
            State.open(path, create=create)
        assert refused.value.code == "state.file"


def test_a_damaged_state_is_refused(parts: Parts) -> None:
    parts.state.put_hint("progress", {"name": "log_root", "value": "zz"})
    with pytest.raises(Untrusted) as refused:
        parts.state.progress()
    assert refused.value.code == "state.damaged"


def test_a_state_that_cannot_be_read(folder: Path) -> None:
    (folder / "state.db").write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(Unavailable) as refused:
        State.open(folder / "state.db", create=False)
    assert refused.value.code == "state.unreachable"


def test_only_tables_of_hints_are_added_to_an_older_home(parts: Parts) -> None:
    """A logged table that is gone was taken away, and must not come back empty."""
    parts.close()
    database = sqlite3.connect(parts.folder / "state.db")
    for table in ("told", "permits"):
        database.execute(f"DROP TABLE {table}")
    database.close()
    again = State.open(parts.folder / "state.db", create=False)
    assert again.rows("told") == []
    with pytest.raises(Unavailable) as refused:
        again.rows("permits")
    assert refused.value.code == "state.unreachable"
    again.close()


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.lists(st.sampled_from(["commit", "intend", "log", "apply"]), min_size=1, max_size=6))
def test_after_a_crash_anywhere_state_and_log_agree(folder: Path, steps: list[str]) -> None:
    """A model: what the log has is in the tables, and nothing else is."""
    place = folder / "crash"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    parts = Parts(place)
    logged = 0
    for number, step in enumerate(steps):
        if step == "commit":
            parts.put("value", str(number))
            logged += 1
            expected = str(number)
            continue
        # The process ends after announcing, after logging, or after applying.
        intent = parts.state.intend([fact("value", str(number))])
        if step != "intend":
            parts.ledger.append("asset.sealed", target="x", details={"revision": intent.revision})
            logged += 1
            expected = str(number)
        if step == "apply":
            from cloister.audit import verify_checkpoint

            head = verify_checkpoint(parts.log.head(), ORIGIN, KEY.public)
            parts.state.apply(intent, head.size - 1, head.size, head.root)
        parts.close()
        parts = Parts(place, create=False)
        reconcile(parts.state, parts.log, KEY.public)
        assert parts.state.intents() == []
    assert parts.log.size == logged
    assert parts.facts() == ({"value": expected} if logged else {})
    parts.close()


def test_refusals_are_logged_within_bounds(parts: Parts) -> None:
    def refuse(about: tuple[bytes, str] | None) -> int:
        before = parts.log.size
        for _ in range(5):
            parts.ledger.refuse("key.refused", Denied("a.b", "No."), target="x", details={}, about=about)
        return parts.log.size - before

    assert refuse(None) == 2
    assert [refuse((b"a", "key")), refuse((b"a", "lease"))] == [3, 3]
    assert [refuse((b"b", "key")), refuse((b"c", "key"))] == [3, 0]  # beyond the bounded number they share one


def test_counts_of_refusals_are_not_lost() -> None:
    refusals = Refusals(replace(LIMITS, refusals_per_minute=1, stranger_refusals=1, refusal_buckets=1))
    assert [refusals.admit(None, now=NOW) for _ in range(3)] == [0, None, None]
    assert refusals.admit(None, now=NOW + 60) == 2
    assert [refusals.admit((b"a", "key"), now=NOW) for _ in range(4)] == [0, None, None, None]
    assert refusals.admit((b"b", "key"), now=NOW + 60) == 0  # the quiet bucket makes room
    assert refusals.admit((b"a", "key"), now=NOW + 60) == 3  # what it had counted is told by the shared one


# Sessions.


class Asked:
    """As much of a request as sessions look at."""

    def __init__(self, contract: bytes, signing: bytes | None = None) -> None:
        self.contract = self
        self.digest = contract
        self.signing = signing or random_bytes(32)


def knock(sessions: Sessions, contract: bytes = b"A", signing: bytes | None = None, *, now: int = NOW) -> str:
    return sessions.open(Session(Asked(contract, signing), now, "nonce"), now=now)  # type: ignore[arg-type]


def prove(sessions: Sessions, cookie: str, *, served: bool) -> str:
    session = sessions.live(cookie, now=NOW)
    sessions.take_challenge(session, "nonce", now=NOW)
    sessions.admit(session, object(), now=NOW)  # type: ignore[arg-type]
    if served:
        session.once("key", lambda: b"secret", limit=1)
    return cookie


def open_ones(sessions: Sessions, cookies: list[str], *, now: int = NOW) -> list[bool]:
    found = []
    for cookie in cookies:
        try:
            found.append(sessions.live(cookie, now=now) is not None)
        except Denied:
            found.append(False)
    return found


def test_a_session_that_attests_makes_a_served_one_of_the_greatest_contract_give_way() -> None:
    sessions = Sessions(replace(LIMITS, sessions=8))
    other = prove(sessions, knock(sessions, b"B"), served=True)
    mine = [prove(sessions, knock(sessions), served=served) for served in (False, True, True)]
    newest = prove(sessions, knock(sessions, b"C"), served=False)
    assert open_ones(sessions, [other, *mine, newest]) == [True, True, False, True, True]


def test_knocks_push_out_the_oldest_knock_of_the_contract_that_has_most_and_nothing_attested() -> None:
    sessions = Sessions(replace(LIMITS, sessions=8))
    attested = [prove(sessions, knock(sessions, contract), served=True) for contract in (b"A", b"B", b"B")]
    other = knock(sessions, b"B")
    mine = [knock(sessions) for _ in range(5)]
    assert open_ones(sessions, [*attested, other]) == [True] * 4
    assert open_ones(sessions, mine) == [False, False, True, True, True]
    late = knock(sessions, b"C")
    assert open_ones(sessions, [other, *mine, late]) == [True, False, False, False, True, True, True]


def test_a_session_that_knocks_push_out_while_its_evidence_is_verified_still_attests() -> None:
    sessions = Sessions(replace(LIMITS, sessions=2))
    cookie = knock(sessions)
    session = sessions.live(cookie, now=NOW)
    sessions.take_challenge(session, "nonce", now=NOW)
    knock(sessions)
    assert open_ones(sessions, [cookie]) == [False]
    sessions.admit(session, object(), now=NOW)  # type: ignore[arg-type]
    assert sessions.attested(cookie, now=NOW)[0] is session


def test_one_key_has_few_sessions_that_wait() -> None:
    sessions = Sessions(LIMITS)
    other = knock(sessions)
    mine = [knock(sessions, signing=b"k" * 32) for _ in range(10)]
    assert open_ones(sessions, [other, *mine]) == [True, False, False] + [True] * 8


def test_sessions_end_by_themselves() -> None:
    sessions = Sessions(replace(LIMITS, sessions=8))
    attested, waiting = prove(sessions, knock(sessions), served=False), knock(sessions)
    knock(sessions, now=NOW + LIMITS.nonce_seconds)
    assert open_ones(sessions, [attested, waiting], now=NOW + LIMITS.nonce_seconds) == [True, False]
    assert open_ones(sessions, [attested], now=NOW + LIMITS.session_seconds) == [False]


def test_an_answer_is_made_once() -> None:
    session = Session(asked=None, opened=NOW, nonce=None)  # type: ignore[arg-type]
    made: list[bytes] = []

    def make() -> bytes:
        made.append(b"x")
        return b"answer"

    assert session.once("a", make, limit=1) == session.once("a", make, limit=1) == b"answer"
    assert made == [b"x"]
    with pytest.raises(Denied):
        session.once("b", make, limit=1)


def test_a_session_hides_in_repr() -> None:
    session = Session(asked=None, opened=NOW, nonce="the nonce")  # type: ignore[arg-type]
    assert "nonce" not in repr(session)


# Clock and settings.


def test_the_clock_never_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.9, 50.0, 101.0])
    monkeypatch.setattr("time.time", lambda: next(times))
    clock = steady_clock()
    assert [clock(), clock(), clock()] == [100, 100, 101]


@pytest.mark.parametrize(("text", "expected"), [("127.0.0.1:0", ("127.0.0.1", 0)), ("[::1]:65535", ("[::1]", 65535))])
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert parse_listen(text) == expected


@pytest.mark.parametrize("text", ["", ":1", "host", "host:", "host:-1", "host:65536", "host:１"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(Misuse):
        parse_listen(text)


def test_a_home_with_too_long_a_path() -> None:
    with pytest.raises(Misuse) as refused:
        _ = Settings(Path("/" + "x" * 100)).admin_socket
    assert refused.value.code == "broker.path"
