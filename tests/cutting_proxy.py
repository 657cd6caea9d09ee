"""A network between a broker and its database that a test can cut, at a byte that it knows."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["Proxy", "proxied"]


@dataclass
class Proxy:
    """``doomed``: client ports whose next bytes are the last: "lost" (they never arrive) or "unheard" (they arrive, and
    the answer does not). ``away``: nobody gets through any more."""

    server: int
    listener: socket.socket
    doomed: dict[int, str] = field(default_factory=dict)
    away: threading.Event = field(default_factory=threading.Event)
    closing: threading.Event = field(default_factory=threading.Event)

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def serve(self) -> None:
        while not self.closing.is_set():
            if select.select([self.listener], [], [], 0.05)[0]:
                client, (_, port) = self.listener.accept()
                if self.away.is_set():
                    client.close()
                    continue
                threading.Thread(target=self._carry, args=(client, port), daemon=True).start()

    def _carry(self, client: socket.socket, port: int) -> None:
        with client, socket.create_connection(("127.0.0.1", self.server)) as server, contextlib.suppress(OSError):
            while not self.closing.is_set():
                ready = select.select([client, server], [], [], 0.05)[0]
                for source, sink in ((client, server), (server, client)):
                    if source in ready:
                        data = source.recv(1 << 16)
                        fate = self.doomed.get(port) if source is client else None
                        if not data or fate == "lost":
                            return
                        sink.sendall(data)
                        if fate == "unheard":
                            server.recv(1 << 16)  # the server has done it, and nobody hears of that
                            return


@contextlib.contextmanager
def proxied(server: int) -> Iterator[Proxy]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = Proxy(server, listener)
        thread = threading.Thread(target=proxy.serve)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.closing.set()
            thread.join()
