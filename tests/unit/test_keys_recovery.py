"""The drill: a vault is lost, some of the people with shares come together, and the party goes on."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

import pytest

from cloister.broker.config import Settings
from cloister.broker.startup import create_home, open_home
from cloister.crypto import verify_ed25519
from cloister.errors import Denied, Misuse, Unavailable
from cloister.keys import Vault, create_vault, open_vault, provision_party, restore_root, split_root
from tests.folder_driver import PIN, Device, FolderDriver
from tests.folder_driver import device as device
from tests.sealing import CHEAP

PASSPHRASE = b"correct horse battery"
NEW = b"another passphrase"
DEK = bytes(range(32))
DIGEST = b"manifest digest of 32 bytes....."


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    vault = create_vault(tmp_path / "vault.json", PASSPHRASE, "hospital", params=CHEAP)
    provision_party(vault)
    return vault


def test_the_drill(tmp_path: Path, vault: Vault) -> None:
    # 1. On a quiet day: five people get a share each, and the file goes into the backup.
    shares = split_root(vault, 3, 5)
    first = vault.wrap(DEK, DIGEST)
    vault.rotate_kek()
    second = vault.wrap(DEK, DIGEST)
    status = vault.signing_key("status").public
    hpke = vault.secret("hpke")
    backup = tmp_path / "backup.json"
    shutil.copy(vault.path, backup)
    # 2. The machine is lost, and the passphrase with who knew it. Two shares are lost as well.
    vault.close()
    vault.path.unlink()
    # 3. The other three put the backup back in use.
    restored_at = tmp_path / "restored" / "vault.json"
    restored_at.parent.mkdir()
    shutil.copy(backup, restored_at)
    told = restore_root(restored_at, [shares[4], shares[0], shares[2]], NEW)
    assert (told.owner, told.epochs, told.lost_epochs, told.lost_keys) == ("hospital", (1, 2), (), ())
    assert any("split anew" in note for note in told.notes)
    # 4. Everything is there again, under the new passphrase only.
    with open_vault(restored_at, NEW, least_revision=told.revision) as again:
        assert again.unwrap(first, DIGEST) == again.unwrap(second, DIGEST) == DEK
        assert again.secret("hpke") == hpke
        verify_ed25519(status, b"text", again.signing_key("status").sign(b"text"))
        # 5. The shares were together in one place, so new ones are made; the old ones open no later file.
        fresh = split_root(again, 2, 3)
    with pytest.raises(Denied):
        open_vault(restored_at, PASSPHRASE)
    assert restore_root(restored_at, fresh[:2], PASSPHRASE).epochs == (1, 2)
    with open_vault(restored_at, PASSPHRASE) as last:
        assert last.unwrap(first, DIGEST) == DEK


def test_every_three_of_five(vault: Vault) -> None:
    shares = split_root(vault, 3, 5)
    raw = vault.path.read_bytes()
    vault.close()
    for chosen in itertools.combinations(shares, 3):
        vault.path.write_bytes(raw)
        restore_root(vault.path, chosen, NEW)
        open_vault(vault.path, NEW).close()


def test_shares_are_written_nowhere(vault: Vault, tmp_path: Path) -> None:
    shares = split_root(vault, 2, 3)
    words = {" ".join(share.split()[4:10]) for share in shares}
    for path in tmp_path.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(piece.encode() in content for piece in words)
    assert not any(piece in repr(vault) + repr(vault._held()) for piece in words)


def test_a_backup_becomes_the_newest(vault: Vault) -> None:
    """What a broker remembers of a lost file must not keep the restored one out."""
    shares = split_root(vault, 2, 2)
    backup = vault.path.read_bytes()
    for _ in range(3):
        vault.rotate_kek()
    newest = vault.revision
    vault.close()
    vault.path.write_bytes(backup)
    told = restore_root(vault.path, shares, NEW, least_revision=newest)
    assert told.revision == newest + 1
    with open_vault(vault.path, NEW, least_revision=newest) as again:
        assert again.epochs() == (1,)


def test_a_party_starts_again(tmp_path: Path) -> None:
    """With its broker's home, state and log, under the new passphrase."""
    settings = Settings(tmp_path / "home")
    create_home(settings, "hospital", PASSPHRASE, part_of=None, clock=lambda: 1_750_000_000, params=CHEAP)
    opened = open_home(settings, PASSPHRASE)
    shares = split_root(opened.vault, 2, 3)
    opened.close()
    restore_root(settings.vault, shares[1:], NEW)
    with pytest.raises(Denied):
        open_home(settings, PASSPHRASE)
    again = open_home(settings, NEW)
    assert again.card.name == "hospital"
    again.close()


def test_a_full_disk_leaves_the_old_file(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = split_root(vault, 2, 2)
    before = vault.path.read_bytes()

    def fail(fd: int) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr("cloister.keys.storage.os.fsync", fail)
        with pytest.raises(Unavailable) as info:
            restore_root(vault.path, shares, NEW)
    assert info.value.code == "storage.full"
    assert vault.path.read_bytes() == before


def test_a_short_passphrase_changes_nothing(vault: Vault) -> None:
    shares = split_root(vault, 2, 2)
    before = vault.path.read_bytes()
    with pytest.raises(Misuse) as info:
        restore_root(vault.path, shares, b"short")
    assert info.value.code == "vault.passphrase_length"
    assert vault.path.read_bytes() == before


def device_vault(tmp_path: Path, device: Device) -> tuple[Path, list[str]]:
    with create_vault(tmp_path / "vault.json", PIN, "hospital", driver=device.config) as vault:
        provision_party(vault)
        vault.rotate_kek()
        return vault.path, split_root(vault, 2, 3)


def test_a_lost_device(tmp_path: Path, device: Device) -> None:
    """Secrets come back; what never left the device does not, and the result says so."""
    path, shares = device_vault(tmp_path, device)
    with open_vault(path, PIN, driver=device.config) as vault:
        wrapped, tls = vault.wrap(DEK, DIGEST), vault.secret("tls")
    shutil.rmtree(device.folder)
    told = restore_root(path, shares[:2], NEW, params=CHEAP)
    assert (told.epochs, told.lost_epochs) == ((3,), (1, 2))
    assert told.lost_keys == ("receipt", "signing", "status")
    assert any("device's own backup" in note for note in told.notes)
    assert any("receipt, signing, status" in note for note in told.notes)
    with open_vault(path, NEW) as vault:
        assert (vault.driver, vault.secret("tls")) == ("file", tls)
        with pytest.raises(Denied) as info:
            vault.unwrap(wrapped, DIGEST)
        assert info.value.code == "wrap.algorithm"
        assert vault.unwrap(vault.wrap(DEK, DIGEST), DIGEST) == DEK
        provision_party(vault)
        assert vault.signing_key("status").sign(b"text")


def test_a_device_that_came_back_from_its_own_backup(tmp_path: Path, device: Device) -> None:
    """All but the vault's root key, which is made anew, is there again."""
    path, shares = device_vault(tmp_path, device)
    with open_vault(path, PIN, driver=device.config) as vault:
        wrapped, status = vault.wrap(DEK, DIGEST), vault.signing_key("status").public
        root = vault._held().document.vault.hex()
    for name in os.listdir(device.folder):
        if root in name:
            (device.folder / name).unlink()
    with pytest.raises(Denied):
        open_vault(path, PIN, driver=device.config)
    told = restore_root(path, shares[1:], PIN, driver=device.config)
    assert (told.epochs, told.lost_epochs, told.lost_keys) == ((1, 2), (), ())
    with open_vault(path, PIN, driver=device.config) as vault:
        assert vault.unwrap(wrapped, DIGEST) == DEK
        assert vault.signing_key("status").public == status
        assert device.held() == set(vault._held().document.handles())


def test_a_device_that_came_back_in_part(tmp_path: Path, device: Device) -> None:
    path, shares = device_vault(tmp_path, device)
    with open_vault(path, PIN, driver=device.config) as vault:
        kek_id = vault.kek_id
    for name in os.listdir(device.folder):
        if f"{kek_id}_2." in name or "_receipt_" in name:
            (device.folder / name).unlink()
    told = restore_root(path, shares[1:], PIN, driver=device.config)
    assert (told.epochs, told.lost_epochs, told.lost_keys) == ((1, 3), (2,), ("receipt",))
    with open_vault(path, PIN, driver=device.config) as vault:
        assert vault.unwrap(vault.wrap(DEK, DIGEST), DIGEST) == DEK


@pytest.mark.parametrize("operation", ["create", "wrap", "sign"])
def test_a_device_that_goes_away_meanwhile(tmp_path: Path, device: Device, operation: str) -> None:
    path, shares = device_vault(tmp_path, device)
    before, held = path.read_bytes(), device.held()
    with device.gone(operation), pytest.raises(Unavailable):
        restore_root(path, shares[1:], PIN, driver=device.config)
    assert (path.read_bytes(), device.held()) == (before, held)


def test_an_unclear_write_destroys_no_key(tmp_path: Path, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new file is there, only its folder's sync failed: what it names must stay in the device."""
    path, shares = device_vault(tmp_path, device)

    def fail(folder: Path) -> None:
        raise OSError(5, os.strerror(5))

    with monkeypatch.context() as patch:
        patch.setattr("cloister.keys.storage._sync", fail)
        with pytest.raises(Unavailable):
            restore_root(path, shares[1:], PIN, driver=device.config)
    open_vault(path, PIN, driver=device.config).close()


def test_a_drill_with_a_copy_leaves_the_vault_in_use(tmp_path: Path, device: Device) -> None:
    path, shares = device_vault(tmp_path, device)
    copy = tmp_path / "copy.json"
    shutil.copy(path, copy)
    restore_root(copy, shares[:2], PIN, driver=device.config)
    for each in (path, copy):
        with open_vault(each, PIN, driver=device.config) as vault:
            assert vault.unwrap(vault.wrap(DEK, DIGEST), DIGEST) == DEK


def test_a_device_that_refuses_for_another_reason(tmp_path: Path, device: Device) -> None:
    """A PIN that is not enough is no lost key."""
    path, shares = device_vault(tmp_path, device)
    before = path.read_bytes()
    for operation in ("wrap", "sign"):
        device.fails[operation] = Denied("vault.pin", "The device refuses the PIN.")
        with pytest.raises(Denied) as info:
            restore_root(path, shares[1:], PIN, driver=device.config)
        assert info.value.code == "vault.pin"
        device.fails.clear()
    assert path.read_bytes() == before


def test_a_device_that_never_signed(tmp_path: Path, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    path, shares = device_vault(tmp_path, device)
    monkeypatch.delattr(FolderDriver, "create_signer")
    told = restore_root(path, shares[1:], PIN, driver=device.config)
    assert (told.lost_epochs, told.lost_keys) == ((), ("receipt", "signing", "status"))


def test_a_file_vault_does_not_move_into_a_device(vault: Vault, device: Device) -> None:
    shares = split_root(vault, 2, 2)
    with pytest.raises(Misuse) as info:
        restore_root(vault.path, shares, PIN, driver=device.config)
    assert info.value.code == "recovery.driver"
