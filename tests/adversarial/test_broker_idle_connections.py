"""A stranger holds connections open and says nothing, so that no workload can reach the broker."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest

from cloister.crypto.tls import client_context
from tests.broker_world import World, nothing_granted, serving

pytest_plugins = ["tests.broker_fixtures"]

REQUEST = b"GET /cloister/v1/heads/lab HTTP/1.1\r\nHost: broker\r\n\r\n"
POST = b"POST /cloister/v1/heads HTTP/1.1\r\nHost: broker\r\nContent-Length: 2\r\n\r\n"
Open = Callable[..., socket.socket]


class Strangers:
    """Connections from wherever on the loopback network, all closed at the end."""

    def __init__(self, port: int, stack: ExitStack) -> None:
        self._port, self._stack = port, stack

    def plain(self, source: str = "127.0.0.1") -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self._port), timeout=60, source_address=(source, 0))
        return self._stack.enter_context(sock)

    def tls(self, source: str = "127.0.0.1") -> ssl.SSLSocket:
        return self._stack.enter_context(client_context().wrap_socket(self.plain(source)))

    def served(self, source: str = "127.0.0.1") -> bool:
        with self.tls(source) as sock:
            sock.sendall(REQUEST)
            return sock.recv(12) == b"HTTP/1.1 403"  # heads are for their own party; but this is an answer


@contextmanager
def door(world: World, **limits: Any) -> Iterator[Strangers]:
    # What a test doesn't wait for must not come about on a busy machine, either.
    patient = {"first_seconds": 300.0, "body_seconds": 300.0, "idle_seconds": 300.0}
    world.hospital.limits = replace(world.hospital.limits, **{**patient, **limits})
    world.hospital.restart()
    with serving(world.hospital) as running, ExitStack() as stack, nothing_granted(world.hospital):
        yield Strangers(running.port, stack)


def answered(sock: socket.socket, times: int = 1) -> None:
    """Reads so many answers to ``REQUEST``."""
    answers = b""
    while answers.count(b'"code":"channel.peer"') < times:
        more = sock.recv(4096)
        assert more
        answers += more


def ended(sock: socket.socket) -> bool:
    """Waits for the other side to close."""
    try:
        return sock.recv(100) == b""
    except TimeoutError:
        return False
    except OSError:  # reset, or closed without TLS's own goodbye
        return True


def refused(sock: socket.socket) -> bool:
    """Whether a request on ``sock`` is answered, with the refusal that all of these get."""
    sock.sendall(REQUEST)
    answer = b""
    while not answer.endswith(b"}}"):
        piece = sock.recv(4096)
        if not piece:
            return False
        answer += piece
    return answer.startswith(b"HTTP/1.1 403")


def test_more_idle_connections_than_the_broker_takes(world: World) -> None:
    with door(world, connections=8, source_connections=4) as strangers:
        idle = [strangers.tls() for _ in range(12)]
        assert strangers.served()
        assert ended(idle[0])
        assert strangers.served()


def test_connections_without_a_word_of_tls(world: World) -> None:
    with door(world, connections=8, source_connections=4) as strangers:
        idle = [strangers.plain() for _ in range(40)]
        assert strangers.served()
        assert all(ended(sock) for sock in idle[:36])


def test_idle_connections_from_many_addresses(world: World) -> None:
    with door(world, connections=8, source_connections=4) as strangers:
        idle = [strangers.tls(f"127.0.0.{2 + number % 5}") for number in range(20)]
        assert strangers.served()
        assert ended(idle[0])


def test_one_address_does_not_push_out_the_others(world: World) -> None:
    with door(world, connections=8, source_connections=4) as strangers:
        other = strangers.tls("127.0.0.2")
        for _ in range(20):
            strangers.tls("127.0.0.3")
        other.sendall(REQUEST)
        assert other.recv(12) == b"HTTP/1.1 403"


def test_who_was_just_answered_is_not_pushed_out_by_one_more(world: World) -> None:
    with door(world, connections=8, source_connections=4) as strangers:
        session = strangers.tls()
        held = [strangers.tls() for _ in range(3)]
        for number in range(3):  # the fourth one has its turn when all that hold sockets had theirs
            assert refused(session)
            strangers.tls()
            assert ended(held[number])
        assert refused(session)


def test_a_request_in_progress_is_not_pushed_out(world: World) -> None:
    with door(world, connections=8, source_connections=4) as strangers:
        working = strangers.tls()
        working.sendall(POST)
        assert strangers.served()  # by now, the header has been read
        for _ in range(20):
            strangers.tls()
        working.sendall(b"{}")
        assert working.recv(12) == b"HTTP/1.1 400"


def test_all_are_at_work_and_one_more_comes(world: World) -> None:
    with door(world, connections=8, source_connections=2) as strangers:
        for _ in range(2):
            working = strangers.tls()
            working.sendall(POST)
            assert strangers.served("127.0.0.2")
        assert ended(strangers.plain())
        assert strangers.served("127.0.0.2")


@pytest.mark.parametrize("said", [b"", b"G", REQUEST[:-2]])
def test_a_first_request_that_never_ends(world: World, said: bytes) -> None:
    # On a busy machine already the handshake takes longer than it may: then that is how it ends.
    with door(world, first_seconds=0.3) as strangers, suppress(OSError):
        sock = strangers.tls()
        sock.sendall(said)
        assert ended(sock)


def test_a_handshake_that_never_ends(world: World) -> None:
    with door(world, first_seconds=0.3) as strangers:
        silent, half = strangers.plain(), strangers.plain()
        half.sendall(b"\x16\x03\x01\x02\x00\x01")  # the beginning of a ClientHello
        assert ended(silent)
        assert ended(half)


def test_a_second_request_that_never_ends(world: World) -> None:
    """A byte now and then does not keep a connection alive."""
    with door(world, idle_seconds=0.3) as strangers:
        sock = strangers.tls()
        sock.sendall(REQUEST)
        answered(sock)
        with suppress(OSError):
            sock.sendall(b"G")
        assert ended(sock)


def test_two_requests_on_one_connection(world: World) -> None:
    with door(world) as strangers:
        sock = strangers.tls()
        for _ in range(2):
            sock.sendall(REQUEST)
            answered(sock)
        sock.sendall(REQUEST + REQUEST)  # at once: the second is answered, too
        answered(sock, 2)


def test_the_broker_stops_while_strangers_shake_hands(world: World) -> None:
    with door(world) as strangers:
        idle = [strangers.plain(), strangers.tls()]
        assert strangers.served()
        before = idle[0]
    assert before.fileno() == -1
