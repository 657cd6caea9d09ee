"""``python -m cloister.control``: one JSON line when it is ready or refuses, and a prompt, clean end."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx

from cloister.client import ControlClient
from tests.control_world import NodeParty
from tests.patience import until
from tests.s3_server import Proxy


def start(home: Path, *more: str, key: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    command = [sys.executable, "-m", "cloister.control", "--home", str(home), "--node-key", key, *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())


def finish(process: subprocess.Popen[str]) -> str:
    _, errors = process.communicate(timeout=120)
    return errors


def test_it_says_when_it_is_ready_and_ends_on_sigterm(tmp_path: Path) -> None:
    node = NodeParty()
    process, ready = start(tmp_path / "c", key=node.signing.public.hex())
    asked = False
    try:
        assert ready["ready"] is True
        assert ready["url"] == f"http://127.0.0.1:{ready['port']}"
        assert httpx.get(ready["url"] + "/v1/info").json()["id"] == ready["id"]
        answers: list[Any] = []
        proxy = Proxy(ready["port"])
        client = ControlClient(proxy.endpoint, node)
        waiting = threading.Thread(target=lambda: answers.append(client._post("/v1/node/claim", {})))
        waiting.start()
        until("the request", lambda: any(line.startswith("POST") for line in proxy.gets))
        waiting.join(0.5)
        for _ in range(3):  # the server does one thing after the other: by now, what came before is under way
            httpx.get(ready["url"] + "/v1/info")
        process.send_signal(signal.SIGTERM)
        asked = True
        waiting.join(120)
        client.close()
        proxy.close()
        assert answers == [{}], "a long poll is answered, not cut"
    finally:
        if not asked:  # a second signal would hit it while it ends
            process.terminate()
        errors = finish(process)
    assert process.returncode in (0, -signal.SIGTERM)
    assert "Traceback" not in errors
    assert (tmp_path / "c").stat().st_mode & 0o077 == 0


def test_it_says_why_it_refuses(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        taken.listen()
        for arguments, key, code, status in (
            (["--listen", "127.0.0.1:0"], "xy", "control.node_key", 2),
            (["--listen", "0.0.0.0:0"], "aa" * 32, "control.listen", 2),
            (["--listen", "127.0.0.1:http"], "aa" * 32, "control.listen", 2),
            (["--listen", f"127.0.0.1:{port}"], "aa" * 32, "control.port", 1),
        ):
            process, answer = start(tmp_path / "c", *arguments, key=key)
            finish(process)
            assert (answer["ready"], answer["error"]["code"], process.returncode) == (False, code, status)


def test_a_second_one_in_the_folder_refuses(tmp_path: Path) -> None:
    process, _ = start(tmp_path / "c", key="aa" * 32)
    try:
        second, answer = start(tmp_path / "c", key="aa" * 32)
        finish(second)
        assert answer["error"]["code"] == "control.running"
    finally:
        process.terminate()
        finish(process)
