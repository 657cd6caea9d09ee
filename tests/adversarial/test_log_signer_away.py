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
        files = contents(folder)
        device.away = True
        for _ in range(3):
            refused(log, b"never written")
        assert contents(folder) == files
        assert (log.size, log.head(), log.sound) == (before, head, True)
        check_log(folder, ORIGIN, KEY.public, older=head)
        device.away = False
        receipt = log.append(b"after")
        receipt.verify(ORIGIN, KEY.public)
        assert receipt.index == before
        assert log.entries(0, log.size) == [*entries, b"after"]
        check_log(folder, ORIGIN, KEY.public, older=head)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_opening_without_the_device_changes_nothing(tmp_path: Path, device: Device) -> None:
    folder = tmp_path / "log"
    with AuditLog.create(folder, origin=ORIGIN, signer=device) as log:
        log.append_many([b"entry %d" % i for i in range(255)])
        head = log.head()
    device.away = True
    files = contents(folder)
    with pytest.raises(Unavailable):
        AuditLog.open(folder, origin=ORIGIN, signer=device)
    assert contents(folder) == files
    device.away = False
    with AuditLog.open(folder, origin=ORIGIN, signer=device) as log:
        assert (log.size, log.head()) == (255, head)


def test_what_nobody_waits_for_waits_for_the_device(tmp_path: Path, device: Device) -> None:
    """Its caller went on: it must not be lost, and it must not come after what the caller did next."""
    with AuditLog.create(tmp_path / "log", origin=ORIGIN, signer=device) as log:
        device.away = True
        log.append_soon(b"first")
        log.append_soon(b"second")
        refused(log, b"never written")
        with pytest.raises(Unavailable) as caught:
            log.settle()
        assert (caught.value.code, log.size) == ("vault.token", 0)
        log.append_soon(b"third")
        device.away = False
        assert log.append(b"after").index == 3
        assert log.entries(0, 4) == [b"first", b"second", b"third", b"after"]
        asked = device.asked
        log.settle()
        assert device.asked == asked


def test_closing_without_the_device_tells_that_something_is_missing(tmp_path: Path, device: Device) -> None:
    log = AuditLog.create(tmp_path / "log", origin=ORIGIN, signer=device)
    log.append(b"durable")
    device.away = True
    log.append_soon(b"in memory only")
    with pytest.raises(Unavailable) as caught:
        log.close()
    assert caught.value.code == "vault.token"
    log.close()
    device.away = False
    with AuditLog.open(tmp_path / "log", origin=ORIGIN, signer=device) as log:
        assert log.entries(0, log.size) == [b"durable"]


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
        assert log.entries(0, log.size) == [b"after"]
    check_log(tmp_path / "log", ORIGIN, KEY.public)


def test_a_broker_s_change_is_made_once_when_the_device_is_back(tmp_path: Path, device: Device) -> None:
    """What failed was not logged, so it never happened; nothing that was announced is left over."""
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
    for name in ("first try", "second", "second"):
        with pytest.raises(Unavailable) as caught:
            put(name)
        assert caught.value.code == "vault.token"
        assert facts() == ["first"]
    device.away = False
    put("third")
    assert facts() == ["first", "third"]
    assert (log.size, state.intents()) == (2, [])
    state.close()
    log.close()
