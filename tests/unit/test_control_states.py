"""A job's life, and events that have no room for free text."""

from __future__ import annotations

from typing import Any

import pytest

from cloister.control.states import FINAL, STATES, check_transition, read_error, read_event, read_timings
from cloister.errors import Malformed, Misuse

PROGRESS: dict[str, Any] = {
    "kind": "progress",
    "stage": "train",
    "step": 3,
    "total": 10,
    "values": {"loss": "0.1234", "eval.accuracy": "nan"},
}
ERROR: dict[str, Any] = {"code": "x.y", "details": {"n": 1}, "kind": "denied", "message": "No."}


@pytest.mark.parametrize("new", [*sorted(FINAL), "queued"])
def test_a_running_job_may_end_or_be_tried_again(new: str) -> None:
    check_transition("running", new)


@pytest.mark.parametrize("old", sorted(FINAL))
@pytest.mark.parametrize("new", STATES)
def test_a_final_state_is_final(old: str, new: str) -> None:
    with pytest.raises(Misuse) as caught:
        check_transition(old, new)
    assert caught.value.code == "job.state"


def test_a_queued_job_does_not_succeed() -> None:
    with pytest.raises(Misuse):
        check_transition("queued", "succeeded")


def test_events_of_the_two_forms_pass_unchanged() -> None:
    assert read_event(PROGRESS) == PROGRESS
    assert read_event({"kind": "state", "code": "launched"}) == {"kind": "state", "code": "launched"}
    failed = {"kind": "state", "code": "failed", "error": ERROR}
    assert read_event(failed) == failed


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "log"},
        {"stage": "row: Jane Doe has"},
        {"stage": "x" * 65},
        {"values": {"loss": "Jane Doe"}},
        {"values": {"loss": 0}},
        {"values": {"a name with spaces": "1"}},
        {"values": {f"m{i}": "1" for i in range(65)}},
        {"step": "3"},
        {"note": "free text"},
    ],
)
def test_free_text_finds_no_room(change: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        read_event({**PROGRESS, **change})


@pytest.mark.parametrize("code", ["Jane Doe", "", "x" * 65, None])
def test_codes_are_codes(code: Any) -> None:
    with pytest.raises(Malformed) as caught:
        read_event({"kind": "state", "code": code})
    assert caught.value.code == "event.form"


@pytest.mark.parametrize(
    "change",
    [{"message": "x" * 1001}, {"details": {"x": [1]}}, {"details": {"x": "y" * 300}}, {"code": "A B"}, {"z": 1}],
)
def test_errors_are_bounded(change: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        read_error({**ERROR, **change})


def test_timings_are_decimal_seconds() -> None:
    assert read_timings(None) == {}
    assert read_timings({"train": "1.5", "prepare": 2}) == {"train": "1.5", "prepare": "2"}
    for bad in ({"train": "long"}, {"Jane Doe": "1"}, {"train": True}, ["1"]):
        with pytest.raises(Malformed):
            read_timings(bad)
