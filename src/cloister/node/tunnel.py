"""A raw two-way pipe between two sockets: bounded memory, and each direction ends by itself."""

from __future__ import annotations

import selectors
import socket

__all__ = ["pump"]

_CHUNK = 64 * 1024


class _Direction:
    """Bytes on their way from ``source`` to ``sink``. Nothing more is read until all of it was written:
    so a slow reader slows the writer down, and memory stays at one chunk."""

    def __init__(self, source: socket.socket, sink: socket.socket, pending: bytes = b"") -> None:
        self.source, self.sink = source, sink
        self._pending = memoryview(pending)
        self._ended = False
        self.closed = False

    @property
    def wants_read(self) -> bool:
        return not self._pending and not self._ended

    @property
    def wants_write(self) -> bool:
        return bool(self._pending)

    def read(self) -> None:
        data = self.source.recv(_CHUNK)
        self._pending, self._ended = memoryview(data), not data
        self.finish()

    def write(self) -> None:
        self._pending = self._pending[self.sink.send(self._pending) :]
        self.finish()

    def finish(self) -> None:
        """Pass the end of the stream on, but only after its last byte (half-close: the other way stays open)."""
        if self._ended and not self._pending and not self.closed:
            self.closed = True
            self.sink.shutdown(socket.SHUT_WR)


def _watch(selector: selectors.BaseSelector, sock: socket.socket, events: int) -> None:
    known = sock in selector.get_map()
    if events and known:
        selector.modify(sock, events)
    elif events:
        selector.register(sock, events)
    elif known:
        selector.unregister(sock)


def _events(sock: socket.socket, directions: tuple[_Direction, _Direction]) -> int:
    read = any(d.source is sock and d.wants_read for d in directions)
    write = any(d.sink is sock and d.wants_write for d in directions)
    return (selectors.EVENT_READ if read else 0) | (selectors.EVENT_WRITE if write else 0)


def pump(left: socket.socket, right: socket.socket, *, early: bytes = b"", idle_seconds: float = 900) -> None:
    """Carry bytes both ways until both sides have ended, one fails, or neither moves for ``idle_seconds``.

    ``early``: bytes that ``left`` already sent. Returns in all cases; the caller closes both sockets.
    """
    directions = (_Direction(left, right, early), _Direction(right, left))
    for sock in (left, right):
        sock.setblocking(False)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            # What one side wrote in two pieces must not wait here for the first one's acknowledgement.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with selectors.DefaultSelector() as selector:
        while not all(d.closed for d in directions):
            for sock in (left, right):
                _watch(selector, sock, _events(sock, directions))
            ready = selector.select(idle_seconds)
            if not ready:
                return
            try:
                _move(ready, directions)
            except BlockingIOError:
                continue
            except OSError:  # one end is gone, and with it what the other could still say
                return


def _move(ready: list[tuple[selectors.SelectorKey, int]], directions: tuple[_Direction, _Direction]) -> None:
    for key, events in ready:
        for direction in directions:
            if direction.source is key.fileobj and events & selectors.EVENT_READ and direction.wants_read:
                direction.read()
            if direction.sink is key.fileobj and events & selectors.EVENT_WRITE and direction.wants_write:
                direction.write()
