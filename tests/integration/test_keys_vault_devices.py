"""Whole vaults over devices that really run here: made, used, rotated, destroyed, opened again, restored."""

# ruff: noqa: SIM118 - a vault is no mapping

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.broker import Broker
from cloister.broker.config import Settings
from cloister.broker.startup import create_home
from cloister.crypto import verify_ed25519
from cloister.errors import Denied
from cloister.keys import DriverConfig, create_vault, open_vault, provision_party, restore_root, split_root
from tests.devices import CREDENTIAL
from tests.devices import config as config
from tests.sealing import CHEAP

DEK = bytes(range(32))
DIGEST = b"manifest digest of 32 bytes....."
NOW = 1_750_000_000


@pytest.fixture
def driver(config: DriverConfig) -> DriverConfig:
    """A TPM's key bound to the boot, too."""
    more = {"pcrs": "0,7"} if config.name == "tpm" else {}
    return DriverConfig(config.name, {**config.options, **more})


def test_the_life_of_a_vault(tmp_path: Path, driver: DriverConfig) -> None:
    path = tmp_path / "vault.json"
    with create_vault(path, CREDENTIAL, "hospital", driver=driver) as vault:
        provision_party(vault)
        first = vault.wrap(DEK, DIGEST)
        assert vault.rotate_kek() == 2
        second = vault.rewrap(first, DIGEST)
        status = vault.signing_key("status").public
        shares = split_root(vault, 2, 3)
        inside = {key.name for key in vault.keys() if key.kind == "signing" and key.where == driver.name}
        assert inside == ({"signing", "status", "receipt"} if driver.name == "pkcs11" else set())
        assert list(vault.warnings) == []
    with pytest.raises(Denied):
        open_vault(path, b"wrong credential", driver=driver)
    with open_vault(path, CREDENTIAL, driver=driver) as vault:
        assert vault.unwrap(first, DIGEST) == vault.unwrap(second, DIGEST) == DEK
        remains = vault.destroy_epoch(1)
        assert remains is not None  # tokens have backups, and a TPM's blobs lie in copies of the file
        with pytest.raises(Denied) as info:
            vault.unwrap(first, DIGEST)
        assert info.value.code == "wrap.epoch"
        assert vault.sweep_orphans(known_revision=vault.revision).destroyed == ()
        assert vault.unwrap(second, DIGEST) == DEK
        verify_ed25519(status, b"text", vault.signing_key("status").sign(b"text"))
    told = restore_root(path, shares[:2], CREDENTIAL, driver=driver)
    assert (told.epochs, told.lost_epochs, told.lost_keys) == ((2,), (), ())
    with open_vault(path, CREDENTIAL, driver=driver) as vault:
        assert vault.unwrap(second, DIGEST) == DEK
        assert vault.signing_key("status").public == status
    told = restore_root(path, shares[1:], b"a new passphrase", params=CHEAP)
    assert (told.epochs, told.lost_epochs) == ((3,), (2,))
    with open_vault(path, b"a new passphrase") as vault:
        assert vault.unwrap(vault.wrap(DEK, DIGEST), DIGEST) == DEK


def test_a_broker_over_a_device(tmp_path: Path, driver: DriverConfig) -> None:
    settings = Settings(tmp_path / "home", vault_driver=driver)
    create_home(settings, "hospital", CREDENTIAL, part_of=None, clock=lambda: NOW)
    for _ in range(2):
        broker = Broker.start(settings, CREDENTIAL, clock=lambda: NOW)
        try:
            assert broker.card.name == "hospital"
            assert not any("experimental" in warning for warning in broker.warnings)
        finally:
            broker.close()
