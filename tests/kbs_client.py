"""A client of one broker over its real sockets, with whatever key, and saying whatever a test wants."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from cloister.broker import RunningBroker
from cloister.crypto import SigningKey
from cloister.crypto.tls import client_context, connect_pinned
from tests.broker_world import World

__all__ = ["Client", "client", "refused_in_the_handshake"]


class Client:
    """A connection that proves ``key``, and says whatever a test wants."""

    def __init__(self, world: World, running: RunningBroker, key: SigningKey) -> None:
        sock = socket.create_connection(("127.0.0.1", running.port), timeout=60)
        self._http = http.client.HTTPConnection("broker", timeout=60)
        pin = world.hospital.broker.card.keys.tls_pin
        self._http.sock = connect_pinned(sock, pin, client_context(key.export_secret_seed()))
        self.cookie: str | None = None

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        if self.cookie is not None:
            headers["Cookie"] = self.cookie
        data = None if body is None else json.dumps(body)
        self._http.request(method, path, data, {"Content-Type": "application/json", **headers})
        response = self._http.getresponse()
        answer = json.loads(response.read())
        if sent := response.headers.get("Set-Cookie"):
            self.cookie = sent.partition(";")[0]
        return response.status, answer

    def code(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
        status, answer = self.ask(method, path, body, **headers)
        return status, answer["error"]["code"]

    def close(self) -> None:
        self._http.close()


@contextmanager
def client(world: World, running: RunningBroker, key: SigningKey) -> Iterator[Client]:
    opened = Client(world, running, key)
    try:
        yield opened
    finally:
        opened.close()


def refused_in_the_handshake(running: RunningBroker, context: ssl.SSLContext) -> bool:
    """In TLS 1.3 the client is done before it hears that it was refused."""
    sock = socket.create_connection(("127.0.0.1", running.port), timeout=60)
    with sock, suppress(OSError), context.wrap_socket(sock) as tls:
        tls.sendall(b"GET /cloister/v1/heads/lab HTTP/1.1\r\nHost: broker\r\n\r\n")
        return tls.recv(12) == b""
    return True
