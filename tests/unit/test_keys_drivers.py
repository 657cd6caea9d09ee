"""The file driver and the tests' own device keep what every driver promises; and how a driver is chosen."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cloister.errors import Malformed, Misuse
from cloister.keys import DriverConfig, open_driver
from cloister.keys.drivers.file import FileDriver
from tests.folder_driver import FolderDriver
from tests.vault_conformance import KekDriverConformance, MakeDriver, SigningDriverConformance

KEY = bytes(range(100, 132))


class TestFile(KekDriverConformance):
    handles_carry_keys = True

    @pytest.fixture
    def make(self) -> MakeDriver:
        return lambda: open_driver(DriverConfig("file"), KEY)

    @pytest.fixture
    def hidden(self) -> list[bytes]:
        return [KEY]


class TestFolder(SigningDriverConformance):
    @pytest.fixture
    def make(self, tmp_path: Path) -> MakeDriver:
        return lambda: FolderDriver(tmp_path / "device")


def test_a_handle_moves_to_another_master_key() -> None:
    old, new = FileDriver(KEY), FileDriver(bytes(32))
    handle = old.create("ab" * 16, 3)
    moved = old.moved(handle, new)
    assert new.unwrap(moved, old.wrap(handle, KEY, b"context"), b"context") == KEY


@pytest.mark.parametrize(("options", "credential"), [({"path": "x"}, KEY), ({}, b"passphrase")])
def test_what_the_file_driver_takes(options: dict[str, str], credential: bytes) -> None:
    with pytest.raises(Misuse) as info:
        open_driver(DriverConfig("file", options), credential)
    assert info.value.code == ("driver.options" if options else "driver.credential")


def test_a_driver_that_there_is_not() -> None:
    with pytest.raises(Misuse, match="choose one of file, tpm, pkcs11") as info:
        DriverConfig("cloud")
    assert info.value.code == "driver.unknown"


@pytest.mark.parametrize(
    "options",
    [{"Url": "x"}, {"url": 1}, {"url": "a\nb"}, {"url": "x" * 4097}, {1: "x"}, {str(n): "x" for n in range(33)}],
)
def test_options_out_of_form(options: dict[str, str]) -> None:
    with pytest.raises(Malformed) as info:
        DriverConfig("tpm", options)
    assert info.value.code == "driver.options"


@pytest.mark.parametrize(("name", "library"), [("pkcs11", "pkcs11"), ("tpm", "tpm2_pytss"), ("aws", "botocore")])
def test_a_library_that_is_not_installed(name: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [m for m in sys.modules if m.startswith(f"cloister.keys.drivers.{name}")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(Misuse) as info:
        open_driver(DriverConfig(name), b"credential")
    assert info.value.code == "driver.extra"
    assert f"pip install 'cloister[{name}]'" in str(info.value)
