"""A device for a whole vault: SoftHSM by either mechanism, or swtpm.

A module takes the fixture with ``from tests.devices import config as config``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.keys import DriverConfig
from cloister.node.swtpm import SoftwareTpm
from tests.softhsm import MODULE, SoftHsm

__all__ = ["CREDENTIAL", "config"]

CREDENTIAL = b"user-pin-59312"


@pytest.fixture(params=["aes-kwp", "ecdh", "tpm"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DriverConfig]:
    if request.param == "tpm":
        with SoftwareTpm(tmp_path / "state") as running:
            yield DriverConfig("tpm", {"tcti": running.tcti})
        return
    with SoftHsm(tmp_path / "softhsm") as softhsm:
        softhsm.create("owner", CREDENTIAL)
        yield DriverConfig("pkcs11", {"module": MODULE, "token": "owner", "mechanism": request.param})
