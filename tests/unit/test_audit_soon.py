"""Appending without waiting: in order, durable soon, and never behind what comes later."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from cloister.audit import AuditLog, check_log
from cloister.crypto import SigningKey
from cloister.errors import Misuse, Unavailable
from tests.patience import until

ORIGIN = "hospital.example/audit"
KEY = SigningKey(b"\1" * 32)


def create(folder: Path) -> AuditLog:
    return AuditLog.create(folder, origin=ORIGIN, signer=KEY)


def test_it_becomes_durable_by_itself(tmp_path: Path) -> None:
    with create(tmp_path / "log") as log:
        for number in range(3):
            log.append_soon(b"%d" % number)
            until("the entry", lambda number=number: log.size == number + 1)
        assert log.entries(0, 3) == [b"0", b"1", b"2"]
        assert check_log(tmp_path / "log", ORIGIN, KEY.public).checkpoint.size == 3


def test_it_stands_before_what_is_appended_later_and_is_durable_with_it(tmp_path: Path) -> None:
    with create(tmp_path / "log") as log:
        log.append_soon(b"first")
        log.append_soon(b"second")
        receipt = log.append(b"third")
        assert (receipt.index, receipt.verify(ORIGIN, KEY.public).size) == (2, 3)
        assert log.entries(0, 3) == [b"first", b"second", b"third"]


def test_settling_and_closing_wait_for_it(tmp_path: Path) -> None:
    with create(tmp_path / "log") as log:
        log.append_soon(b"first")
        log.settle()
        assert log.size == 1
        log.settle()
        log.append_soon(b"second")
    assert check_log(tmp_path / "log", ORIGIN, KEY.public).checkpoint.size == 2
    with pytest.raises(Misuse) as refused:
        log.append_soon(b"third")
    assert refused.value.code == "audit.closed"


def test_many_threads_lose_nothing(tmp_path: Path) -> None:
    def work(name: int) -> None:
        for number in range(60):
            log.append_soon(b"%d/%d" % (name, number))
            if number % 20 == 0:
                log.append(b"%d/%d/waited" % (name, number))

    with create(tmp_path / "log") as log:
        threads = [threading.Thread(target=work, args=(name,)) for name in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        log.settle()
        found = log.entries(0, log.size)
    assert len(found) == len(set(found)) == 6 * 63
    for name in range(6):
        own = [entry for entry in found if entry.startswith(b"%d/" % name) and not entry.endswith(b"waited")]
        assert own == [b"%d/%d" % (name, number) for number in range(60)]
        for number in (0, 20, 40):
            assert found.index(b"%d/%d" % (name, number)) < found.index(b"%d/%d/waited" % (name, number))


def test_a_write_that_fails_breaks_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = create(tmp_path / "log")
    log.append(b"first")

    def failing(_: int) -> None:
        raise OSError(errno.EIO, "injected")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        log.append_soon(b"lost")
        until("the log to notice", lambda: not log.sound)
    for attempt in (log.append, log.append_soon):
        with pytest.raises(Unavailable) as refused:
            attempt(b"after")
        assert refused.value.code == "audit.unwritable"
    with pytest.raises(Unavailable):
        log.settle()
    assert log.size == 1
    log.close()


def test_what_is_no_entry_is_refused_at_once(tmp_path: Path) -> None:
    with create(tmp_path / "log") as log:
        for entry in (b"", b"x" * 65_536):
            with pytest.raises(Misuse) as refused:
                log.append_soon(entry)
            assert refused.value.code == "log.entry"


def test_only_so_many_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the caller does: memory is bounded, and so is what a crash may lose."""
    monkeypatch.setattr("cloister.audit.log._SOON", 3600.0)
    monkeypatch.setattr("cloister.audit.log._PATIENT", 5)
    with create(tmp_path / "log") as log:
        for number in range(5):
            log.append_soon(b"%d" % number)
        assert log.size == 0
        log.append_soon(b"5")
        assert log.entries(0, log.size) == [b"%d" % number for number in range(6)]


def test_what_comes_while_the_flusher_pauses_is_durable_by_itself_too(tmp_path: Path) -> None:
    """It is not woken for it: it looks at the queue at the end of its pause."""
    with create(tmp_path / "log") as log:
        log.append_soon(b"first")
        log.append(b"second")  # with it, so that the flusher finds nothing
        log.append_soon(b"third")
        until("the entry", lambda: log.size == 3)
        until("the flusher to rest", lambda: log._resting)
        log.append_soon(b"fourth")
        until("the entry", lambda: log.size == 4)
        assert log.entries(0, 4) == [b"first", b"second", b"third", b"fourth"]
