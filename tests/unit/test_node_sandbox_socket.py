"""The node socket: requests, rates, tunnels, and the server with a real broker stand-in on loopback."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import Denied, Malformed, Misuse, Unavailable, error_from_wire
from cloister.node import SocketLimits, SocketServer
from cloister.node.socket_requests import Connect, EvidenceRequest, RateLimit, Telemetry, parse_request
from cloister.node.tunnel import pump

LIMITS = SocketLimits(line_seconds=60, connect_seconds=60, idle_seconds=60)
PROGRESS = {"kind": "progress", "stage": "train", "step": 3, "total": 9, "values": {"loss": "0.25", "f1": "nan"}}
FAILURE = {"kind": "state", "code": "failed", "error": {"kind": "denied", "code": "a.b", "message": "m", "details": {}}}


def _parse(body: object) -> object:
    return parse_request(json.dumps(body).encode(), LIMITS)


def test_the_three_requests_are_understood() -> None:
    assert _parse({"op": "connect", "party": "hospital"}) == Connect("hospital")
    key = {"kty": "EC", "crv": "P-256", "x": "AA", "y": "BB"}
    assert _parse({"op": "evidence", "nonce": "bm9uY2U=", "tee-pubkey": key}) == EvidenceRequest("bm9uY2U=", key)
    for event in (PROGRESS, FAILURE, {"kind": "state", "code": "prepare"}):
        assert _parse({"op": "telemetry", "event": event}) == Telemetry(event)


@pytest.mark.parametrize(
    "body",
    [
        [],
        {},
        {"op": "run"},
        {"op": "connect"},
        {"op": "connect", "party": "Hospital"},
        {"op": "connect", "party": "127.0.0.1"},
        {"op": "connect", "party": "a", "port": 1},
        {"op": "connect", "party": ["a"]},
        {"op": "evidence", "nonce": "", "tee-pubkey": {"kty": "EC"}},
        {"op": "evidence", "nonce": "n" * 1025, "tee-pubkey": {"kty": "EC"}},
        {"op": "evidence", "nonce": "n", "tee-pubkey": {}},
        {"op": "evidence", "nonce": "n", "tee-pubkey": {"kty": 1}},
        {"op": "evidence", "nonce": "n", "tee-pubkey": {"kty": "x" * 4097}},
        {"op": "evidence", "nonce": "n", "tee-pubkey": {"kty": "EC"}, "instance": "00"},
        {"op": "telemetry", "event": "text"},
        {"op": "telemetry", "event": {"kind": "log", "text": "row 7"}},
        {"op": "telemetry", "event": {"kind": "state", "code": "row 7"}},
        {"op": "telemetry", "event": {"kind": "state", "code": "a", "text": "row 7"}},
        {"op": "telemetry", "event": {**PROGRESS, "step": -1}},
        {"op": "telemetry", "event": {**PROGRESS, "step": True}},
        {"op": "telemetry", "event": {**PROGRESS, "step": 2**41}},
        {"op": "telemetry", "event": {**PROGRESS, "values": {"loss": "1e5"}}},
        {"op": "telemetry", "event": {**PROGRESS, "values": {"loss": "row 7"}}},
        {"op": "telemetry", "event": {**PROGRESS, "values": {"loss": 1}}},
        {"op": "telemetry", "event": {**PROGRESS, "values": {f"v{i}": "1" for i in range(33)}}},
        {"op": "telemetry", "event": {**PROGRESS, "values": {"x" * 65: "1"}}},
        {"op": "telemetry", "event": {**FAILURE, "error": "row 7"}},
        {"op": "telemetry", "event": {**FAILURE, "error": {**FAILURE["error"], "trace": "row 7"}}},  # type: ignore[dict-item]
        {"op": "telemetry", "event": {**FAILURE, "error": {**FAILURE["error"], "message": "x" * 513}}},  # type: ignore[dict-item]
        {"op": "telemetry", "event": {**FAILURE, "error": {**FAILURE["error"], "details": {"a": ["b"]}}}},  # type: ignore[dict-item]
    ],
)
def test_anything_else_is_malformed(body: object) -> None:
    with pytest.raises(Malformed) as caught:
        _parse(body)
    assert caught.value.code == "node.request"
    assert "row 7" not in caught.value.message


@given(st.binary(max_size=200))
def test_no_bytes_do_anything_but_parse_or_fail_as_malformed(line: bytes) -> None:
    with contextlib.suppress(Malformed):
        assert isinstance(parse_request(line, LIMITS), Connect | EvidenceRequest | Telemetry)


def test_a_rate_is_bounded_and_comes_back_with_time() -> None:
    now = [100.0]
    rate = RateLimit(2, lambda: now[0])
    rate.take("telemetry")
    rate.take("telemetry")
    with pytest.raises(Denied, match="less often") as caught:
        rate.take("telemetry")
    assert caught.value.code == "node.rate"
    now[0] += 30
    rate.take("telemetry")
    with pytest.raises(Denied):
        rate.take("telemetry")
    now[0] += 10**6  # a long pause saves up no more than the burst
    rate.take("telemetry")
    rate.take("telemetry")
    with pytest.raises(Denied):
        rate.take("telemetry")


@contextmanager
def _pumped(**options: Any) -> Iterator[tuple[socket.socket, socket.socket, threading.Thread]]:
    """Both outer ends of a tunnel, and the thread that carries."""
    near, left = socket.socketpair()
    right, far = socket.socketpair()

    def carry() -> None:
        pump(left, right, **options)
        left.close()
        right.close()

    thread = threading.Thread(target=carry)
    thread.start()
    for sock in (near, far):
        sock.settimeout(60)
    try:
        yield near, far, thread
    finally:
        near.close()
        far.close()
        thread.join(60)
        assert not thread.is_alive()


def _all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65536), b""))


def test_a_tunnel_carries_both_ways_and_closes_each_way_by_itself() -> None:
    with _pumped(early=b"first ") as (near, far, thread):
        near.sendall(b"request")
        near.shutdown(socket.SHUT_WR)
        assert _all(far) == b"first request"
        far.sendall(b"answer")  # after the other way has ended
        far.shutdown(socket.SHUT_WR)
        assert _all(near) == b"answer"
        thread.join(60)
        assert not thread.is_alive()


def test_a_tunnel_loses_nothing_of_much() -> None:
    data = bytes(range(256)) * 8192
    with _pumped() as (near, far, _):
        writer = threading.Thread(target=lambda: (near.sendall(data), near.shutdown(socket.SHUT_WR)))
        writer.start()
        assert _all(far) == data
        writer.join(60)


def test_a_reader_that_stops_stops_the_writer() -> None:
    with _pumped() as (near, far, _):
        near.settimeout(0.5)
        sent = received = 0
        with contextlib.suppress(TimeoutError):
            while sent < 8 * 2**20:
                sent += near.send(bytes(65536))
        # The kernel's buffers and one chunk fit, whatever the writer would like to send.
        assert 0 < sent < 8 * 2**20
        while received < sent:  # the reader goes on, and nothing of it was lost
            received += len(far.recv(65536))
        assert received == sent


def test_a_tunnel_that_nobody_uses_ends() -> None:
    with _pumped(idle_seconds=0.1) as (near, _, thread):
        thread.join(60)
        assert not thread.is_alive()
        assert near.recv(1) == b""


def test_a_tunnel_ends_when_one_side_vanishes() -> None:
    with _pumped() as (near, far, thread):
        far.close()
        with contextlib.suppress(OSError):
            while thread.is_alive():
                near.send(b"x")
        thread.join(60)
        assert not thread.is_alive()


@contextmanager
def _broker(answer: Callable[[bytes], bytes]) -> Iterator[tuple[str, int]]:
    """A stand-in for a broker: reads until the end, answers, closes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.sendall(answer(_all(sock)))

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[:2]
        thread.join(60)


def _server(path: Path, **changes: Any) -> SocketServer:
    fields: dict[str, Any] = {
        "parties": {},
        "evidence": lambda nonce, key: {"tee": "tpm", "nonce": nonce, "key": key},
        "telemetry": lambda event: None,
        "limits": LIMITS,
    }
    return SocketServer(path, **{**fields, **changes})


def _dial(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(60)
    sock.connect(str(path))
    return sock


def _ask(path: Path, body: object) -> dict[str, Any]:
    with _dial(path) as sock:
        sock.sendall(json.dumps(body).encode() + b"\n")
        answer = json.loads(_all(sock))
    assert isinstance(answer, dict)
    return answer


def test_a_connection_becomes_a_tunnel_to_the_broker(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    with (
        _broker(lambda data: b"got " + data) as address,
        _server(path, parties={"hospital": address}),
        _dial(path) as sock,
    ):
        # What comes with the line already belongs to the tunnel.
        sock.sendall(b'{"op":"connect","party":"hospital"}\nhello ')
        assert sock.recv(12) == b'{"ok":true}\n'
        sock.sendall(b"broker")
        sock.shutdown(socket.SHUT_WR)
        assert _all(sock) == b"got hello broker"


def test_evidence_and_telemetry_reach_their_functions(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    with _server(tmp_path / "sock", telemetry=events.append) as server:
        answer = _ask(server.path, {"op": "evidence", "nonce": "n", "tee-pubkey": {"kty": "EC"}})
        assert answer == {"ok": True, "tee": "tpm", "nonce": "n", "key": {"kty": "EC"}}
        assert _ask(server.path, {"op": "telemetry", "event": PROGRESS}) == {"ok": True}
    assert events == [PROGRESS]


def test_an_error_of_cloister_crosses_and_any_other_stays_inside(tmp_path: Path) -> None:
    def refuse(nonce: str, key: dict[str, str]) -> dict[str, Any]:
        raise Unavailable("attester.busy", "Try again.")

    def break_(event: dict[str, Any]) -> None:
        raise RuntimeError("row 7: secret")

    with _server(tmp_path / "sock", evidence=refuse, telemetry=break_) as server:
        answer = _ask(server.path, {"op": "evidence", "nonce": "n", "tee-pubkey": {"kty": "EC"}})
        error = error_from_wire(answer["error"])
        assert (type(error), error.code, error.message) == (Unavailable, "attester.busy", "Try again.")
        answer = _ask(server.path, {"op": "telemetry", "event": PROGRESS})
        assert answer["ok"] is False
        assert answer["error"]["code"] == "node.failed"
        assert "row 7" not in json.dumps(answer)


def test_a_broker_that_is_down_is_unavailable(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()[:2]
    with _server(tmp_path / "sock", parties={"bank": address}) as server:
        answer = _ask(server.path, {"op": "connect", "party": "bank"})
    assert (answer["ok"], answer["error"]["code"]) == (False, "node.broker")


def test_the_socket_is_private_short_of_the_path_limit_and_goes_away(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 150)
    folder.mkdir()
    server = _server(folder / "sock")
    with server:
        assert (folder / "sock").stat().st_mode & 0o777 == 0o600
        before = set(threading.enumerate())  # some of other tests may end meanwhile
        with pytest.raises(Misuse) as caught:
            _server(folder / "sock").start()
        assert caught.value.code == "node.socket"
        assert set(threading.enumerate()) <= before
    assert list(folder.iterdir()) == []


def test_closing_cuts_tunnels(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    with _broker(lambda data: b"") as address:
        server = _server(path, parties={"hospital": address}).start()
        with _dial(path) as sock:
            sock.sendall(b'{"op":"connect","party":"hospital"}\n')
            assert sock.recv(12) == b'{"ok":true}\n'
            server.close()
            assert sock.recv(1) == b""
    assert not path.exists()
    assert not [t for t in threading.enumerate() if t.name.startswith("node-socket")]
