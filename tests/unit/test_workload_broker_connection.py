"""What the workload's client puts on the wire: one piece a request, and nothing after a broken one."""

from __future__ import annotations

import io
import socket
from typing import Any

import pytest

from cloister.errors import Unavailable
from cloister.workload import broker_client
from cloister.workload.broker_client import BrokerClient

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nSet-Cookie: kbs-session-id=c; Path=/\r\n\r\n{}"


class Line:
    """A connected TLS socket, as far as the client uses it."""

    def __init__(self, *, broken: bool = False) -> None:
        self.sent: list[bytes] = []
        self.broken, self.closed = broken, False

    def sendall(self, data: bytes) -> None:
        if self.broken:
            raise BrokenPipeError
        self.sent.append(bytes(data))

    def makefile(self, mode: str) -> io.BytesIO:
        assert mode == "rb"
        return io.BytesIO(OK)

    def close(self) -> None:
        self.closed = True


class Link:
    """Its tunnels lead nowhere: TLS over them is ``Line``."""

    def tunnel(self, _party: str) -> socket.socket:
        return socket.socket(socket.AF_UNIX)


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Line:
    made = Line()

    def connect(sock: socket.socket, *_: object) -> Line:
        sock.close()
        return made

    monkeypatch.setattr(broker_client, "connect_pinned", connect)
    return made


def client() -> BrokerClient:
    contract: Any = None
    link: Any = Link()
    return BrokerClient(link, contract, "hospital", pin=bytes(32))


def test_head_and_body_go_out_together(line: Line) -> None:
    mine = client()
    assert mine.post("/a", {"x": 1}) == {}
    assert mine.get("/b") == b"{}"
    first, second = line.sent
    assert first.startswith(b"POST /a HTTP/1.1\r\n")
    assert first.endswith(b'\r\n\r\n{"x":1}')
    assert second.startswith(b"GET /b HTTP/1.1\r\n")
    assert b"Cookie: kbs-session-id=c\r\n" in second
    mine.close()
    assert line.closed


def test_a_connection_that_broke_is_not_used_again(line: Line) -> None:
    line.broken = True
    mine = client()
    for _ in range(2):
        with pytest.raises(Unavailable) as caught:
            mine.post("/a", {"x": 1})
        assert caught.value.code == "broker.unreachable"
        assert line.closed
        line.closed = False
    line.broken = False
    mine.post("/c", {})
    assert [sent.split(b" ")[1] for sent in line.sent] == [b"/c"], "nothing of what failed goes out later"
    mine.close()
