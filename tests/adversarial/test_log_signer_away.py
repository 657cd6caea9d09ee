"""The device that signs the log's heads is taken out while entries are written: nothing is lost, forked or told twice,
and the log goes on by itself when the device is back."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from cloister.audit import AuditLog, check_log
from cloister.broker import LIMITS
from cloister.broker.ledger import Ledger
from cloister.broker.state import Change, State
from cloister.crypto import SigningKey
from cloister.errors import Unavailable

ORIGIN = "hospital.example/audit"
KEY = SigningKey(b"\1" * 32)


class Device:
    """A ``Signer`` whose key can be taken out."""

    public = KEY.public

    def __init__(self) -> None:
        self.away = False
        self.asked = 0
        self.hold: threading.Event | None = None

    def sign(self, message: bytes) -> bytes:
        self.asked += 1
        if self.hold is not None:
            self.hold.wait(20)
        if self.away:
            raise Unavailable("vault.token", "The token can't be reached; put it back and try again.")
        return KEY.sign(message)


@pytest.fixture
def device() -> Device:
    return Device()


def refused(log: AuditLog, entry: bytes) -> None:
    with pytest.raises(Unavailable) as caught:
        log.append(entry)
    assert caught.value.code == "vault.token"


@pytest.mark.parametrize("before", [0, 1, 254, 255, 256, 511])
def test_the_log_goes_on_when_the_device_is_back(tmp_path: Path, device: Device, before: int) -> None:
    folder = tmp_path / "log"
    with AuditLog.create(folder, origin=ORIGIN, signer=device) as log:
        entries = [b"entry %d" % i for i in range(before)]
        for entry in entries:
            log.append(entry)
        head = log.head()
        device.away = True
        refused(log, b"in doubt")
        journal = (folder / "journal").read_bytes()
        for _ in range(3):
            refused(log, b"never written")
            with pytest.raises(Unavailable):
                log.settle()
        assert (folder / "journal").read_bytes() == journal
        assert (log.size, log.head(), log.sound) == (before, head, True)
        check_log(folder, ORIGIN, KEY.public, older=head)
        device.away = False
        receipt = log.append(b"after")
        receipt.verify(ORIGIN, KEY.public)
        assert receipt.index == before + 1
        assert log.entries(0, log.size) == [*entries, b"in doubt", b"after"]
        check_log(folder, ORIGIN, KEY.public, older=head)


def test_settling_signs_what_is_owed_and_nothing_else(tmp_path: Path, device: Device) -> None:
    with AuditLog.create(tmp_path / "log", origin=ORIGIN, signer=device) as log:
        device.away = True
        refused(log, b"in doubt")
        device.away = False
        log.settle()
        assert (log.size, log.entry(0)) == (1, b"in doubt")
        asked = device.asked
        log.settle()
        assert device.asked == asked


def test_a_restart_meanwhile_keeps_the_entry_in_its_place(tmp_path: Path, device: Device) -> None:
    folder = tmp_path / "log"
    with AuditLog.create(folder, origin=ORIGIN, signer=device) as log:
        log.append_many([b"entry %d" % i for i in range(255)])
        head = log.head()
        device.away = True
        refused(log, b"in doubt")
    with pytest.raises(Unavailable):
        AuditLog.open(folder, origin=ORIGIN, signer=device)
    device.away = False
    with AuditLog.open(folder, origin=ORIGIN, signer=device) as log:
        assert (log.size, log.entry(255)) == (256, b"in doubt")
    check_log(folder, ORIGIN, KEY.public, older=head)


def test_everybody_who_waits_is_told_and_nobody_s_entry_is_written_behind_their_back(
    tmp_path: Path, device: Device
) -> None:
    with AuditLog.create(tmp_path / "log", origin=ORIGIN, signer=device) as log:
        device.hold, device.away = threading.Event(), True
        told: list[str] = []

        def work(number: int) -> None:
            try:
                log.append(b"%d" % number)
            except Unavailable as error:
                told.append(error.code)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        device.hold.set()
        for thread in threads:
            thread.join()
        assert told == ["vault.token"] * 6
        device.hold, device.away = None, False
        log.append(b"after")
        found = log.entries(0, log.size)
        assert found[-1] == b"after"
        assert 2 <= len(found) <= 7  # those of the first commit, which were in the journal already
    check_log(tmp_path / "log", ORIGIN, KEY.public)


def test_a_broker_s_change_is_made_once_when_the_device_is_back(tmp_path: Path, device: Device) -> None:
    """It was logged, and its caller was told that it failed: the state follows the log, not the caller."""
    state = State.open(tmp_path / "state.db", create=True)
    log = AuditLog.create(tmp_path / "log", origin=ORIGIN, signer=device)
    ledger = Ledger(state, log, lambda: 1, actor="hospital", log_key=KEY.public, limits=LIMITS)

    def put(name: str) -> None:
        with ledger.turn():
            change = Change("facts", {"name": name, "value": "x"})
            ledger.commit("asset.sealed", target=name, details={}, changes=[change])

    def facts() -> list[str]:
        return sorted(row["name"] for row in state.rows("facts"))

    put("first")
    device.away = True
    for name in ("doubtful", "second", "second"):
        with pytest.raises(Unavailable) as caught:
            put(name)
        assert caught.value.code == "vault.token"
        assert facts() == ["first"]
    assert len(state.intents()) == 1
    device.away = False
    put("third")
    assert facts() == ["doubtful", "first", "third"]
    assert (log.size, state.intents()) == (3, [])
    state.close()
    log.close()
