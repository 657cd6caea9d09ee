"""Somebody has an old copy of the vault file and a way to open it. Its owner gives the vault a new master key."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cloister.broker import Broker, Limits, Settings, create_home
from cloister.client.recovery import restore_secret_root
from cloister.errors import Denied, Misuse, Unavailable, Untrusted
from cloister.keys import DriverConfig, open_vault, restore_root
from cloister.keys.document import VaultDocument
from cloister.node.swtpm import SoftwareTpm
from tests.broker_party import PASSPHRASE, FakeClock
from tests.broker_world import World, nothing_granted
from tests.folder_driver import PIN, Device
from tests.key_chores import deks
from tests.softhsm import MODULE, SoftHsm

pytest_plugins = ["tests.broker_fixtures"]


def test_an_old_copy_and_its_passphrase_are_used_on_the_newest_file(world: World, folder: Path) -> None:
    party = world.hospital
    life = party.broker.lifecycle
    stolen = Path(shutil.copy(party.home / "vault.json", folder / "stolen.json"))
    with open_vault(stolen, PASSPHRASE) as thief:
        old_keys = thief._held().keys
    before = deks(party)
    life.roots.rekey(PASSPHRASE)
    document, mac = VaultDocument.parse((party.home / "vault.json").read_bytes())
    with pytest.raises(Untrusted):
        old_keys.check(document, mac)
    with pytest.raises(Untrusted):
        old_keys.open(document.vault, document.secrets[0])
    assert deks(party) == before
    party.restart()
    assert deks(party) == before


def test_recovery_shares_from_before_are_used_on_the_newest_file(world: World) -> None:
    party = world.hospital
    old = party.broker.lifecycle.roots.split(2, 3)
    party.broker.lifecycle.roots.rekey(PASSPHRASE)
    new = party.broker.lifecycle.roots.split(2, 3)
    party.broker.close()
    with pytest.raises(Untrusted) as refused:
        restore_secret_root(party.home / "vault.json", old[:2], PASSPHRASE.decode())
    assert refused.value.code == "recovery.other"
    restore_secret_root(party.home / "vault.json", new[:2], PASSPHRASE.decode())
    party.start()


def test_recovery_shares_without_a_split_since(world: World) -> None:
    party = world.hospital
    old = party.broker.lifecycle.roots.split(2, 3)
    party.broker.lifecycle.roots.rekey(PASSPHRASE)
    party.broker.close()
    with pytest.raises(Misuse) as refused:
        restore_root(party.home / "vault.json", old[:2], PASSPHRASE)
    assert refused.value.code == "recovery.none"
    assert "or was given a new master key since" in refused.value.message
    party.start()


def test_the_old_file_is_put_back(world: World, folder: Path) -> None:
    party = world.hospital
    shutil.copy(party.home / "vault.json", folder / "old.json")
    party.broker.lifecycle.roots.rekey(PASSPHRASE)
    party.broker.close()
    newest = (party.home / "vault.json").read_bytes()
    shutil.copy(folder / "old.json", party.home / "vault.json")
    with pytest.raises(Untrusted) as refused:
        party.start()
    assert refused.value.code == "vault.rollback"
    (party.home / "vault.json").write_bytes(newest)
    party.start()


@pytest.mark.parametrize("guess", [b"", b"not the passphrase"])
def test_somebody_at_the_owner_s_socket_guesses_the_passphrase(world: World, guess: bytes) -> None:
    party = world.hospital
    before = (party.home / "vault.json").read_bytes()
    with nothing_granted(party), pytest.raises(Denied) as refused:
        party.broker.lifecycle.roots.rekey(guess)
    assert refused.value.code == "vault.passphrase"
    entry = party.log()[-1]
    assert (entry.kind, entry.outcome, entry.details["code"]) == ("vault.rekeyed", "failure", "vault.passphrase")
    assert (party.home / "vault.json").read_bytes() == before
    assert not party.broker.lifecycle.keeper.notes()


def test_the_passphrase_is_looked_for_in_log_and_state(world: World) -> None:
    party = world.hospital
    party.broker.lifecycle.roots.rekey(PASSPHRASE)
    party.broker.close()
    files = [path.read_bytes() for path in party.home.rglob("*") if path.is_file()]
    assert not any(PASSPHRASE in data for data in files)
    party.start()


def test_a_disk_that_is_full_leaves_the_old_key_and_a_word_of_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    party = world.hospital
    before = (party.home / "vault.json").read_bytes()

    def full(*_: object) -> None:
        raise Unavailable("storage.full", "The disk is full; free space, then try again.")

    with monkeypatch.context() as patch:
        patch.setattr("cloister.keys.vault.replace_file", full)
        with pytest.raises(Unavailable):
            party.broker.lifecycle.roots.rekey(PASSPHRASE)
    assert (party.home / "vault.json").read_bytes() == before
    party.broker.lifecycle.keeper.look()
    (note,) = (note for note in party.broker.notes() if "give 'cloister key rekey' again" in note)
    assert "until 'cloister key sweep'" in note, "what a device may hold since is said, too"
    party.broker.lifecycle.roots.rekey(PASSPHRASE)
    party.broker.lifecycle.keeper.look()
    assert not party.broker.lifecycle.keeper.notes()


def a_stolen_copy_meets_the_device(home: Path, driver: DriverConfig, *, split: bool = False) -> tuple[str, ...]:
    """With its PIN and the device itself: the root key that it needs is destroyed."""
    settings = Settings(home, vault_driver=driver, limits=Limits(heads_interval=3600.0))
    create_home(settings, "hospital", PIN, part_of=None, clock=FakeClock())
    stolen = Path(shutil.copy(home / "vault.json", home.parent / "stolen.json"))
    broker = Broker.start(settings, PIN, clock=FakeClock())
    if split:
        broker.lifecycle.roots.split(2, 3)
    told = broker.lifecycle.roots.rekey(b"")
    assert not broker.lifecycle.vault.orphans()
    broker.close()
    with pytest.raises(Denied) as refused:
        open_vault(stolen, PIN, driver=driver)
    assert refused.value.code == "vault.device_key"
    broker = Broker.start(settings, PIN, clock=FakeClock())
    assert broker.notes() == broker.warnings
    broker.close()
    return told


def test_a_stolen_copy_over_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(tmp_path / "device")
    device.plug_in(monkeypatch)
    assert a_stolen_copy_meets_the_device(tmp_path / "home", device.config) == (), "there was no split"


def test_a_stolen_copy_and_shares_over_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(tmp_path / "device")
    device.plug_in(monkeypatch)
    (told,) = a_stolen_copy_meets_the_device(tmp_path / "home", device.config, split=True)
    assert "recovery shares of their time" in told


def test_a_stolen_copy_over_an_hsm(tmp_path: Path) -> None:
    with SoftHsm(tmp_path / "hsm") as hsm:
        hsm.create("owner", PIN)
        options = {"module": MODULE, "token": "owner", "mechanism": "aes-kwp"}
        told = a_stolen_copy_meets_the_device(tmp_path / "home", DriverConfig("pkcs11", options))
    assert any("backups and clones of the token" in sentence for sentence in told)


def test_a_stolen_copy_over_a_tpm_still_opens_there_and_that_is_said(tmp_path: Path) -> None:
    """A TPM can't forget what it never stored. The copy's master key opens nothing of the newest file."""
    with SoftwareTpm(tmp_path / "state") as tpm:
        driver = DriverConfig("tpm", {"tcti": tpm.tcti})
        settings = Settings(tmp_path / "home", vault_driver=driver, limits=Limits(heads_interval=3600.0))
        create_home(settings, "hospital", PIN, part_of=None, clock=FakeClock())
        stolen = Path(shutil.copy(settings.vault, tmp_path / "stolen.json"))
        broker = Broker.start(settings, PIN, clock=FakeClock())
        told = broker.lifecycle.roots.rekey(b"")
        broker.close()
        assert any("on this machine with its credential" in sentence for sentence in told)
        document, mac = VaultDocument.parse(settings.vault.read_bytes())
        with open_vault(stolen, PIN, driver=driver) as thief, pytest.raises(Untrusted):
            thief._held().keys.check(document, mac)
        Broker.start(settings, PIN, clock=FakeClock()).close()
