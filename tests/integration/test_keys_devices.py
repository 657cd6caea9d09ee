"""A whole vault over a device: everything that a party does with its keys, on SoftHSM and on swtpm."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.crypto import sha256, verify_ed25519
from cloister.errors import Denied
from cloister.keys import DriverConfig, WrappedKey, create_vault, open_driver, open_vault, provision_party
from tests.devices import CREDENTIAL
from tests.devices import config as config
from tests.vault_conformance import DEK

MANIFEST = sha256(b"manifest")


def test_the_life_of_a_vault(config: DriverConfig, tmp_path: Path) -> None:
    path = tmp_path / "vault.json"
    with create_vault(path, CREDENTIAL, "hospital", driver=config) as vault:
        provision_party(vault)
        first = vault.wrap(DEK, MANIFEST)
        public = vault.signing_key("receipt").public
        assert vault.rotate_kek() == 2
        second = vault.rewrap(first, MANIFEST)
        assert vault.warnings == ()
    assert CREDENTIAL not in path.read_bytes()

    with open_vault(path, CREDENTIAL, driver=config) as vault:
        assert vault.unwrap(first, MANIFEST) == vault.unwrap(second, MANIFEST) == DEK
        signer = vault.signing_key("receipt")
        verify_ed25519(public, b"message", signer.sign(b"message"))
        # What the vault says of its keys: nothing that is in the token can be had by this process.
        inside, keys = config.name == "pkcs11", vault.keys()
        extractable = {(info.kind, info.epoch): info.extractable for info in keys if info.kind in ("kek", "signing")}
        assert set(extractable.values()) == ({False} if inside else {True})
        said = vault.destroy_epoch(1)
        assert said is not None
        assert said.endswith(".")
        with pytest.raises(Denied) as info:
            vault.unwrap(first, MANIFEST)
        assert info.value.code == "wrap.epoch"
        assert vault.unwrap(second, MANIFEST) == DEK
        renamed = WrappedKey(second.kek_id, second.epoch, "A256GCM", second.box)
        with pytest.raises(Denied) as info:
            vault.unwrap(renamed, MANIFEST)
        assert info.value.code == "wrap.algorithm"

    with pytest.raises(Denied) as refused:
        open_vault(path, b"another-pin", driver=config)
    assert refused.value.code in ("vault.pin", "vault.credential")


def test_what_a_crash_left_on_the_device_is_swept(config: DriverConfig, tmp_path: Path) -> None:
    path = tmp_path / "vault.json"
    with create_vault(path, CREDENTIAL, "hospital", driver=config) as vault:
        provision_party(vault)
        wrapped = vault.wrap(DEK, MANIFEST)
        device = open_driver(config, CREDENTIAL)
        orphan = device.create(vault.kek_id, 2)  # as far as a rotation came that was killed before it wrote the file
        swept = vault.sweep_orphans(known_revision=vault.revision)
        assert len(swept.remains) == (1 if config.name == "pkcs11" else 0)
        if config.name == "pkcs11":
            with pytest.raises(Denied) as info:
                device.wrap(orphan, DEK, b"")
            assert info.value.code == "wrap.gone"
        device.close()
        assert vault.unwrap(wrapped, MANIFEST) == DEK
        vault.signing_key("receipt").sign(b"message")
    with open_vault(path, CREDENTIAL, driver=config) as vault:
        assert vault.unwrap(wrapped, MANIFEST) == DEK
