"""Old copies of a party's folder: what a backup, a drill or a rollback must not do to the vault that is in use."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cloister.broker import Broker, Limits, Settings, create_home
from cloister.client.recovery import restore_secret_root
from cloister.crypto import random_bytes
from cloister.errors import Denied, Misuse, Untrusted
from cloister.keys import DriverConfig, restore_root
from tests.broker_party import PASSPHRASE, FakeClock, Party
from tests.broker_world import World
from tests.folder_driver import PIN, Device
from tests.softhsm import MODULE, SoftHsm

pytest_plugins = ["tests.broker_fixtures"]
NAME = "hospital/queries"
DIGEST = b"d" * 32


@contextmanager
def an_hsm(folder: Path) -> Iterator[DriverConfig]:
    with SoftHsm(folder / "hsm") as hsm:
        hsm.create("owner", PIN)
        yield DriverConfig("pkcs11", {"module": MODULE, "token": "owner", "mechanism": "aes-kwp"})


class Owner:
    """One party over one device, with more than one copy of its folder."""

    def __init__(self, folder: Path, driver: DriverConfig) -> None:
        self.folder, self.driver, self.clock = folder, driver, FakeClock()
        self.live, self.old = folder / "live", folder / "old"

    def settings(self, home: Path) -> Settings:
        return Settings(home, vault_driver=self.driver, limits=Limits(heads_interval=3600.0))

    def create(self) -> None:
        create_home(self.settings(self.live), "hospital", PIN, part_of=None, clock=self.clock)

    def start(self, home: Path) -> Broker:
        return Broker.start(self.settings(home), PIN, clock=self.clock)


def an_old_home_is_started(owner: Owner) -> None:
    owner.create()
    shutil.copytree(owner.live, owner.old)
    live = owner.start(owner.live)
    live.lifecycle.rotation.rotate()
    dek = random_bytes(32)
    wrapped = live.lifecycle.vault.wrap(dek, DIGEST)
    live.close()
    started = owner.start(owner.old)
    assert [note for note in started.notes() if "does not name" in note], "its owner is told of the newer copy's KEK"
    started.close()
    live = owner.start(owner.live)
    assert live.lifecycle.vault.unwrap(wrapped, DIGEST) == dek
    assert not [note for note in live.notes() if "does not name" in note]
    live.close()


def test_an_old_home_destroys_nothing_in_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(tmp_path / "device")
    device.plug_in(monkeypatch)
    an_old_home_is_started(Owner(tmp_path, device.config))


def test_an_old_home_destroys_nothing_in_an_hsm(tmp_path: Path) -> None:
    with an_hsm(tmp_path) as config:
        an_old_home_is_started(Owner(tmp_path, config))


def test_a_started_drill_leaves_the_root_key_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(tmp_path / "device")
    device.plug_in(monkeypatch)
    owner = Owner(tmp_path, device.config)
    owner.create()
    live = owner.start(owner.live)
    shares = live.lifecycle.roots.split(2, 3)
    live.close()
    shutil.copytree(owner.live, owner.old)
    before = device.held()
    restore_root(owner.old / "vault.json", shares[:2], PIN, driver=device.config)
    owner.start(owner.old).close()
    assert before <= device.held()
    owner.start(owner.live).close()


def a_drill_rotates(owner: Owner) -> None:
    """A restored copy is started on the device of the vault in use, and rotates."""
    owner.create()
    live = owner.start(owner.live)
    dek = random_bytes(32)
    wrapped = live.lifecycle.vault.wrap(dek, DIGEST)
    shares = live.lifecycle.roots.split(2, 3)
    live.close()
    shutil.copytree(owner.live, owner.old)
    told = restore_root(owner.old / "vault.json", shares[:2], PIN, driver=owner.driver)
    assert "no KEK is destroyed there" in told.notes[-1]
    assert "Stop the broker over the other file for good" in told.notes[-1], "else it makes itself a new root key"
    drill = owner.start(owner.old)
    with pytest.raises(Denied) as refused:
        drill.lifecycle.rotation.rotate()
    assert refused.value.code == "vault.copies"
    drill.lifecycle.keeper.look()
    assert any("a copy of its file may be in use" in note for note in drill.notes())
    drill.close()
    live = owner.start(owner.live)
    assert live.lifecycle.vault.unwrap(wrapped, DIGEST) == dek, "the drill took nothing from it"
    with pytest.raises(Denied):
        live.lifecycle.rotation.rotate()  # it can't know either which of the two counts
    live.lifecycle.roots.sweep(live.lifecycle.roots.orphans()["which"])
    live.lifecycle.keeper.look()
    assert live.lifecycle.vault.epochs() == (2,)
    assert live.lifecycle.notes() == []
    live.close()
    with pytest.raises(Denied) as closed:
        owner.start(owner.old)
    assert closed.value.code == "vault.device_key", "its owner said that the other one is in use"


def test_a_drill_that_rotates_destroys_nothing_in_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(tmp_path / "device")
    device.plug_in(monkeypatch)
    a_drill_rotates(Owner(tmp_path, device.config))


def test_a_drill_that_rotates_destroys_nothing_in_an_hsm(tmp_path: Path) -> None:
    with an_hsm(tmp_path) as config:
        a_drill_rotates(Owner(tmp_path, config))


def test_a_drill_that_shreds_leaves_the_kek_to_the_vault_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What obliges it to destroy KEKs waits; the device keeps what the other one needs."""
    device = Device(tmp_path / "device")
    device.plug_in(monkeypatch)
    owner = Owner(tmp_path, device.config)
    owner.create()
    live = owner.start(owner.live)
    shares = live.lifecycle.roots.split(2, 3)
    live.close()
    shutil.copytree(owner.live, owner.old)
    restore_root(owner.old / "vault.json", shares[:2], PIN, driver=device.config)
    keks = {name for name in device.held() if name.startswith(b"kek.")}
    drill = owner.start(owner.old)
    drill.lifecycle.rotation.begin("shred")
    for _ in range(2):
        drill.lifecycle.keeper.look()
    assert drill.lifecycle.rotation.pending
    assert keks <= device.held()
    drill.close()


def restored(party: Party, backup: Path, shares: list[str]) -> dict[str, object]:
    party.broker.close()
    shutil.copy(backup, party.home / "vault.json")
    told = restore_secret_root(party.home / "vault.json", shares[:2], PASSPHRASE.decode())
    party.start()
    return told


def test_an_older_backup_reuses_no_epoch(world: World, folder: Path) -> None:
    """Epoch 3 of a backup of epoch 1 would be another KEK than the one that the keys of epoch 3 are wrapped under."""
    party = world.hospital
    shares = party.broker.lifecycle.roots.split(2, 3)
    shutil.copy(party.home / "vault.json", folder / "backup.json")
    party.broker.lifecycle.rotation.rotate()
    party.broker.lifecycle.rotation.rotate()
    rows = party.tables()["assets"]
    assert {row["epoch"] for row in rows} == {3}
    told = restored(party, folder / "backup.json", shares)
    assert told["lost_epochs"] == (3,)
    assert any("lacks the KEKs of 1 epochs" in str(note) for note in told["notes"])  # type: ignore[attr-defined]
    life = party.broker.lifecycle
    assert life.vault.epoch == 4
    with pytest.raises(Denied) as lost:
        party.broker.core.assets.unwrap_secret_dek(bytes.fromhex(rows[0]["digest"]))
    assert lost.value.code == "wrap.epoch"
    assert [life.rotation.rotate() for _ in range(2)] == [5, 6], "what is lost holds no rotation up"
    assert life.rotation.progress()["last"]["lost"] == [f"{NAME} version 1"]
    party.seal(folder / "other", "hospital/other", "dataset")
    life.shredder.shred("hospital/other", None, "erased on request")
    assert life.rotation.finish()
    assert not life.rotation.pending
    assert [row for row in party.tables()["assets"] if row["name"] == NAME] == rows


def test_a_backup_that_holds_every_epoch_gets_no_new_one(world: World, folder: Path) -> None:
    party = world.hospital
    shares = party.broker.lifecycle.roots.split(2, 3)
    shutil.copy(party.home / "vault.json", folder / "backup.json")
    told = restored(party, folder / "backup.json", shares)
    assert (told["lost_epochs"], told["epochs"]) == ((), (1,))


def test_a_vault_is_not_restored_under_a_running_broker(world: World) -> None:
    party = world.hospital
    shares = party.broker.lifecycle.roots.split(2, 3)
    before = (party.home / "vault.json").read_bytes()
    with pytest.raises(Misuse) as refused:
        restore_secret_root(party.home / "vault.json", shares[:2], PASSPHRASE.decode())
    assert refused.value.code == "recovery.running"
    assert (party.home / "vault.json").read_bytes() == before
    party.broker.lifecycle.rotation.rotate()


def test_a_vault_restored_elsewhere_says_where_it_belongs(world: World, folder: Path) -> None:
    party = world.hospital
    shares = party.broker.lifecycle.roots.split(2, 3)
    elsewhere = folder / "usb" / "vault.json"
    elsewhere.parent.mkdir()
    shutil.copy(party.home / "vault.json", elsewhere)
    for _ in range(3):
        party.broker.lifecycle.rotation.rotate()
    party.broker.close()
    told = restore_secret_root(elsewhere, shares[:2], PASSPHRASE.decode())
    assert "beside state.db" in str(told["notes"])
    newest = (party.home / "vault.json").read_bytes()
    shutil.copy(elsewhere, party.home / "vault.json")
    with pytest.raises(Untrusted) as refused:
        party.start()
    assert refused.value.code == "vault.rollback"
    (party.home / "vault.json").write_bytes(newest)
    party.start()
