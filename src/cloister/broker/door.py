"""Who may hold a connection to the public port, and for how long. Idle strangers must not keep a workload out.

uvicorn counts a connection once its TLS handshake is done, and lets it wait for ever after its first byte. So the door
accepts the sockets itself, gives each a deadline, and when there are too many of them, closes the one that has waited
longest without a request in progress: a newcomer gets in, and holding sockets keeps nobody out.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from ..crypto.tls import peer_key
from .config import Limits
from .http import CHANNEL
from .rates import Rates, source_of
from .sessions import Channel

__all__ = ["Door", "Timed"]

_PAUSE = 0.1  # seconds, when the process has no descriptor left


class Timed(H11Protocol):
    """HTTP whose waiting is bounded: only the whole header of a request ends it, not any byte of one."""

    idle_seconds: float
    since: float  # on the loop's clock: when it was accepted, or its last answer went out
    lost = False
    first: asyncio.TimerHandle | None = None  # set by the door when it accepted: TLS counts as waiting, too
    _waiting: asyncio.TimerHandle | None = None

    @property
    def busy(self) -> bool:
        """Whether a request is being read, worked on or answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        # Every request of this connection carries it, and none of another.
        source = source_of(str(self.client[0])) if self.client else ""
        self.app_state[CHANNEL] = Channel(None if tls is None else peer_key(tls), source)

    def handle_events(self) -> None:
        super().handle_events()
        if self.busy:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        super().on_response_complete()  # may begin with the next request at once, if that was sent already
        if not self.busy:
            self._stop_waiting()
            self.since = self.loop.time()
            self._waiting = self.loop.call_later(self.idle_seconds, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.lost = True
        self._stop_waiting()

    def _stop_waiting(self) -> None:
        for timer in (self.first, self._waiting):
            if timer is not None:
                timer.cancel()


@dataclass(eq=False)
class _Guest:
    """One accepted socket, from its TLS handshake to its end."""

    source: str
    sock: socket.socket
    protocol: Timed
    handshake: asyncio.Task[None]

    @property
    def gone(self) -> bool:
        return self.protocol.lost or (self.handshake.done() and self.protocol.transport is None)

    def leave(self) -> None:
        if self.protocol.transport is not None:
            self.protocol.transport.abort()
            return
        # The transport below TLS is asyncio's own. To shut the socket down ends its handshake; to close the socket or
        # to cancel would not, in the moments before the handshake has begun.
        with suppress(OSError):  # the other side was quicker
            self.sock.shutdown(socket.SHUT_RDWR)


class Door:
    """The accepting side of one TLS port. ``make`` builds the protocol of a new connection."""

    def __init__(self, make: Callable[[], Timed], context: ssl.SSLContext, limits: Limits, rates: Rates) -> None:
        self._make = make
        self._context = context
        self._limits = limits
        self._rates = rates
        self._guests: list[_Guest] = []

    async def accept(self, listener: socket.socket) -> None:
        """Until cancelled."""
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, address = await loop.sock_accept(listener)
            except ConnectionAbortedError:
                continue  # gone before it was accepted
            except OSError:
                await asyncio.sleep(_PAUSE)  # no descriptor left for now
                continue
            self._admit(sock, address)

    async def close(self) -> None:
        """End the handshakes; what is connected ends with the server."""
        unfinished = [guest for guest in self._guests if guest.protocol.transport is None]
        for guest in unfinished:
            guest.leave()
        await asyncio.gather(*(guest.handshake for guest in unfinished))

    def _admit(self, sock: socket.socket, address: Any) -> None:
        # An answer is written as head and body. asyncio turns Nagle's delay off for sockets of protocol 6 only, and
        # those of a listener from ``create_server`` have 0: the body would wait 40 ms for an acknowledgement.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        source = source_of(str(address[0]))
        if self._rates.take(source):
            sock.close()  # a handshake costs more than this
            return
        self._guests = [guest for guest in self._guests if not guest.gone]
        same = [guest for guest in self._guests if guest.source == source]
        fits = self._make_room(same, self._limits.source_connections)
        if not (fits and self._make_room(self._guests, self._limits.connections)):
            sock.close()  # all of them are at work
            return
        protocol = self._make()
        protocol.idle_seconds = self._limits.idle_seconds
        protocol.since = protocol.loop.time()
        guest = _Guest(source, sock, protocol, asyncio.ensure_future(self._greet(sock, protocol)))
        protocol.first = protocol.loop.call_later(self._limits.first_seconds, guest.leave)
        self._guests.append(guest)

    def _make_room(self, guests: list[_Guest], limit: int) -> bool:
        """Whether there is room for one more, if need be in the place of the one that only waits, and longest.

        Not of the oldest one: a workload between two requests of its session is older than a stranger's idle socket.
        """
        if len(guests) < limit:
            return True
        waiting = [guest for guest in guests if not guest.protocol.busy]
        if not waiting:
            return False
        longest = min(waiting, key=lambda guest: guest.protocol.since)
        longest.leave()
        self._guests.remove(longest)
        return True

    async def _greet(self, sock: socket.socket, protocol: Timed) -> None:
        """The TLS handshake; then the protocol is connected. asyncio closes the socket if that comes to nothing."""
        seconds = self._limits.first_seconds
        with suppress(OSError):  # no TLS, too slow, or gone in the middle of it
            await protocol.loop.connect_accepted_socket(
                lambda: protocol,
                sock,
                ssl=self._context,
                ssl_handshake_timeout=seconds,
                ssl_shutdown_timeout=seconds,
            )
