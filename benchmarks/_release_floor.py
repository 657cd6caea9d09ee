"""What a key release can't avoid, measured by itself: one quote, one append that is synced, its TLS round trips.

The round trips are measured twice, each over a new TLS 1.3 connection with the same kind of certificate, with bodies of
the very sizes that a release sends, to a process that does nothing but answer. ``https``: requests by Python's HTTP
client to the HTTP server that the broker uses. ``raw``: bytes without HTTP, to a loop around the socket: the least that
can be written in Python at all.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from cloister.broker import Limits
from cloister.broker.serving import https_server, tls_context
from cloister.crypto import SigningKey
from cloister.crypto.tls import client_context, connect_pinned, public_key_pin
from cloister.node.tpm import Tpm

__all__ = ["Floor", "Sizes", "answerer", "recording"]

ROOT = Path(__file__).resolve().parents[1]
SEED = b"floor".ljust(32, b".")
HEADERS = 180  # bytes of a request's and an answer's head, near enough
PARTS = ("quote", "append", "https", "raw")
CLIENT = client_context(b"client".ljust(32, b"."))  # one for all connections, as a workload has


@dataclass(frozen=True)
class Sizes:
    """Bytes of each request's body (0 for none) and its answer's, in the order of one release."""

    pairs: tuple[tuple[int, int], ...]

    def argument(self) -> str:
        return ",".join(f"{ask}:{answer}" for ask, answer in self.pairs)

    @classmethod
    def read(cls, text: str) -> Sizes:
        return cls(tuple((int(a), int(b)) for a, b in (pair.split(":") for pair in text.split(","))))


@contextmanager
def recording(client: type[Any]) -> Iterator[Callable[[], Sizes]]:
    """While this runs, ``client._send`` (a method of the workload's broker client) is recorded."""
    send, pairs = client._send, []

    def recorded(self: Any, method: str, path: str, body: bytes | None) -> bytes:
        answer: bytes = send(self, method, path, body)
        pairs.append((len(body or b""), len(answer)))
        return answer

    client._send = recorded
    try:
        yield lambda: Sizes(tuple(pairs))
    finally:
        client._send = send


@contextmanager
def answerer(kind: str, sizes: Sizes) -> Iterator[int]:
    """The other side of the round trips: a process, and the port that it answers at. ``kind``: https or raw."""
    command = [sys.executable, "-m", "benchmarks._release_floor", kind, sizes.argument()]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.stdout.close()
        process.terminate()
        process.wait(60)


@dataclass
class Floor:
    """``once`` is one unavoidable release; ``parts`` says what its parts took (seconds, medians)."""

    tpm: Tpm
    log: int
    entry: bytes
    https: int
    raw: int
    sizes: Sizes
    seen: dict[str, list[float]]

    @classmethod
    @contextmanager
    def over(cls, tpm: Tpm, folder: Path, sizes: Sizes, entry: bytes) -> Iterator[Floor]:
        fd = os.open(folder / "floor", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            with answerer("https", sizes) as https, answerer("raw", sizes) as raw:
                yield cls(tpm, fd, entry, https, raw, sizes, {name: [] for name in PARTS})
        finally:
            os.close(fd)

    def once(self, report: bytes, pcrs: tuple[int, ...]) -> None:
        marks = [time.perf_counter()]
        self.tpm.quote(report, pcrs)
        marks.append(time.perf_counter())
        os.write(self.log, self.entry)
        os.fsync(self.log)
        marks.append(time.perf_counter())
        self._over_https()
        marks.append(time.perf_counter())
        self._over_raw()
        marks.append(time.perf_counter())
        for name, start, end in zip(PARTS, marks, marks[1:], strict=False):
            self.seen[name].append(end - start)

    def _over_https(self) -> None:
        connection = http.client.HTTPConnection("broker", timeout=30)
        connection.sock = _connect(self.https)
        for number, (ask, _) in enumerate(self.sizes.pairs):
            headers = {"Content-Type": "application/json"} if ask else {}
            connection.request("POST" if ask else "GET", f"/{number}", bytes(ask) if ask else None, headers)
            connection.getresponse().read()
        connection.close()

    def _over_raw(self) -> None:
        with _connect(self.raw) as tls:
            for ask, answer in self.sizes.pairs:
                tls.sendall(bytes(ask + HEADERS))
                _take(tls, answer + HEADERS)

    def totals(self, way: str) -> list[float]:
        """Of each ``once``: a quote, an append and the round trips in one ``way``."""
        return [sum(parts) for parts in zip(*(self.seen[name] for name in ("quote", "append", way)), strict=True)]

    def parts(self) -> dict[str, float]:
        return {name: median(seconds) for name, seconds in self.seen.items()}


def _connect(port: int) -> ssl.SSLSocket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connect_pinned(sock, public_key_pin(SigningKey(SEED).public), CLIENT)


def _take(tls: ssl.SSLSocket, size: int) -> None:
    while size:
        got = tls.recv(min(size, 65536))
        if not got:
            raise ConnectionError("closed early")
        size -= len(got)


def _serve_raw(sizes: Sizes, context: ssl.SSLContext) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            sock, _ = listener.accept()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with context.wrap_socket(sock, server_side=True) as tls:
                for ask, answer in sizes.pairs:
                    _take(tls, ask + HEADERS)
                    tls.sendall(bytes(answer + HEADERS))


def _serve_https(sizes: Sizes, context: ssl.SSLContext) -> None:
    """uvicorn and Starlette as the broker uses them, in the protocol that asyncio sends without delay."""

    async def answer(request: Request) -> Response:
        await request.body()
        return Response(bytes(sizes.pairs[int(request.path_params["number"])][1]))

    routes = [Route("/{number}", answer, methods=["GET", "POST"])]
    server = https_server(Starlette(routes=routes), context, Limits())
    server.config.load()

    def connected() -> H11Protocol:
        return H11Protocol(server.config, server.server_state, {})

    async def main() -> None:
        loop = asyncio.get_running_loop()
        made = await loop.create_server(connected, "127.0.0.1", 0, ssl=context)
        print(made.sockets[0].getsockname()[1], flush=True)
        await made.serve_forever()

    asyncio.run(main())


if __name__ == "__main__":
    serve = {"https": _serve_https, "raw": _serve_raw}[sys.argv[1]]
    serve(Sizes.read(sys.argv[2]), tls_context(SEED, "floor"))
