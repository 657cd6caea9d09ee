"""Starting and stopping, with a stand-in for the supervisor's process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.client import Home, operations, startup
from cloister.client.supervisor import default_home
from cloister.errors import CloisterError, Denied, Malformed, Misuse, Unavailable
from tests.patience import until

COMMAND = startup._command  # before a fixture puts the stand-in there
SUPERVISOR = """
import json, os, socket, sys, time
home, mode = sys.argv[1:3]
if mode == "refuse":
    error = {"kind": "denied", "code": "x.y", "message": "Not today.", "details": {}}
    print(json.dumps({"ready": False, "error": error}))
    sys.exit(3)
if mode == "silent":
    sys.exit(1)
server = socket.socket(socket.AF_UNIX)
print(json.dumps({"ready": True}), flush=True)
if mode == "dies":
    sys.exit(1)
time.sleep(0.2)
server.bind(home + "/.sock")
server.listen()
os.rename(home + "/.sock", home + "/supervisor.sock")  # whoever sees it can connect to it
while True:
    connection, _ = server.accept()
    request = json.loads(connection.makefile().readline())
    if mode == "garbled":
        connection.sendall(b"[1]\\n" if request["op"] == "start-party" else b"{")
        connection.close()
        continue
    answer = {"ok": True, "pid": os.getpid(), "parties": {}, "control": {"url": "http://127.0.0.1:1"}}
    connection.sendall(json.dumps(answer).encode() + b"\\n")
    connection.close()
    if request["op"] == "stop":
        os.unlink(home + "/supervisor.sock")
        time.sleep(0.2)
        sys.exit(0)
"""


@pytest.fixture
def mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    chosen = {"mode": "good"}
    program = tmp_path / "supervisor.py"
    program.write_text(SUPERVISOR)

    def command(home: Home, single_user: bool) -> list[str]:
        return [sys.executable, str(program), str(home.path), chosen["mode"]]

    monkeypatch.setattr(startup, "_command", command)
    yield chosen
    home = Home(tmp_path / "h")
    if home.running():
        operations.down(home)


def test_up_starts_once_and_down_ends_it(mode: dict[str, str], tmp_path: Path) -> None:
    home = Home(tmp_path / "h")
    state, started = operations.up(home)
    assert (started, state["ok"]) == (True, True)
    same, again = operations.up(home)
    assert (again, same["pid"]) == (False, state["pid"])
    assert os.getsid(state["pid"]) != os.getsid(0), "it survives this terminal"
    assert operations.down(home) is True
    assert operations.down(home) is False


@pytest.mark.parametrize(
    ("how", "kind", "code"),
    [("refuse", Denied, "x.y"), ("silent", Unavailable, "home.start"), ("dies", Unavailable, "home.start")],
)
def test_a_start_that_fails_says_why(
    mode: dict[str, str], tmp_path: Path, how: str, kind: type[CloisterError], code: str
) -> None:
    mode["mode"] = how
    with pytest.raises(kind) as caught:
        operations.up(Home(tmp_path / "h"))
    assert caught.value.code == code


def test_foreground_lasts_until_it_is_stopped(mode: dict[str, str], tmp_path: Path) -> None:
    home = Home(tmp_path / "h")
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(operations.run_in_foreground(home)))
    thread.start()
    until("the supervisor", home.running)
    with pytest.raises(Misuse) as caught:
        operations.run_in_foreground(home)
    assert caught.value.code == "home.running"
    operations.down(home)
    thread.join(60)
    assert codes == [0]


def test_a_home_that_cannot_be_made(mode: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Misuse) as caught:
        operations.up(Home(tmp_path / "file" / "h"))
    assert caught.value.code == "home.folder"


@pytest.mark.parametrize("widened", [0o020, 0o002])
def test_a_home_that_others_may_write_to(mode: dict[str, str], tmp_path: Path, widened: int) -> None:
    home = Home(tmp_path / "h")
    home.path.mkdir()
    home.path.chmod(0o700 | widened)
    for use in (lambda: operations.up(home), lambda: operations.run_in_foreground(home), home.status):
        with pytest.raises(Misuse) as caught:
            use()
        assert caught.value.code == "home.owner"
    assert list(home.path.iterdir()) == []
    home.path.chmod(0o700)


def test_a_home_of_somebody_else(mode: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path / "h")
    home.path.mkdir(mode=0o700)
    owner = home.path.stat().st_uid
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: owner + 1)
        for use in (lambda: operations.up(home), lambda: home.start_party("hospital", "secret", create=True)):
            with pytest.raises(Misuse) as caught:
                use()
            assert caught.value.code == "home.owner"
    assert list(home.path.iterdir()) == []


def test_the_log_is_no_way_into_another_file(mode: dict[str, str], tmp_path: Path) -> None:
    home = Home(tmp_path / "h")
    home.path.mkdir(mode=0o700)
    (tmp_path / "victim").write_text("precious")
    log = home.path / "supervisor.log"
    log.symlink_to(tmp_path / "victim")
    with pytest.raises(Misuse) as caught:
        operations.up(home)
    assert (caught.value.code, (tmp_path / "victim").read_text()) == ("home.log", "precious")
    log.unlink()
    log.touch(mode=0o644)
    operations.up(home)
    assert log.stat().st_mode & 0o777 == 0o600


def test_an_answer_that_is_none(mode: dict[str, str], tmp_path: Path) -> None:
    mode["mode"] = "garbled"
    home = Home(tmp_path / "h")
    (tmp_path / "h").mkdir(mode=0o700)
    process = subprocess.Popen(startup._command(home, False), stdout=subprocess.PIPE)
    try:
        until("its socket", home.socket.exists)
        with pytest.raises(CloisterError) as caught:
            home.start_party("hospital", "pw", create=True)
        assert caught.value.code == "wire.unreadable"
        with pytest.raises(Malformed) as broken:
            home.status()
        assert broken.value.code == "home.answer"
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        home.socket.unlink()


def test_where_home_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_home({"CLOISTER_HOME": "/x/y"}) == Path("/x/y")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_home({}) == Path("/var/lib/cloister")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert default_home({}) == Path.home() / ".local" / "share" / "cloister"


def test_the_command_is_the_supervisors(tmp_path: Path) -> None:
    command = COMMAND(Home(tmp_path), True)
    assert command[1:] == ["-m", "cloister.control.embedded", "--home", str(tmp_path), "--single-user"]
