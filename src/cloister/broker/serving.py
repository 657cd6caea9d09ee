"""Sockets and the process around them: TLS with the party's own key, the owner's Unix socket, no core dumps."""

from __future__ import annotations

import asyncio
import ctypes
import math
import os
import resource
import socket
import ssl
import struct
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..crypto.tls import server_context_from_seed
from ..errors import Internal, Unavailable
from .config import Limits
from .door import Door, Timed
from .errors_http import public_error
from .rates import Rates, source_of, too_many

__all__ = [
    "OwnerOnly",
    "Paced",
    "harden_process",
    "https_server",
    "listen_tcp",
    "listen_unix",
    "owner_server",
    "share_interpreter",
    "tls_context",
]

_PR_SET_DUMPABLE = 4
_UCRED = struct.Struct("3i")  # struct ucred: pid, uid, gid


def harden_process() -> None:
    """No core dump, and no other process of the same user may read this one's memory."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise Internal("broker.dumpable", "The process could not be made undumpable.")


def share_interpreter() -> None:
    """Threads hand the interpreter over after half a millisecond, not after five.

    One thread reads and answers for all connections, others work on requests. Where several work, the one that reads
    waits for its turn again and again, and requests with it; with 8 clients a seventh more of them are answered so.
    """
    sys.setswitchinterval(0.0005)


def tls_context(seed: bytes, name: str, *, stock_guests: bool = False) -> ssl.SSLContext:
    """TLS 1.3 with the party's key. Every client proves a key of its own; one without is refused in the handshake.

    ``stock_guests``: such clients are let in, for they have none; what needs a key is refused to them later.
    """
    return server_context_from_seed(seed, name, clients="optional" if stock_guests else "required")


def listen_tcp(host: str, port: int) -> socket.socket:
    """A listening socket; Unavailable if the address is taken or not this machine's."""
    try:
        return socket.create_server((host, port), backlog=256)
    except OSError:
        raise Unavailable("broker.address", "The address to listen on is taken, or not one of this machine.") from None


def listen_unix(path: Path) -> socket.socket:
    """A socket that only this user may open, in a folder that only this user may enter."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # left by a process that was killed: the log's lock shows that none runs
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)  # never, not even for a moment, open to others
    try:
        sock.bind(str(path))
    finally:
        os.umask(before)
    sock.listen(64)
    return sock


class OwnerOnly(H11Protocol):
    """HTTP for one user. The kernel says who connected; file modes alone would be one mistake away from open."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        sock: socket.socket = transport.get_extra_info("socket")
        _, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        if uid not in (0, os.geteuid()):
            self.transport = transport  # closing wants it; nothing is read from it
            transport.abort()
            return
        super().connection_made(transport)


class _Quiet(Server):
    """Signals belong to the process, not to one of its two servers."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Guarded(_Quiet):
    """HTTPS behind a door: uvicorn serves what the door lets in, and does not accept by itself."""

    def __init__(self, config: Config, context: ssl.SSLContext, limits: Limits, rates: Rates) -> None:
        super().__init__(config)
        self._door = Door(self._protocol, context, limits, rates)
        self._accepting: list[asyncio.Task[None]] = []

    def _protocol(self) -> Timed:
        return Timed(self.config, self.server_state, {})

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.servers = []
        for sock in sockets or ():
            task = asyncio.ensure_future(self._door.accept(sock))
            task.add_done_callback(self._closed)
            self._accepting.append(task)
        self.started = True

    def _closed(self, _: asyncio.Task[None]) -> None:
        self.should_exit = True  # a broker that accepts nobody must not look as if it served

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        await self._door.close()
        await super().shutdown(sockets)


class Paced:
    """An application behind a rate limit for each address. Nothing of a request is read before it is counted."""

    def __init__(self, app: ASGIApp, rates: Rates) -> None:
        self._app = app
        self._rates = rates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = scope.get("client")
        wait = self._rates.take(source_of(str(client[0]))) if client else 0.0
        if wait:
            refuse: ASGIApp = public_error(too_many("rate.address", wait), attested=False)
            return await refuse(scope, receive, send)
        return await self._app(scope, receive, send)


def https_server(app: Starlette, context: ssl.SSLContext, limits: Limits) -> Server:
    rates = Rates(limits.address_rate, limits.address_burst, names=limits.rate_names)
    # The door counts the connections: uvicorn would answer 503 to whoever comes last.
    return _Guarded(_config(Paced(app, rates), limits, None, http=Timed), context, limits, rates)


def owner_server(app: Starlette, limits: Limits) -> Server:
    return _Quiet(_config(app, limits, limits.admin_connections, http=OwnerOnly))


def _config(app: ASGIApp, limits: Limits, connections: int | None, **more: Any) -> Config:
    return Config(
        app,
        lifespan="off",
        ws="none",
        loop="asyncio",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        limit_concurrency=connections,
        timeout_keep_alive=math.ceil(limits.idle_seconds),
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=limits.header,
        **more,
    )


async def serve_until(
    stop: Awaitable[object], servers: list[tuple[Server, socket.socket]], ready: Callable[[], None]
) -> None:
    """Serve on all sockets until ``stop`` is done, or until a server ends by itself. ``ready`` is called once."""
    tasks = [asyncio.ensure_future(server.serve(sockets=[sock])) for server, sock in servers]
    while not all(server.started for server, _ in servers):
        if any(task.done() for task in tasks):
            raise Internal("broker.serving", "A server could not be started.")
        await asyncio.sleep(0.005)
    ready()
    waiting = asyncio.ensure_future(stop)
    await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    for server, _ in servers:
        server.should_exit = True
    await asyncio.gather(*tasks)
