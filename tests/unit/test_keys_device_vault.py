"""A vault whose KEKs lie in a device: what crashes, full disks and unreachable devices leave, and how it ends well."""

# ruff: noqa: SIM118 - a vault is no mapping

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cloister.crypto import verify_ed25519
from cloister.errors import CloisterError, Denied, Internal, Misuse, Unavailable, Untrusted
from cloister.keys import (
    DriverConfig,
    KeyVault,
    Vault,
    change_passphrase,
    create_vault,
    open_vault,
    provision_party,
    rekey,
)
from cloister.keys import storage as storage_module
from tests.folder_driver import PIN, Device, FolderDriver
from tests.folder_driver import device as device

DEK = bytes(range(32))
DIGEST = b"manifest digest of 32 bytes....."


@pytest.fixture
def vault(tmp_path: Path, device: Device) -> Vault:
    return create_vault(tmp_path / "vault.json", PIN, "hospital", driver=device.config)


def again(vault: Vault, device: Device, **more: int) -> Vault:
    return open_vault(vault.path, PIN, driver=device.config, **more)


def named(vault: Vault) -> set[bytes]:
    return set(vault._held().document.handles())


def fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage_module.os, "fsync", fail)


def test_a_vault_over_a_device(vault: Vault, device: Device) -> None:
    port: KeyVault = vault
    wrapped = port.wrap(DEK, DIGEST)
    assert (vault.driver, wrapped.algorithm, list(vault.warnings)) == ("pkcs11", "folder", [])
    vault.put_secret("tls", b"t" * 32)
    with again(vault, device) as other:
        assert other.unwrap(wrapped, DIGEST) == DEK
        assert other.secret("tls") == b"t" * 32
    assert device.held() == named(vault)
    assert len(device.held()) == 2  # the root key and one KEK
    assert [(key.kind, key.where, key.extractable) for key in vault.keys()] == [
        ("kek", "pkcs11", False),
        ("secret", "file", True),
    ]


def test_signing_keys_stay_in_the_device(vault: Vault, device: Device) -> None:
    provision_party(vault)
    signing = [key for key in vault.keys() if key.kind == "signing"]
    assert [(k.name, k.where, k.extractable) for k in signing] == [
        (name, "pkcs11", False) for name in ("receipt", "signing", "status")
    ]
    with again(vault, device) as other:
        signer = other.signing_key("receipt")
        verify_ed25519(vault.signing_key("receipt").public, b"text", signer.sign(b"text"))
        assert {k.name: k.signs for k in other.keys()}["receipt"] == 1
    for name in ("signing", "status", "receipt"):
        with pytest.raises(Misuse) as info:
            vault.secret(name)
        assert info.value.code == "vault.no_secret"
    old = vault.signing_key("receipt")
    new = vault.create_signing_key("receipt", replace=True)
    assert new.public != old.public
    with pytest.raises(Denied):  # the replaced one is destroyed
        old.sign(b"text")
    assert device.held() == named(vault)


def test_a_device_that_holds_another_signing_key(vault: Vault, device: Device) -> None:
    vault.create_signing_key("receipt")
    (held,) = [name for name in os.listdir(device.folder) if name.startswith("sign.")]
    (device.folder / held).write_bytes(bytes(32))
    with pytest.raises(Untrusted) as info:
        vault.signing_key("receipt")
    assert info.value.code == "sign.other"


def test_a_device_that_signs_no_more(vault: Vault, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    vault.create_signing_key("receipt")
    monkeypatch.delattr(FolderDriver, "create_signer")
    with pytest.raises(Unavailable) as info:
        vault.signing_key("receipt")
    assert info.value.code == "sign.driver"


def test_a_wrong_pin_is_tried_once(vault: Vault, device: Device) -> None:
    with pytest.raises(Denied) as info:
        open_vault(vault.path, b"000000", driver=device.config)
    assert info.value.code == "vault.pin"
    with pytest.raises(Misuse) as misuse:
        change_passphrase(vault, PIN, b"another passphrase")
    assert misuse.value.code == "vault.credential"


def test_an_experimental_driver_says_so(tmp_path: Path, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FolderDriver, "experimental", True)
    with create_vault(tmp_path / "v.json", PIN, "hospital", driver=device.config) as vault:
        assert ["experimental" in warning for warning in vault.warnings] == [True]


def test_another_device(vault: Vault, device: Device, tmp_path: Path) -> None:
    device.folder = tmp_path / "another"
    with pytest.raises(Denied) as info:
        again(vault, device)
    assert info.value.code == "vault.device_key"


def test_a_root_key_that_was_exchanged(vault: Vault, device: Device) -> None:
    body = json.loads(vault.path.read_bytes())
    (root,) = [name for name in os.listdir(device.folder) if body["vault"] in name]
    (device.folder / root).write_bytes(bytes(32))
    with pytest.raises(Untrusted) as info:
        again(vault, device)
    assert info.value.code == "vault.changed"


def test_a_kek_that_is_gone_from_the_device(vault: Vault, device: Device) -> None:
    old = vault.wrap(DEK, DIGEST)
    vault.rotate_kek()
    new = vault.wrap(DEK, DIGEST)
    (name,) = [name for name in os.listdir(device.folder) if f"{vault.kek_id}_1." in name]
    (device.folder / name).unlink()
    with again(vault, device) as other:
        with pytest.raises(Denied) as info:
            other.unwrap(old, DIGEST)
        assert info.value.code == "wrap.gone"
        assert other.unwrap(new, DIGEST) == DEK


def test_creating_leaves_nothing_behind(tmp_path: Path, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_the_disk(monkeypatch)
    with pytest.raises(Unavailable) as info:
        create_vault(tmp_path / "v.json", PIN, "hospital", driver=device.config)
    assert info.value.code == "storage.full"
    assert device.held() == set()
    assert not (tmp_path / "v.json").exists()


@pytest.mark.parametrize("operation", ["create", "wrap"])
def test_a_device_that_goes_away_while_creating(tmp_path: Path, device: Device, operation: str) -> None:
    with device.gone(operation), pytest.raises(Unavailable):
        create_vault(tmp_path / "v.json", PIN, "hospital", driver=device.config)
    assert device.held() == set()
    assert not (tmp_path / "v.json").exists()


CHANGES: dict[str, Callable[[Vault], object]] = {
    "rotate": lambda vault: vault.rotate_kek(),
    "destroy": lambda vault: vault.destroy_epoch(1),
    "sign": lambda vault: vault.create_signing_key("receipt", replace=True),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_full_disk_changes_nothing(
    vault: Vault, device: Device, monkeypatch: pytest.MonkeyPatch, change: Callable[[Vault], object]
) -> None:
    vault.rotate_kek()
    vault.create_signing_key("receipt")
    before, held, keys = vault.path.read_bytes(), device.held(), vault.keys()
    with monkeypatch.context() as patch:
        fill_the_disk(patch)
        with pytest.raises(Unavailable) as info:
            change(vault)
        assert info.value.code == "storage.full"
    assert (vault.path.read_bytes(), device.held(), vault.keys()) == (before, held, keys)
    change(vault)
    assert device.held() == named(vault)


def test_an_unclear_write_destroys_no_key(vault: Vault, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new file is there, only its folder's sync failed: the new KEK may be in use by whoever opens it."""

    def fail(folder: Path) -> None:
        raise OSError(errno.EIO, "input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(storage_module, "_sync", fail)
        with pytest.raises(Unavailable) as info:
            vault.rotate_kek()
        assert info.value.code == "vault.write"
    with pytest.raises(Misuse) as misuse:
        vault.rotate_kek()
    assert misuse.value.code == "vault.stale"
    with again(vault, device) as other:
        assert other.unwrap(other.wrap(DEK, DIGEST), DIGEST) == DEK
        assert other.epochs() == (1, 2)


def test_a_device_that_is_away_while_rotating(vault: Vault, device: Device) -> None:
    before = vault.path.read_bytes()
    with device.gone("create"), pytest.raises(Unavailable):
        vault.rotate_kek()
    assert vault.path.read_bytes() == before
    assert vault.rotate_kek() == 2


def test_destroying_while_the_device_is_away(vault: Vault, device: Device) -> None:
    """The vault gives the key up at once; the device forgets it when it is back."""
    old = vault.wrap(DEK, DIGEST)
    vault.rotate_kek()
    with device.gone("destroy"):
        remains = vault.destroy_epoch(1)
        assert remains is not None
        assert "when the vault is opened next" in remains
        with pytest.raises(Denied) as info:
            vault.unwrap(old, DIGEST)
        assert info.value.code == "wrap.epoch"
        with again(vault, device) as still:
            assert any("could not be reached" in warning for warning in still.warnings)
    assert len(device.held()) == 3
    with again(vault, device) as other:
        assert list(other.warnings) == []
        assert device.held() == named(other)
        assert len(device.held()) == 2


def test_a_crash_between_file_and_device(vault: Vault, device: Device) -> None:
    vault.rotate_kek()
    device.fails["destroy"] = Internal("test.crash", "The process ends here.")
    with pytest.raises(Internal):
        vault.destroy_epoch(1)
    del device.fails["destroy"]
    assert len(device.held()) == 3
    with again(vault, device) as other:
        assert other.epochs() == (2,)
        assert device.held() == named(other)


def test_a_crash_after_the_device_forgot(vault: Vault, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The note that the key is to be destroyed stays once more, and is taken away at the next opening."""
    vault.rotate_kek()
    real, calls = storage_module.replace_file, []

    def second_fails(path: Path, data: bytes) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise Unavailable("storage.full", "The disk is full; free space, then try again.")
        real(path, data)

    monkeypatch.setattr("cloister.keys.vault.replace_file", second_fails)
    assert vault.destroy_epoch(1) is None
    assert len(vault._held().document.destroying) == 1
    with again(vault, device) as other:
        assert other._held().document.destroying == ()
        assert device.held() == named(other)


def test_orphans_are_swept(vault: Vault, device: Device) -> None:
    stranger = FolderDriver(device.folder).create("00" * 16, 1)
    orphans = [FolderDriver(device.folder).create(vault.kek_id, 2)]
    orphans.append(FolderDriver(device.folder).create_signer(f"{vault.kek_id}/receipt/1")[0])
    wrapped = vault.wrap(DEK, DIGEST)
    assert set(orphans) <= device.held()
    swept = vault.sweep_orphans(known_revision=vault.revision)
    assert (set(swept.destroyed), swept.remains, swept.stopped) == (set(orphans), (), None)
    assert device.held() == named(vault) | {stranger}
    assert vault.unwrap(wrapped, DIGEST) == DEK


def test_only_what_is_named_is_swept(vault: Vault, device: Device) -> None:
    shown, later = (FolderDriver(device.folder).create(vault.kek_id, epoch) for epoch in (2, 3))
    vault.sweep_orphans(known_revision=vault.revision, among=[shown, vault._held().document.keks[0].handle])
    assert vault.orphans() == (later,), "and never what the file names"
    assert named(vault) <= device.held()


def test_an_older_copy_sweeps_nothing(vault: Vault, device: Device) -> None:
    """To an older copy of the file the newest KEK looks like an orphan."""
    old = vault.path.read_bytes()
    vault.rotate_kek()
    held, newest = device.held(), vault.revision
    vault.path.write_bytes(old)
    with again(vault, device) as older, pytest.raises(Untrusted) as info:
        older.sweep_orphans(known_revision=newest)
    assert info.value.code == "vault.rollback"
    assert device.held() == held


def test_a_new_master_key(vault: Vault, device: Device) -> None:
    vault.put_secret("tls", b"t" * 32)
    vault.create_signing_key("receipt")
    wrapped, public = vault.wrap(DEK, DIGEST), vault.signing_key("receipt").public
    copy, old_keys = vault.path.read_bytes(), vault._held().keys
    rekey(vault, b"")
    assert device.held() == named(vault)
    with again(vault, device) as other:
        assert other.unwrap(wrapped, DIGEST) == DEK
        assert (other.secret("tls"), other.signing_key("receipt").public) == (b"t" * 32, public)
        with pytest.raises(Untrusted):
            old_keys.check(other._held().document, bytes(32))
        with pytest.raises(Untrusted):
            old_keys.open(other._held().document.vault, other._held().document.secrets[0])
    vault.path.write_bytes(copy)
    with pytest.raises(Denied) as info:  # the copy's root key is destroyed
        again(vault, device)
    assert info.value.code == "vault.device_key"


@pytest.mark.parametrize("operation", ["create", "wrap", "list"])
def test_a_device_that_is_away_while_rekeying(vault: Vault, device: Device, operation: str) -> None:
    before, held = vault.path.read_bytes(), device.held()
    with device.gone(operation), pytest.raises(Unavailable):
        rekey(vault, b"")
    assert (vault.path.read_bytes(), device.held()) == (before, held)
    again(vault, device).close()


def test_a_closed_vault(vault: Vault, device: Device) -> None:
    wrapped = vault.wrap(DEK, DIGEST)
    vault.close()
    vault.close()
    for call in (
        lambda: vault.unwrap(wrapped, DIGEST),
        vault.rotate_kek,
        vault.keys,
        lambda: vault.sweep_orphans(known_revision=1),
    ):
        with pytest.raises(CloisterError) as info:
            call()
        assert info.value.code == "vault.closed"


def test_a_vault_opens_with_the_driver_that_was_set_up(vault: Vault, device: Device) -> None:
    for other in (DriverConfig(), DriverConfig("pkcs11"), DriverConfig("tpm", device.config.options)):
        with pytest.raises(Denied) as info:
            open_vault(vault.path, PIN, driver=other)
        assert info.value.code == "vault.driver"
