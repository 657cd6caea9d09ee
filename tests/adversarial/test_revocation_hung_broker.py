"""A broker or a node that neither answers nor refuses must not stretch a lease: the run ends at the deadline."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from cloister.errors import CloisterError, Denied, Unavailable
from cloister.workload import leases as leases_module
from cloister.workload.identity import KeyRing
from cloister.workload.key_session import Lease, boottime
from cloister.workload.leases import EXIT_LEASE_LOST, LEASE_CODES, LeaseKeeper
from tests.keepers import join_keepers


class Process:
    """Stands in for the process that ends: ``os._exit`` is only noted, and returns."""

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.over = threading.Event()

    def exit(self, code: int) -> None:
        self.codes.append(code)
        self.over.set()


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[Process]:
    made = Process()
    monkeypatch.setattr(leases_module.os, "_exit", made.exit)
    monkeypatch.setattr(leases_module, "_TELL_SECONDS", 0.2)
    monkeypatch.setattr(leases_module, "_RETRY_SECONDS", 0.05)
    yield made
    join_keepers()


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Every renewal waits for an answer that does not come until the test is over."""
    answer = threading.Event()

    def hang(_: object) -> list[str]:
        answer.wait(60)
        raise Unavailable("broker.unreachable", "The broker does not answer.")

    monkeypatch.setattr(leases_module, "gather_statements", hang)
    yield answer
    answer.set()


def keeper(seconds: float, on_lost: Any = lambda _: None) -> tuple[LeaseKeeper, KeyRing]:
    ring = KeyRing()
    ring.put("k", b"k" * 32)
    run: Any = SimpleNamespace(contract=SimpleNamespace(lease_seconds=30))
    return LeaseKeeper(run, ring, {"lab": Lease(0, boottime() + seconds)}, on_lost=on_lost), ring


def test_a_broker_that_hangs_does_not_hold_the_run_up(process: Process, hanging: threading.Event) -> None:
    told: list[CloisterError] = []
    kept, ring = keeper(0.4, told.append)
    kept.start()
    assert process.over.wait(30)
    assert process.codes == [EXIT_LEASE_LOST]
    assert [error.code for error in told] == ["lease.expired"]
    assert repr(ring) == "KeyRing(0 keys)"
    with pytest.raises(Denied):
        kept.check()


def test_a_node_that_does_not_listen_does_not_keep_the_process_alive(
    process: Process, hanging: threading.Event
) -> None:
    kept, ring = keeper(0.2, lambda _: hanging.wait(60))
    kept.start()
    assert process.over.wait(30)
    assert process.codes == [EXIT_LEASE_LOST]
    assert repr(ring) == "KeyRing(0 keys)"


def test_a_run_that_is_over_is_not_ended_by_its_leases(
    process: Process, hanging: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [boottime()]
    monkeypatch.setattr(leases_module, "boottime", lambda: now[0])
    kept, ring = keeper(5)
    kept.start()
    kept.stop()
    now[0] += 60
    hanging.set()  # a renewal that was under way fails after all
    join_keepers()
    assert process.codes == []
    assert repr(ring) == "KeyRing(1 keys)"


def test_whoever_comes_second_lets_the_first_say_why(process: Process, hanging: threading.Event) -> None:
    """The training thread notices the lost lease while another thread is ending the process."""
    speaking, spoken = threading.Event(), threading.Event()

    def on_lost(_: CloisterError) -> None:
        speaking.set()
        spoken.wait(30)

    kept, _ = keeper(0.1, on_lost)
    kept.start()
    assert speaking.wait(30)
    kept.stop()
    spoken.set()
    assert process.over.wait(30)
    assert set(process.codes) == {EXIT_LEASE_LOST}


def test_a_request_is_repeated_while_the_lease_runs(process: Process) -> None:
    kept, _ = keeper(30)
    answers: list[Any] = [Unavailable("broker.unreachable", "Away."), Unavailable("tls.handshake", "Away."), "receipt"]

    def ask() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    assert kept.patiently(ask) == "receipt"
    assert answers == []


def test_a_request_is_not_repeated_after_the_lease_nor_after_a_refusal(process: Process) -> None:
    def away() -> None:
        raise Unavailable("broker.unreachable", "Away.")

    def refuse() -> None:
        raise Denied("contract.revoked", "The contract was revoked.")

    kept, _ = keeper(0.2)
    with pytest.raises(Denied) as caught:
        kept.patiently(away)
    assert caught.value.code == "lease.expired"
    kept, _ = keeper(30)
    with pytest.raises(Denied) as caught:
        kept.patiently(refuse)
    assert caught.value.code in LEASE_CODES
