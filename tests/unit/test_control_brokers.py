"""What the supervisor starts a party's broker with, and that a database's password goes through the pipe alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloister.broker import __main__ as program
from cloister.broker.database import read_address
from cloister.control.brokers import broker_arguments, broker_secrets
from cloister.errors import Misuse

URL = "postgresql://broker:secret@127.0.0.1:5432/lab"


def test_arguments() -> None:
    assert broker_arguments(None, None) == ("--vault-driver", "file")
    vault = {"name": "transit", "options": {"url": "https://x", "key": "k"}}
    options = ("--vault-option=key=k", "--vault-option=url=https://x")
    assert broker_arguments(vault, "/etc/url") == ("--vault-driver", "transit", *options, "--database", "-")


def test_secrets(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.touch(mode=0o600)
    file.write_text(f"  {URL}\n\n")
    assert broker_secrets("passphrase", None) == "passphrase"
    assert broker_secrets("passphrase", str(file)) == f"passphrase\n{URL}"


@pytest.mark.parametrize(
    ("content", "mode", "code"),
    [
        (URL, 0o640, "state.address_mode"),
        (URL, 0o604, "state.address_mode"),
        ("", 0o600, "state.address"),
        (f"{URL}\nanother line", 0o600, "state.address"),
        (f"{URL}\0", 0o600, "state.address"),
        ("x" * 4097, 0o600, "state.address"),
        (b"\xff", 0o600, "state.address"),
    ],
    ids=str,
)
def test_a_file_that_is_of_no_use(tmp_path: Path, content: str | bytes, mode: int, code: str) -> None:
    file = tmp_path / "url"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    file.chmod(mode)
    with pytest.raises(Misuse) as caught:
        broker_secrets("passphrase", str(file))
    assert caught.value.code == code
    assert "secret" not in caught.value.message


def test_what_is_no_file(tmp_path: Path) -> None:
    """A pipe holds nothing up, whether somebody has it open to write or not."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    for path, code in (
        (tmp_path / "absent", "state.address"),
        (tmp_path / "nul\0", "state.address"),
        (tmp_path, "state.address_mode"),
        (pipe, "state.address_mode"),
    ):
        refused(path, code)
    writer = os.open(pipe, os.O_RDWR)
    refused(pipe, "state.address_mode")
    os.close(writer)


def refused(path: Path, code: str, passphrase: str = "passphrase") -> None:
    opened = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Misuse) as caught:
        broker_secrets(passphrase, str(path))
    assert caught.value.code == code
    assert len(os.listdir("/proc/self/fd")) == opened


def test_a_passphrase_that_would_name_another_database(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.touch(mode=0o600)
    file.write_text(URL)
    refused(file, "broker.passphrase", "passphrase\npostgresql://elsewhere/lab")


def test_a_broker_keeps_the_url_in_memory_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = tmp_path / "stdin"
    given.write_bytes(URL.encode() + b"\n")
    with given.open() as file:
        monkeypatch.setattr("sys.stdin", file)
        address = program._database(Path("-"))
        assert address is not None
        for _ in range(2):  # a move into a database opens it twice
            assert read_address(address).password == "secret"
        with pytest.raises(Misuse) as caught:
            program._database(Path("-"))
    assert caught.value.code == "broker.database"
    os.close(int(address.name))


def test_a_broker_that_is_given_a_file_or_nothing(tmp_path: Path) -> None:
    assert program._database(None) is None
    assert program._database(tmp_path / "url") == tmp_path / "url"
