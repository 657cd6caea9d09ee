"""A broker over a vault whose keys lie in a device: it starts, signs inside, says what its driver is, and refuses to be
led to another one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cloister.broker import Broker
from cloister.broker.config import Settings
from cloister.broker.startup import create_home
from cloister.errors import Denied
from cloister.keys import DriverConfig
from tests.folder_driver import PIN, Device, FolderDriver
from tests.folder_driver import device as device

NOW = 1_750_000_000


@pytest.fixture
def settings(tmp_path: Path, device: Device) -> Settings:
    settings = Settings(tmp_path / "home", vault_driver=device.config)
    create_home(settings, "hospital", PIN, part_of=None, clock=lambda: NOW)
    return settings


def test_a_brokers_signing_keys_stay_in_the_device(settings: Settings, device: Device) -> None:
    broker = Broker.start(settings, PIN, clock=lambda: NOW)
    try:
        inside = {name.split("_")[1] for name in map(bytes.decode, device.held()) if name.startswith("sign.")}
        assert inside == {"signing", "status", "receipt"}
        broker.core.parties.rotate_signing()
        assert broker.card.serial == 2
        inside = {name.split("_")[1] for name in map(bytes.decode, device.held()) if name.startswith("sign.")}
        assert inside == {"signing", "signing-2", "status", "receipt"}
    finally:
        broker.close()
    Broker.start(settings, PIN, clock=lambda: NOW).close()


@pytest.mark.parametrize("experimental", [True, False])
def test_an_experimental_driver_is_said_at_start(
    settings: Settings, experimental: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FolderDriver, "experimental", experimental)
    broker = Broker.start(settings, PIN, clock=lambda: NOW)
    try:
        assert any("driver pkcs11 is experimental" in warning for warning in broker.warnings) is experimental
    finally:
        broker.close()


def test_a_broker_is_not_led_to_another_driver(settings: Settings) -> None:
    """The vault's file names its driver, but who starts the broker decides."""
    with pytest.raises(Denied) as info:
        Broker.start(Settings(settings.home), b"a passphrase that is not the PIN")
    assert info.value.code == "vault.driver"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--vault-driver", "cloud"], "driver.unknown"),
        (["--vault-option", "token"], "broker.arguments"),
        (["--vault-option", "token=a", "--vault-option", "token=b"], "broker.arguments"),
        (["--vault-driver", "pkcs11", "--vault-option", "Token=a"], "driver.options"),
    ],
)
def test_arguments_out_of_form(tmp_path: Path, arguments: list[str], code: str) -> None:
    """In a process of its own: starting a broker hardens the process for good."""
    command = [sys.executable, "-m", "cloister.broker", "--home", str(tmp_path), "--listen", "127.0.0.1:0", *arguments]
    ended = subprocess.run(command, input=b"a passphrase\n", capture_output=True, check=False, timeout=60)
    assert ended.returncode == 2
    assert json.loads(ended.stdout)["error"]["code"] == code
    assert not list(tmp_path.iterdir())


def test_the_driver_of_a_broker_process(tmp_path: Path) -> None:
    """Options reach the driver: this one refuses them."""
    command = [sys.executable, "-m", "cloister.broker", "--home", str(tmp_path / "home"), "--listen", "127.0.0.1:0"]
    command += ["--init", "hospital", "--vault-option", "path=elsewhere"]
    ended = subprocess.run(command, input=b"a passphrase\n", capture_output=True, check=False, timeout=60)
    assert json.loads(ended.stdout)["error"]["code"] == "driver.options"


def test_the_default_driver_is_the_file(tmp_path: Path) -> None:
    assert Settings(tmp_path).vault_driver == DriverConfig("file", {})
