"""A vault's file is copied from a disk or a backup: without the device it opens nothing, whatever else is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.errors import Denied
from cloister.keys import DriverConfig, create_vault, open_vault
from cloister.node.swtpm import SoftwareTpm
from tests.devices import CREDENTIAL
from tests.devices import config as config
from tests.softhsm import SoftHsm


def test_a_copied_file_without_its_device_opens_nothing(config: DriverConfig, tmp_path: Path) -> None:
    path = tmp_path / "vault.json"
    create_vault(path, CREDENTIAL, "hospital", driver=config).close()
    with SoftwareTpm(tmp_path / "other-tpm") as tpm, SoftHsm(tmp_path / "other-hsm") as softhsm:
        softhsm.create("owner", CREDENTIAL)  # the same label, the same PIN
        copy = tmp_path / "copy.json"
        options = dict(config.options)
        raw = path.read_bytes()
        if config.name == "tpm":
            copy.write_bytes(raw.replace(options["tcti"].encode(), tpm.tcti.encode()))
            options["tcti"] = tpm.tcti
        else:
            copy.write_bytes(raw)
        with pytest.raises(Denied) as info:
            open_vault(copy, CREDENTIAL, driver=DriverConfig(config.name, options))
        assert info.value.code in ("vault.tpm_other", "vault.device_key")
    assert path.read_bytes() == raw
    open_vault(path, CREDENTIAL, driver=config).close()
