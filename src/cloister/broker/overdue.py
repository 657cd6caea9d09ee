"""A bound on how long a database may take to answer, also one that keeps its connections and says nothing.

The server's own timeouts help only where the server runs, and TCP's only where nobody acknowledges. So a thread looks
at the statements under way, and cuts the connection of one that is overdue: whoever waits for it gets an error at once.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import Any

from sqlalchemy import Engine, event

__all__ = ["Overdue"]

_LOOK = 0.5  # seconds


class Overdue:
    """Watches every statement of ``engine``. Each may take ``seconds``."""

    def __init__(self, engine: Engine, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._running: dict[int, tuple[float, int]] = {}  # by the connection's id: when it is overdue, and its socket
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="overdue", daemon=True)
        event.listen(engine, "before_cursor_execute", self._begin)
        event.listen(engine, "after_cursor_execute", self._end)
        event.listen(engine, "handle_error", self._failed)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        with self._lock:
            for _, fd in self._running.values():
                os.close(fd)
            self._running.clear()

    def _begin(self, connection: Any, *_: Any) -> None:
        # A descriptor of our own: its number can't come to mean another connection while the thread looks.
        fd = os.dup(connection.connection.dbapi_connection.fileno())
        with self._lock:
            self._running[id(connection)] = (time.monotonic() + self._seconds, fd)

    def _end(self, connection: Any, *_: Any) -> None:
        with self._lock:
            found = self._running.pop(id(connection), None)
        if found is not None:
            os.close(found[1])

    def _failed(self, context: Any) -> None:
        if context.connection is not None:
            self._end(context.connection)

    def _watch(self) -> None:
        while not self._stop.wait(_LOOK):
            now = time.monotonic()
            with self._lock:
                for due, fd in self._running.values():
                    if now > due:
                        _cut(fd)


def _cut(fd: int) -> None:
    """End the connection in both directions. It may be gone already."""
    with socket.socket(fileno=os.dup(fd)) as found:
        try:
            found.shutdown(socket.SHUT_RDWR)
        except OSError:
            return
