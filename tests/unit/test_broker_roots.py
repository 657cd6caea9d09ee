"""What else is done to a vault's roots: a new master key, and the end of what a device holds beside the file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from cloister.audit import parse_event
from cloister.broker import Broker, Limits, Settings, create_home
from cloister.broker.rotation import fact
from cloister.broker.state import Change
from cloister.errors import Misuse, Unavailable, Untrusted
from tests.broker_party import PASSPHRASE, FakeClock
from tests.broker_world import World, nothing_granted
from tests.folder_driver import PIN, Device
from tests.folder_driver import device as device

pytest_plugins = ["tests.broker_fixtures"]


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
    assert owner.post("/v1/keys/sweep", json={"which": found["which"]}).json() == {"destroyed": 0, "remains": []}
    assert log_of(broker, "vault.swept") == [], "nothing was done, so nothing is said"
    left_behind(broker, device)
    found = owner.get("/v1/keys/orphans").json()
    assert found["orphans"] == 1
    assert owner.post("/v1/keys/sweep", json={"which": found["which"]}).json() == {"destroyed": 1, "remains": []}
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
    assert log_of(broker, "vault.swept") == [("success", "begun")]
    assert broker.lifecycle.roots.sweep(which)["destroyed"] == 1, "the same again"


def test_a_vault_in_a_file_has_no_orphans(world: World) -> None:
    roots = world.hospital.broker.lifecycle.roots
    with nothing_granted(world.hospital):
        assert roots.orphans()["orphans"] == 0
        assert roots.sweep(roots.orphans()["which"]) == {"destroyed": 0, "remains": []}
