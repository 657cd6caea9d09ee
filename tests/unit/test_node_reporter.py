"""A run's events on their way to the control plane: in order, all of them, and nobody waits for it."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from cloister.errors import Denied
from cloister.node.reporter import Reporter


def _event(number: int) -> dict[str, Any]:
    return {"code": f"step{number}", "kind": "state"}


def test_all_events_arrive_in_order_before_it_is_left() -> None:
    told: list[dict[str, Any]] = []
    with Reporter(told.extend) as reporter:
        for number in range(500):
            reporter.put(_event(number))
    assert told == [_event(number) for number in range(500)]


def test_who_reports_does_not_wait_for_a_slow_control_plane() -> None:
    arrived, answer = threading.Event(), threading.Event()
    batches: list[int] = []

    def slow(events: list[dict[str, Any]]) -> None:
        batches.append(len(events))
        arrived.set()
        assert answer.wait(30)

    with Reporter(slow) as reporter:
        reporter.put(_event(0))
        assert arrived.wait(30)
        for number in range(10):  # the first request is still unanswered, and this goes on
            reporter.put(_event(number))
        assert batches == [1]
        answer.set()
    assert batches == [1, 10]  # what waited went together


def test_a_refused_report_ends_neither_the_run_nor_later_reports(capsys: pytest.CaptureFixture[str]) -> None:
    told: list[dict[str, Any]] = []
    refused, later = threading.Event(), _event(1)

    def tell(events: list[dict[str, Any]]) -> None:
        if not refused.is_set():
            refused.set()
            raise Denied("request.party", "No such node.")
        told.extend(events)

    with Reporter(tell) as reporter:
        reporter.put(_event(0))
        assert refused.wait(30)
        reporter.put(later)
    assert told == [later]
    assert "request.party" in capsys.readouterr().err
