"""What else is done to a vault's roots: a new master key, and the end of what a device holds beside the file."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from cloister.audit import parse_event
from cloister.broker import Broker, Limits, Settings, create_home
from cloister.broker.rootkeys import check_shares
from cloister.broker.rotation import fact
from cloister.broker.state import Change
from cloister.broker.sweeping import decide_sweep
from cloister.broker.wrapped import unwrap_secret
from cloister.client.recovery import restore_secret_root
from cloister.errors import Denied, Misuse, Unavailable, Untrusted
from cloister.keys import CHECKPOINT, open_vault, restore_root, split_root
from tests.broker_party import PASSPHRASE, FakeClock, Party
from tests.broker_world import World, nothing_granted
from tests.folder_driver import PIN, Device, FolderDriver
from tests.folder_driver import device as device

pytest_plugins = ["tests.broker_fixtures"]

NOTHING = {"assets": [], "destroyed": 0, "kept": 0, "keys": 0, "remains": [], "roots": 0}


def owner_of(broker: Broker) -> TestClient:
    return TestClient(broker.owner_app(), base_url="http://broker", raise_server_exceptions=False)


def code_of(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


@pytest.fixture
def broker(tmp_path: Path, device: Device) -> Iterator[Broker]:
    settings = Settings(tmp_path / "home", vault_driver=device.config, limits=Limits(heads_interval=3600.0))
    create_home(settings, "hospital", PIN, part_of=None, clock=FakeClock())
    broker = Broker.start(settings, PIN, clock=FakeClock())
    yield broker
    broker.close()


def log_of(broker: Broker, kind: str) -> list[tuple[str, Any]]:
    log = broker.core.ledger.log
    facts = [parse_event(entry) for entry in log.entries(0, log.size)]
    return [(f.outcome, f.details.get("stage", f.details.get("code"))) for f in facts if f.kind == kind]


def details_of(broker: Broker, kind: str) -> list[Any]:
    log = broker.core.ledger.log
    facts = [parse_event(entry) for entry in log.entries(0, log.size)]
    return [f.details for f in facts if f.kind == kind]


def until(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# A new master key.


def test_a_new_master_key_over_the_socket(world: World) -> None:
    party = world.hospital
    owner, vault = owner_of(party.broker), party.broker.lifecycle.vault
    party.broker.lifecycle.roots.split(2, 3)
    with nothing_granted(party):
        assert code_of(owner.post("/v1/keys/rekey", json={"credential": None})) == (400, "rekey.credential")
        assert code_of(owner.post("/v1/keys/rekey", json={"credential": "no"})) == (403, "vault.passphrase")
        assert code_of(owner.post("/v1/keys/rekey", json={"credential": None, "x": 1})) == (400, "form.unknown")
    before = vault.revision
    answer = owner.post("/v1/keys/rekey", json={"credential": PASSPHRASE.decode()}).json()
    assert answer["revision"] == vault.revision == before + 1
    assert any("passphrase or the recovery shares of their time" in sentence for sentence in answer["remains"])
    assert vault._held().document.recovery is None
    stages = [(f.outcome, f.details.get("stage")) for f in party.log() if f.kind == "vault.rekeyed"]
    assert stages == [("failure", None), ("success", "begun"), ("success", "done")]
    assert fact(party.broker.core.ledger, "vault_revision") == vault.revision


def test_a_device_needs_no_credential(broker: Broker, device: Device) -> None:
    held = device.held()
    answer = owner_of(broker).post("/v1/keys/rekey", json={"credential": None})
    assert answer.status_code == 200
    assert len(held - device.held()) == len(device.held() - held) == 1, "one root key for another"


def test_a_device_that_is_away_keeps_its_key(broker: Broker, device: Device) -> None:
    held, raw = device.held(), broker.settings.vault.read_bytes()
    with device.gone("create"), pytest.raises(Unavailable):
        broker.lifecycle.roots.rekey(b"")
    assert (device.held(), broker.settings.vault.read_bytes()) == (held, raw)
    assert [stage for _, stage in log_of(broker, "vault.rekeyed")] == ["begun"]


# What the device holds and the file does not name.


def left_behind(broker: Broker, device: Device) -> bytes:
    """As a crash between device and file leaves it."""
    before = device.held()
    broker.lifecycle.vault._held().driver.create(broker.lifecycle.vault.kek_id, 9)
    (handle,) = device.held() - before
    return handle


def test_sweeping_destroys_what_was_shown(broker: Broker, device: Device) -> None:
    owner, held = owner_of(broker), device.held()
    found = owner.get("/v1/keys/orphans").json()
    assert (found["orphans"], found["witnessed"]) == (0, False)
    assert owner.post("/v1/keys/sweep", json={"which": found["which"]}).json() == NOTHING
    assert log_of(broker, "vault.swept") == [], "nothing was done, so nothing is said"
    left_behind(broker, device)
    found = owner.get("/v1/keys/orphans").json()
    assert found["orphans"] == 1
    assert owner.post("/v1/keys/sweep", json={"which": found["which"]}).json() == {**NOTHING, "destroyed": 1, "keys": 1}
    assert device.held() == held
    assert log_of(broker, "vault.swept") == [("success", "begun"), ("success", "done")]


def test_what_was_not_shown_is_not_swept(broker: Broker, device: Device) -> None:
    """Another copy of the file, or somebody else, made a key since the owner looked."""
    left_behind(broker, device)
    which = broker.lifecycle.roots.orphans()["which"]
    left_behind(broker, device)
    held = device.held()
    with pytest.raises(Misuse) as refused:
        broker.lifecycle.roots.sweep(which)
    assert refused.value.code == "sweep.changed"
    assert device.held() == held
    assert log_of(broker, "vault.swept") == []


def test_an_older_file_sweeps_nothing(broker: Broker, device: Device) -> None:
    left_behind(broker, device)
    which, held, ledger = broker.lifecycle.roots.orphans()["which"], device.held(), broker.core.ledger
    newer = Change("facts", {"name": "vault_revision", "value": str(broker.lifecycle.vault.revision + 1)})
    with ledger.turn():
        ledger.commit("kek.destroyed", target="hospital", details={}, changes=[newer])
    with pytest.raises(Untrusted) as refused:
        broker.lifecycle.roots.sweep(which)
    assert refused.value.code == "vault.rollback"
    assert device.held() == held
    assert log_of(broker, "vault.swept") == [("failure", "vault.rollback")]


def test_a_device_that_goes_away_in_the_middle_of_sweeping(broker: Broker, device: Device) -> None:
    left_behind(broker, device)
    which = broker.lifecycle.roots.orphans()["which"]
    with device.gone("destroy"), pytest.raises(Unavailable):
        broker.lifecycle.roots.sweep(which)
    assert log_of(broker, "vault.swept") == [("success", "begun"), ("failure", "broken off")]
    assert broker.lifecycle.roots.sweep(which)["destroyed"] == 1, "the same again"


def test_a_device_that_goes_away_after_the_first_key(broker: Broker, device: Device) -> None:
    """The log tells how many died of which kind, and the same command goes on with the rest."""
    owner, driver = owner_of(broker), broker.lifecycle.vault._held().driver
    left_behind(broker, device)
    driver.create(broker.lifecycle.vault._held().document.vault.hex(), 1)
    found, real = owner.get("/v1/keys/orphans").json(), driver.destroy
    assert (found["roots"], found["keys"]) == (1, 1)

    def once(handle: bytes) -> str | None:
        device.fails["destroy"] = Unavailable("device.gone", "The device can't be reached; connect it again.")
        driver.destroy = real  # type: ignore[method-assign]
        return FolderDriver(device.folder).destroy(handle)

    driver.destroy = once  # type: ignore[method-assign]
    assert code_of(owner.post("/v1/keys/sweep", json={"which": found["which"]})) == (503, "device.gone")
    told = details_of(broker, "vault.swept")[-1]
    assert (told["roots"], told["keys"], told["code"]) == (1, 0, "device.gone")
    assert any("holds 1 keys" in note for note in broker.notes())
    device.fails.clear()
    found = owner.get("/v1/keys/orphans").json()
    answer = owner.post("/v1/keys/sweep", json={"which": found["which"]}).json()
    assert (answer["roots"], answer["keys"]) == (0, 1)


def test_a_key_that_came_into_the_file_meanwhile_is_not_counted(
    broker: Broker, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device has made the key of a rotation, and the file does not name it yet."""
    vault, roots = broker.lifecycle.vault, broker.lifecycle.roots
    before = device.held()
    vault.rotate_kek()
    (fresh,) = device.held() - before
    which = decide_sweep([fresh], [], vault.epochs(), []).which
    real = vault.orphans
    answers = [(fresh,)]  # as it was a moment ago
    monkeypatch.setattr(vault, "orphans", lambda: answers.pop() if answers else real())
    assert roots.sweep(which) == NOTHING
    assert fresh in device.held()
    assert details_of(broker, "vault.swept")[-1]["keys"] == 0


# An older backup was restored on the same device.


def an_older_backup(broker: Broker, device: Device, folder: Path, *, sealed: bool) -> tuple[Broker, bytes, list[str]]:
    """Restored over a file with a newer KEK; that file, and its shares. ``sealed``: an asset is under the KEK."""
    settings, party = broker.settings, Party.__new__(Party)
    shares = broker.lifecycle.roots.split(2, 3)
    backup = settings.vault.read_bytes()
    broker.lifecycle.rotation.rotate()
    party.name, party.clock, party.broker = "hospital", FakeClock(), broker
    if sealed:
        party.seal(folder, "hospital/rows", "dataset")
    broker.close()
    newest = settings.vault.read_bytes()
    settings.vault.write_bytes(backup)
    options = [f"{name}={value}" for name, value in device.config.options.items()]
    told = restore_secret_root(settings.vault, shares[:2], PIN.decode(), driver="pkcs11", options=options)
    assert any("keeps them while keys are under them" in note for note in told["notes"]) is sealed
    return Broker.start(settings, PIN, clock=FakeClock()), newest, shares


def test_sweeping_after_an_older_backup_keeps_the_keks_that_rows_need(
    broker: Broker, device: Device, folder: Path
) -> None:
    broker, newest, shares = an_older_backup(broker, device, folder / "s", sealed=True)
    keks = {name for name in device.held() if b"_2." in name}
    with pytest.raises(Denied) as refused:
        broker.lifecycle.rotation.rotate()
    assert refused.value.code == "vault.copies"
    owner = owner_of(broker)
    found = owner.get("/v1/keys/orphans").json()
    assert (found["roots"], found["keys"], found["kept"]) == (1, 0, 1)
    assert found["assets"] == ["hospital/rows version 1"]
    answer = owner.post("/v1/keys/sweep", json={"which": found["which"]}).json()
    assert (answer["roots"], answer["keys"], answer["kept"], answer["assets"]) == (1, 0, 1, ["hospital/rows version 1"])
    assert keks <= device.held()
    until(lambda: not broker.lifecycle.rotation.pending)  # the root key alone was in its way
    row = broker.core.assets.newest("hospital/rows")
    broker.close()
    assert row is not None
    path = folder / "found.json"
    path.write_bytes(newest)
    restore_root(path, shares[:2], PIN, driver=device.config)
    with open_vault(path, PIN, driver=device.config) as vault:
        assert len(unwrap_secret(vault, "assets", row)) == 32, "the newer file opens it, once it is found"


def test_sweeping_after_an_older_backup_without_such_rows_destroys_all(
    broker: Broker, device: Device, folder: Path
) -> None:
    broker, _, _ = an_older_backup(broker, device, folder / "s", sealed=False)
    roots = broker.lifecycle.roots
    found = roots.orphans()
    assert (found["roots"], found["keys"], found["kept"]) == (1, 1, 0)
    assert roots.sweep(found["which"])["destroyed"] == 2
    assert not broker.lifecycle.vault.orphans()
    broker.close()


def test_versions_that_are_shredded_hold_no_sweep_up(broker: Broker, device: Device, folder: Path) -> None:
    broker, _, _ = an_older_backup(broker, device, folder / "s", sealed=True)
    broker.lifecycle.shredder.shred("hospital/rows", None, "lost")
    assert broker.lifecycle.roots.orphans()["kept"] == 0
    broker.close()


def test_a_refused_destruction_is_not_announced_and_is_logged_once(broker: Broker, device: Device) -> None:
    life = broker.lifecycle
    life.vault._held().driver.create(life.vault._held().document.vault.hex(), 1)
    life.rotation.begin("demand")
    for _ in range(3):
        life.keeper.look()
    assert log_of(broker, "kek.rotation") == [("success", None), ("failure", "vault.copies")]
    assert any("copy of its file" in note for note in broker.notes())
    woken: list[bool] = []
    life.keeper.wake = lambda: woken.append(True)  # type: ignore[method-assign]
    found = owner_of(broker).get("/v1/keys/orphans").json()
    owner_of(broker).post("/v1/keys/sweep", json={"which": found["which"]})
    assert woken == [True], "the rotation does not wait for the next round"
    life.keeper.look()
    assert not life.rotation.pending
    assert log_of(broker, "kek.rotation")[-1] == ("success", "destroying")


def test_a_device_that_lists_nothing_destroys_no_kek(broker: Broker) -> None:
    """No right to list is not the same as no other root key."""
    life = broker.lifecycle
    life.vault.rotate_kek()
    life.vault._held().driver.list = lambda _: ()  # type: ignore[method-assign]
    for attempt in (lambda: life.vault.destroy_epoch(1), life.vault.check_sole):
        with pytest.raises(Denied) as refused:
            attempt()
        assert refused.value.code == "vault.unlisted"
    assert life.vault.epochs() == (1, 2)


def test_the_status_of_keys_tells_of_orphans(broker: Broker, device: Device) -> None:
    left_behind(broker, device)
    broker.lifecycle.roots.count_orphans()
    notes = owner_of(broker).get("/v1/keys/rotation").json()["notes"]
    assert any("cloister key sweep" in note for note in notes)


# The turn, and who waits for it.


def test_a_slow_device_does_not_hold_the_turn_while_checkpoints_are_destroyed(broker: Broker, device: Device) -> None:
    life, go, inside = broker.lifecycle, threading.Event(), threading.Event()
    before = life.vault.secret(CHECKPOINT)

    def slow(operation: str) -> None:
        if operation == "create":
            inside.set()
            go.wait(30)

    life.vault._held().driver._before = slow  # type: ignore[attr-defined]
    rotating = threading.Thread(target=life.vault.rotate_kek)
    rotating.start()
    inside.wait(10)
    shredding = threading.Thread(target=lambda: life.roots.shred_checkpoints("leaked"))
    shredding.start()
    try:
        until(lambda: fact(broker.core.ledger, "checkpoints") is not None)
        with broker.core.ledger.turn():
            assert not go.is_set(), "a release or renewal gets its turn"
        with broker.core.ledger.turn(), pytest.raises(Denied) as refused:
            check_shares(broker.core.ledger)
        assert refused.value.code == "checkpoints.shredding"
        life.roots.resume()  # the keeper does not wait for it, either
    finally:
        go.set()
        rotating.join(30)
        shredding.join(30)
    assert life.vault.secret(CHECKPOINT) != before
    assert log_of(broker, "checkpoints.shredded") == [("success", "begun"), ("success", "done")]


def test_shares_that_are_handed_out_are_not_dead(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rekeying waits until a split has come to its end."""
    party, roots = world.hospital, world.hospital.broker.lifecycle.roots
    threads: list[threading.Thread] = []

    def split(*given: Any) -> list[str]:
        made = split_root(*given)
        threads.append(threading.Thread(target=roots.rekey, args=(PASSPHRASE,)))
        threads[0].start()
        threads[0].join(0.3)
        return made

    monkeypatch.setattr("cloister.broker.rootkeys.split_root", split)
    roots.split(2, 3)
    threads[0].join(30)
    stages = [(f.kind, f.details.get("stage")) for f in party.log() if f.kind in ("vault.split", "vault.rekeyed")]
    assert stages == [
        ("vault.split", None),
        ("vault.split", "made"),
        ("vault.rekeyed", "begun"),
        ("vault.rekeyed", "done"),
    ]


def test_a_vault_in_a_file_has_no_orphans(world: World) -> None:
    roots = world.hospital.broker.lifecycle.roots
    with nothing_granted(world.hospital):
        assert roots.orphans()["orphans"] == 0
        assert roots.sweep(roots.orphans()["which"]) == NOTHING
