"""What keys were used for, from log entries alone; and what counts as unusual."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.audit import Facts
from cloister.broker.usage import KeyUse, UseTable
from tests.broker_world import NOW, World

pytest_plugins = ["tests.broker_fixtures"]

DIGEST = "ab" * 32
HOUR, DAY = 3600, 86_400
MIDNIGHT = NOW - NOW % DAY


def facts(kind: str, at: int, outcome: Any = "success", **details: str | int) -> Facts:
    return Facts(kind, "hospital", DIGEST, outcome, details, at)


def release(at: int, **details: str | int) -> Facts:
    fields: dict[str, str | int] = {
        "attester": "a1", "instance": "i1", "job": "j1", "kek_epoch": 1, "measurement": "m1", "resource": DIGEST,
        "resource_kind": "asset-key", **details,
    }  # fmt: skip
    return facts("key.released", at, **fields)


def refusal(at: int, **details: str | int) -> Facts:
    return facts("key.refused", at, "failure", resource=f"asset-key/{DIGEST}", code="x.y", **details)


def table(*events: Facts) -> UseTable:
    made = UseTable()
    made.add(0, facts("asset.sealed", MIDNIGHT - 100 * DAY, name="hospital/queries", version=1))
    for entry, event in enumerate(events, 1):
        made.add(entry, event)
    return made


def marks(*events: Facts) -> list[tuple[str, int]]:
    return [(mark.rule, mark.entry) for mark in table(*events).assets[DIGEST].marks]


def ordinary(days: int = 5, each: int = 2) -> list[Facts]:
    """Some releases at nine and ten every day."""
    return [release(MIDNIGHT + day * DAY + (9 + n) * HOUR) for day in range(days) for n in range(each)]


def test_a_row_tells_what_happened() -> None:
    made = table(release(NOW), release(NOW + 5, instance="i2"), refusal(NOW + 6), facts("asset.opened", NOW + 7))
    row = made.assets[DIGEST].document()
    shown = {k: row[k] for k in ("name", "version", "releases", "refused", "opened", "jobs", "instances")}
    assert shown == {
        "name": "hospital/queries", "version": 1, "releases": 2, "refused": 1, "opened": 1, "jobs": 1, "instances": 2,
    }  # fmt: skip
    assert (row["first"], row["last"], row["last_job"]) == (NOW, NOW + 7, "j1")
    (kek,) = made.keks.values()
    assert (kek.name, kek.releases, kek.jobs) == ("1", 2, {"j1"})


def test_events_about_other_things_and_other_assets_count_nowhere() -> None:
    other = release(NOW, resource="cd" * 32)
    share = release(NOW, resource_kind="state-share")
    made = table(other, share, facts("lease.renewed", NOW), facts("key.refused", NOW, "failure", resource="odd"))
    assert made.assets[DIGEST].document()["releases"] == 0
    assert set(made.assets) == {DIGEST}
    assert made.keks == {}


def test_shredding_is_told_and_a_refused_one_is_not() -> None:
    refused = facts("asset.shredded", NOW, "failure", code="asset.held")
    assert table(refused).assets[DIGEST].shredded == 0
    assert table(facts("asset.shredded", NOW, digests0=DIGEST)).assets[DIGEST].shredded == NOW
    two = facts("asset.expired", NOW, digests0="cd" * 32 + DIGEST)
    assert table(two).assets[DIGEST].shredded == NOW


def test_ordinary_use_is_not_marked() -> None:
    assert marks(*ordinary(40)) == []


def test_an_hour_of_the_day_without_a_release_before() -> None:
    night = MIDNIGHT + 5 * DAY + 3 * HOUR
    assert marks(*ordinary(), release(night)) == [("hour", 11)]
    (mark,) = table(*ordinary(), release(night)).assets[DIGEST].marks
    assert "between 03:00 and 03:59 UTC" in mark.words
    assert marks(*ordinary(), release(night), release(night + DAY)) == [("hour", 11)], "by then it was seen"
    assert marks(*ordinary(2), release(night)) == [], "too little past to compare with"


@pytest.mark.parametrize("what", ["measurement", "attester"])
def test_a_platform_that_was_never_seen(what: str) -> None:
    assert marks(release(NOW, **{what: "x"})) == [], "the first one has nothing to differ from"
    assert marks(release(NOW), release(NOW + 1, **{what: "new"})) == [(what, 2)]
    assert marks(release(NOW), release(NOW + 1, **{what: "new"}), release(NOW + 2, **{what: "new"})) == [(what, 2)]


def test_a_crowd_of_releases_in_one_hour() -> None:
    nine = MIDNIGHT + 6 * DAY + 9 * HOUR
    usual = ordinary(6)  # one an hour at most, so four are more than three times that
    assert marks(*usual, *(release(nine + n) for n in range(3))) == []
    assert marks(*usual, *(release(nine + n) for n in range(9))) == [("crowd", 16)], "marked once, when it crosses"
    assert marks(*(release(NOW + n) for n in range(50))) == [], "the first hour has nothing to be compared with"


def test_a_use_after_a_long_rest() -> None:
    assert marks(release(MIDNIGHT), release(MIDNIGHT + 91 * DAY)) == [("rest", 2)]


def test_a_burst_of_refusals_with_those_that_were_only_counted() -> None:
    assert marks(*(refusal(NOW + n) for n in range(10))) == []
    assert marks(*(refusal(NOW + n) for n in range(30))) == [("refusals", 11)]
    assert marks(refusal(NOW), refusal(NOW + 1, suppressed_before=500)) == [("refusals", 2)]
    hours = [refusal(NOW + hour * HOUR + n) for hour in range(2) for n in range(25)]
    assert marks(*hours) == [("refusals", 11)], "as many as in an hour before are a burst no more"


def test_marks_are_bounded_and_all_counted() -> None:
    made = table(release(NOW), *(release(NOW + n, measurement=f"m{n}") for n in range(2, 100)))
    row = made.assets[DIGEST]
    assert (len(row.marks), row.marked) == (50, 98)
    assert row.marks[-1].entry == 99


@given(st.lists(st.tuples(st.integers(0, 400), st.sampled_from(["m1", "m2"])), max_size=60), st.integers(0, 60))
def test_step_by_step_is_as_all_at_once(uses: list[tuple[int, str]], cut: int) -> None:
    events = [release(MIDNIGHT + hour * HOUR, measurement=m) for hour, m in sorted(uses)]
    whole, parts = table(*events), table(*events[:cut])
    for entry, event in enumerate(events[cut:], cut + 1):
        parts.add(entry, event)
    assert [row.document() for row in whole.rows()] == [row.document() for row in parts.rows()]
    assert whole.assets[DIGEST].releases == len(events)


def test_a_broker_reads_its_own_log(world: World) -> None:
    usage = world.hospital.broker.lifecycle.usage
    before = {row["digest"]: row for row in usage.document()["keys"]}
    assert before[world.data.digest.hex()]["releases"] == 0
    first = world.workload().run()
    rows = usage.document()
    row = {r["digest"]: r for r in rows["keys"] if r["kind"] == "asset"}[world.data.digest.hex()]
    assert (row["releases"], row["jobs"], row["instances"]) == (1, 1, 1)
    assert row["last_job"] == first.job.digest.hex()
    assert [r["name"] for r in rows["keys"] if r["kind"] == "kek"] == ["1"]
    assert rows["log_size"] == world.hospital.broker.core.ledger.log.size


def test_rows_of_several_assets_are_sorted() -> None:
    made = UseTable()
    made.assets = {"b": KeyUse("asset", "hospital/b", "b", 1), "a": KeyUse("asset", "hospital/a", "a", 2)}
    made.keks = {2: KeyUse("kek", "2"), 1: KeyUse("kek", "1")}
    assert [row.name for row in made.rows()] == ["hospital/a", "hospital/b", "1", "2"]
