"""An end for an exchange over a connection, whoever is at the other side of it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

__all__ = ["hung_up_at"]


@contextlib.contextmanager
def hung_up_at(end: float, sock: socket.socket) -> Iterator[None]:
    """Until ``end`` (monotonic), everything may happen on the connection of ``sock``; then it is over, for both sides.

    A socket's own timeout is for each single read: a peer that sends a byte a second, be it in the handshake, would
    never run into it. What was cut off may look like a short answer, so look at the clock before believing one.
    """
    held = sock.dup()  # TLS takes the socket away, and whoever hangs up needs one that nobody closes meanwhile

    def hang_up() -> None:
        with contextlib.suppress(OSError):  # the peer was quicker
            held.shutdown(socket.SHUT_RDWR)

    watchdog = threading.Timer(max(0.0, end - time.monotonic()), hang_up)
    watchdog.daemon = True
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()
        watchdog.join()
        held.close()
