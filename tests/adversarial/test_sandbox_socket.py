"""Attack: through its one socket the workload (or a neighbour) reaches more than the job's brokers."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.node import SocketLimits, SocketServer
from tests.sandbox_kit import RUN_AS, Box, box

LIMITS = SocketLimits(line_bytes=1024, connections=4, line_seconds=60, telemetry_per_minute=3, evidence_per_minute=2)
STATE = {"kind": "state", "code": "prepare"}


class _Node:
    """A server with a broker stand-in that counts who reached it."""

    def __init__(self, folder: Path, owner: tuple[int, int] | None, limits: SocketLimits = LIMITS) -> None:
        self.path = folder / "node.sock"
        self.events: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.broker = socket.create_server(("127.0.0.1", 0))
        self.broker.settimeout(60)
        self.server = SocketServer(
            self.path,
            parties={"hospital": self.broker.getsockname()[:2]},
            evidence=self._evidence,
            telemetry=self.events.append,
            owner=owner,
            limits=limits,
            clock=lambda: 0.0,
        )

    def _evidence(self, nonce: str, key: dict[str, str]) -> dict[str, Any]:
        self.asked.append(nonce)
        return {"tee": "tpm"}

    def reached(self) -> bool:
        self.broker.setblocking(False)
        try:
            self.broker.accept()[0].close()
        except BlockingIOError:
            return False
        return True


@pytest.fixture
def inside() -> Iterator[Box]:
    with box() as made:
        yield made


@pytest.fixture
def node(inside: Box) -> Iterator[_Node]:
    made = _Node(inside.folder, RUN_AS)
    with made.server, made.broker:
        yield made


_ASK = """
def ask(body, path="/run/cloister.sock"):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        sock.sendall((body if isinstance(body, bytes) else json.dumps(body).encode()) + b"\\n")
        return json.loads(b"".join(iter(lambda: sock.recv(4096), b"")))
"""


def _ask(inside: Box, node: _Node, *bodies: object) -> list[dict[str, Any]]:
    code = f"{_ASK}\nprint(json.dumps([ask(b) for b in {list(bodies)!r}]))"
    answers = json.loads(inside.run(code, socket_path=node.path))
    assert isinstance(answers, list)
    return answers


def test_the_jobs_broker_is_reached_from_inside(inside: Box, node: _Node) -> None:
    code = """
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect("/run/cloister.sock")
    sock.sendall(b'{"op":"connect","party":"hospital"}\\n')
    print(sock.recv(100).decode().strip(), flush=True)
    sock.sendall(b"ping")
    print(sock.recv(4).decode())
"""

    def serve() -> None:
        sock, _ = node.broker.accept()
        with sock:
            assert sock.recv(4) == b"ping"
            sock.sendall(b"pong")

    thread = threading.Thread(target=serve)
    thread.start()
    assert inside.run(code, socket_path=node.path) == '{"ok":true}\npong\n'
    thread.join(60)


@pytest.mark.parametrize("party", ["bank", "control", "localhost", "127.0.0.1", "hospital.evil", "", "hospital\n"])
def test_no_other_party_is_reached(inside: Box, node: _Node, party: str) -> None:
    (answer,) = _ask(inside, node, {"op": "connect", "party": party})
    assert answer["ok"] is False
    assert answer["error"]["code"] in ("node.party", "node.request")
    assert not node.reached()


def test_address_can_not_be_smuggled_into_the_request(inside: Box, node: _Node) -> None:
    port = node.broker.getsockname()[1]
    answers = _ask(
        inside,
        node,
        {"op": "connect", "party": "hospital", "port": port},
        {"op": "connect", "party": ["127.0.0.1", port]},
        b'{"op":"connect","party":"bank","party":"hospital"}',
    )
    assert [a["error"]["code"] for a in answers] == ["node.request", "node.request", "json.duplicate"]
    assert not node.reached()


def test_telemetry_is_no_channel_for_text_or_floods(inside: Box, node: _Node) -> None:
    rows = {"kind": "progress", "stage": "train", "step": 1, "total": 2, "values": {"loss": "name: John Doe"}}
    answers = _ask(inside, node, {"op": "telemetry", "event": rows}, *[{"op": "telemetry", "event": STATE}] * 5)
    assert answers[0]["error"]["code"] == "node.request"
    assert "John" not in json.dumps(answers)
    # The clock stands still here, so the burst of three is all.
    assert [a["ok"] for a in answers[1:]] == [True, True, True, False, False]
    assert answers[-1]["error"]["code"] == "node.rate"
    assert node.events == [STATE] * 3


def test_evidence_can_not_be_drawn_without_end(inside: Box, node: _Node) -> None:
    request = {"op": "evidence", "nonce": "n", "tee-pubkey": {"kty": "EC"}}
    answers = _ask(inside, node, *[request] * 4)
    assert [a["ok"] for a in answers] == [True, True, False, False]
    assert answers[-1]["error"]["code"] == "node.rate"
    assert node.asked == ["n", "n"]


def test_endless_line_is_cut(inside: Box, node: _Node) -> None:
    code = """
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect("/run/cloister.sock")
    try:
        for _ in range(10000):
            sock.sendall(b"x" * 1024)
    except OSError as error:
        print(errno.errorcode[error.errno])
"""
    assert inside.run(code, socket_path=node.path) in ("EPIPE\n", "ECONNRESET\n")
    assert _ask(inside, node, {"op": "telemetry", "event": STATE}) == [{"ok": True}]


def test_silent_connections_do_not_block_the_socket(inside: Box) -> None:
    node = _Node(inside.folder, RUN_AS, dataclasses.replace(LIMITS, line_seconds=1))
    code = f"""{_ASK}
held = []
for _ in range(20):
    sock = socket.socket(socket.AF_UNIX)
    sock.connect("/run/cloister.sock")
    held.append(sock)
for sock in held:
    attempt(sock.recv, 1000)  # each is answered or cut by the server's own clock
answer = None
while answer is None:
    try:
        answer = ask({{"op": "telemetry", "event": {STATE!r}}})
    except (OSError, ValueError):
        pass  # cut: on a busy machine a request, too, may take longer than that clock allows
print(json.dumps(answer))
"""
    with node.server, node.broker:
        assert json.loads(inside.run(code, socket_path=node.path)) == {"ok": True}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can try it as another user")
def test_another_user_of_the_host_is_not_served(inside: Box, node: _Node) -> None:
    node.path.chmod(0o666)  # even if the mode were wrong
    code = f"import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect({str(node.path)!r})\nprint(s.recv(100))"
    for uid in (0, 64902):
        done = subprocess.run(
            ["/usr/bin/python3", "-I", "-c", code],
            user=uid,
            group=uid,
            extra_groups=[],
            capture_output=True,
            check=True,
        )
        assert done.stdout == b"b''\n"
    assert node.events == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can try it as another user")
def test_mode_of_the_socket_keeps_other_users_out(inside: Box, node: _Node) -> None:
    code = f"import socket\nsocket.socket(socket.AF_UNIX).connect({str(node.path)!r})"
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-c", code],
        user=64902,
        group=64902,
        extra_groups=[],
        capture_output=True,
        check=False,
    )
    assert b"PermissionError" in done.stderr
