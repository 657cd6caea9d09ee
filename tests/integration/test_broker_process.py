"""``python -m cloister.broker`` as a process: how it starts, refuses to start, protects itself and ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cloister.broker.__main__ import main
from cloister.client.agent import OwnerAgent

pytest_plugins = ["tests.broker_fixtures"]

PASSPHRASE = b"correct horse battery\n"
NOBODY = 65534


def command(home: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "cloister.broker", "--home", str(home), "--listen", "127.0.0.1:0", *more]


@contextmanager
def started(
    home: Path, *more: str, user: int | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, Any]]]:
    """The process and its first line. One that serves is ended by its own id."""
    pipe = subprocess.PIPE
    identity: dict[str, Any] = {} if user is None else {"user": user, "group": user, "extra_groups": []}
    process = subprocess.Popen(command(home, *more), stdin=pipe, stdout=pipe, **identity)
    assert process.stdin is not None
    assert process.stdout is not None
    said: dict[str, Any] = {"ready": True}
    try:
        process.stdin.write(PASSPHRASE)
        process.stdin.flush()
        said = json.loads(process.stdout.readline())
        yield process, said
    finally:
        if said["ready"]:
            process.send_signal(signal.SIGTERM)
        process.wait(120)
        process.stdin.close()
        process.stdout.close()


@pytest.fixture(scope="module")
def home(fast_folder: Path) -> Path:
    """A party that was created by the process itself."""
    place = fast_folder / "process"
    with started(place, "--init", "hospital", "--part-of", "clinic") as (process, ready):
        assert ready["ready"] is True
        assert ready["party"] == "hospital"
        assert 0 < ready["port"] < 65536
        agent = OwnerAgent(place / "run" / "admin.sock")
        card = agent.card
        agent.close()
        assert (card.kind, card.part_of) == ("team", "clinic")
    assert process.returncode == 0
    return place


def test_it_starts_again_once(home: Path) -> None:
    with started(home) as (process, ready):
        assert ready["ready"] is True
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        core = next(text for text in limits.splitlines() if text.startswith("Max core file size"))
        assert core.split()[4:6] == ["0", "0"]
        modes = {path.name: oct(path.stat().st_mode & 0o777) for path in home.iterdir() if path.is_file()}
        assert {modes[name] for name in ("state.db", "vault.json", "card.json")} == {"0o600"}
        assert (home / "run" / "admin.sock").stat().st_mode & 0o777 == 0o600
        assert home.stat().st_mode & 0o777 == 0o700
        with started(home) as (second, refused):
            assert refused["ready"] is False
            assert refused["error"]["code"] == "audit.locked"
        assert second.returncode == 1
    assert process.returncode == 0
    assert not (home / "run" / "admin.sock").exists()


@pytest.mark.parametrize(
    ("more", "line", "code", "exit_code"),
    [
        ((), b"another passphrase\n", "vault.passphrase", 3),
        ((), b"", "broker.passphrase", 2),
        (("--init", "hospital"), PASSPHRASE, "party.exists", 2),
        (("--part-of", "clinic"), PASSPHRASE, "broker.arguments", 2),
    ],
)
def test_it_refuses_to_start(
    home: Path, more: tuple[str, ...], line: bytes, code: str, exit_code: int,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert in_process(home, more, line, monkeypatch) == exit_code
    said = json.loads(capsys.readouterr().out)
    assert (said["ready"], said["error"]["code"]) == (False, code)


def in_process(home: Path, more: tuple[str, ...], line: bytes, monkeypatch: pytest.MonkeyPatch) -> int:
    """``main`` without a new interpreter, and without hardening the test's own process."""
    read, write = os.pipe()
    os.write(write, line)
    os.close(write)
    monkeypatch.setattr("cloister.broker.__main__.harden_process", lambda: None)
    before = os.umask(0o077)
    try:
        with os.fdopen(read, "r") as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            return main(command(home, *more)[3:])
    finally:
        os.umask(before)


@pytest.mark.parametrize("listen", ["nowhere", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:70000"])
def test_it_needs_an_address(
    home: Path, listen: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_process(home, ("--listen", listen), PASSPHRASE, monkeypatch) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "broker.listen"


def test_its_address_is_taken(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert in_process(home, ("--listen", address), PASSPHRASE, monkeypatch) == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "broker.address"


def test_its_folder_has_too_long_a_path(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = folder / ("x" * 100)
    assert in_process(home, ("--init", "lab"), PASSPHRASE, monkeypatch) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "broker.path"


def test_the_passphrase_is_neither_in_argv_nor_in_the_environment(home: Path) -> None:
    with started(home) as (process, _):
        for name in ("cmdline", "environ"):
            assert PASSPHRASE.strip() not in Path(f"/proc/{process.pid}/{name}").read_bytes()


@pytest.mark.skipif(os.geteuid() != 0, reason="starting it as another user needs root")
def test_not_even_its_own_user_may_read_its_memory() -> None:
    """The kernel gives the /proc entries of a process that may not be dumped or attached to root."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="cloister-", dir=shm if shm.is_dir() else None) as place:
        os.chown(place, NOBODY, NOBODY)
        with started(Path(place) / "home", "--init", "lab", user=NOBODY) as (process, ready):
            assert ready["ready"] is True, ready
            assert os.stat(f"/proc/{process.pid}").st_uid == NOBODY
            assert os.stat(f"/proc/{process.pid}/environ").st_uid == 0
