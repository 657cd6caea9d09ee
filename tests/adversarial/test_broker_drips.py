"""An owner's broker, or a stock key broker, or the node answers a byte at a time, for ever: the run does not wait.

What other owners gave the run is in memory meanwhile, and their leases end.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.crypto import SigningKey
from cloister.crypto.tls import public_key_pin, server_context_from_seed
from cloister.errors import CloisterError
from cloister.workload import broker_client, node_link
from cloister.workload.broker_client import BrokerClient
from cloister.workload.node_link import NodeLink
from tests.patience import PATIENCE

SEED = bytes(range(32))
HEADER = b"HTTP/1.1 200 OK\r\nX: "
BODY = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


class Dripper:
    """Answers ``first`` requests as it should, and then drips after ``start``. ``tired``: it gave up first."""

    def __init__(self, start: bytes | None, *, first: int = 0) -> None:
        self._start, self._first = start, first
        self.over, self.tired = threading.Event(), threading.Event()
        self.ours, theirs = socket.socketpair()
        self.thread = threading.Thread(target=self._serve, args=(theirs,))
        self.thread.start()

    def tunnel(self, _party: str) -> socket.socket:
        return self.ours

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock:
            if self._start is None:  # in the handshake
                sock.sendall(b"\x16\x03\x03\x3f\xff\x02\x00\x3f\xfb")
                self._drip(sock)
                return
            with server_context_from_seed(SEED, "lab", clients="optional").wrap_socket(sock, server_side=True) as tls:
                for _ in range(self._first):
                    tls.recv(65536)
                    tls.sendall(OK)
                tls.recv(65536)
                tls.sendall(self._start)
                self._drip(tls)

    def _drip(self, sock: socket.socket) -> None:
        for _ in range(200):
            sock.sendall(b"a")
            if self.over.wait(0.1):
                return
        self.tired.set()


@contextlib.contextmanager
def dripping(start: bytes | None, **more: Any) -> Iterator[Dripper]:
    dripper = Dripper(start, **more)
    try:
        yield dripper
        assert not dripper.tired.is_set(), "somebody waited until it gave up"
    finally:
        dripper.over.set()
        dripper.ours.close()
        dripper.thread.join(PATIENCE)
        assert not dripper.thread.is_alive()


def client(link: Any) -> BrokerClient:
    contract: Any = None
    return BrokerClient(link, contract, "lab", pin=public_key_pin(SigningKey(SEED).public))


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_client, "_EXCHANGE", 0.6, raising=False)
    monkeypatch.setattr(node_link, "_EXCHANGE", 0.6, raising=False)


@pytest.mark.parametrize("start", [HEADER, BODY, None])
def test_an_exchange_with_a_broker_that_drips(start: bytes | None) -> None:
    with dripping(start) as dripper:
        mine = client(dripper)
        with pytest.raises(CloisterError) as caught:
            mine.post("/kbs/v0/auth", {})
        assert caught.value.code in ("broker.unreachable", "tls.handshake")
        mine.close()


def test_a_broker_that_drips_only_later_in_its_session() -> None:
    """Each exchange has its own time, on one connection."""
    with dripping(HEADER, first=2) as dripper:
        mine = client(dripper)
        assert mine.get("/a") == b"{}"
        assert mine.get("/b") == b"{}"
        with pytest.raises(CloisterError) as caught:
            mine.get("/c")
        assert caught.value.code == "broker.unreachable"
        mine.close()


def test_what_was_cut_off_is_no_short_answer() -> None:
    """A body without a length ends where its connection ends: here, where we hung up."""
    with dripping(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n") as dripper:
        mine = client(dripper)
        with pytest.raises(CloisterError) as caught:
            mine.get("/resource")
        assert caught.value.code == "broker.unreachable"
        mine.close()


def test_a_node_that_drips(tmp_path: Path) -> None:
    over, tired = threading.Event(), threading.Event()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()

        def serve() -> None:
            sock, _ = listening.accept()
            with contextlib.suppress(OSError), sock:
                for _ in range(200):
                    sock.sendall(b" ")
                    if over.wait(0.1):
                        return
                tired.set()

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(CloisterError) as caught:
            NodeLink(tmp_path / "s").tunnel("lab")
        over.set()
        thread.join(PATIENCE)
    assert caught.value.code == "node.link"
    assert not tired.is_set()
