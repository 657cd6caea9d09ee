"""The supervisor answers its owner, whatever it is asked: what one request runs into ends no part of the machine."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path
from typing import Any, cast

import pytest

from cloister.control import supervisor_socket
from cloister.control.embedded import Supervisor
from cloister.control.processes import Part, PartProcess
from cloister.errors import CloisterError

SECRET = "correct horse battery"


class Surprised:
    def start_party(self, name: str, part_of: str | None, passphrase: str, **_: Any) -> int:
        raise ValueError(f"{name} {part_of} {passphrase}")


def test_a_request_that_nobody_foresaw(capsys: pytest.CaptureFixture[str]) -> None:
    """Its own text may quote a passphrase, so neither the answer nor the log has it."""
    request = {"create": True, "name": "lab", "op": "start-party", "passphrase": SECRET}
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(json.dumps(request).encode() + b"\n")
        assert supervisor_socket._answer(cast(Supervisor, Surprised()), ours) is False
        answer = theirs.recv(65536).decode()
    assert json.loads(answer)["error"]["code"] == "supervisor.bug"
    logged = capsys.readouterr().err
    assert "ValueError" in logged
    assert SECRET not in answer + logged


def refusal(folder: Path, secret: str | None = None) -> str:
    with pytest.raises(CloisterError) as caught:
        PartProcess.start(Part("party/x", "cloister.no_such_module", (), None), folder, secret=secret)
    return caught.value.code


def test_a_part_that_ends_before_it_has_read_its_secret(tmp_path: Path) -> None:
    assert refusal(tmp_path, "x" * 300_000) == "embedded.start"


def test_a_machine_that_starts_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise BlockingIOError(11, "no more processes")

    monkeypatch.setattr(subprocess, "Popen", full)
    assert refusal(tmp_path) == "embedded.fork"
