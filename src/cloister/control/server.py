"""One process: bind, serve, say "ready" on stdout, stop on SIGTERM."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import uvicorn

from ..errors import Misuse, Unavailable
from .api import make_app
from .api.changes import Changes
from .service import ControlPlane
from .storage import Storage

__all__ = ["serve"]

_LOOPBACK = ("127.0.0.1", "::1")


class _Server(uvicorn.Server):
    """uvicorn, with long polls answered instead of cut when it stops."""

    changes: Changes
    ready: dict[str, object]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        print(json.dumps({"ready": True, **self.ready}), flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.changes.close()
        await super().shutdown(sockets=sockets)


def serve(home: Path, listen: str, node_key: bytes, storage: Storage | None = None) -> None:
    """Serve until SIGTERM. Raises Misuse (address, folder in use), Unavailable (the port is taken), and what a store
    elsewhere raises."""
    sock = _bind(listen)
    try:
        plane = ControlPlane(home, node_key=node_key, storage=storage)
    except BaseException:
        sock.close()
        raise
    try:
        changes = Changes()
        config = uvicorn.Config(
            make_app(plane, changes=changes, log=sys.stderr),
            access_log=False,
            limit_concurrency=512,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=3,
            timeout_keep_alive=60,  # longer than clients keep a connection: none is closed while it is taken up again
        )
        server = _Server(config)
        server.changes = changes
        host, port = sock.getsockname()[:2]
        server.ready = {"id": plane.id, "port": port, "url": f"http://{f'[{host}]' if ':' in host else host}:{port}"}
        server.run(sockets=[sock])
    finally:
        plane.close()
        sock.close()


def _bind(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    if host not in _LOOPBACK:
        # Requests are signed but answers are not: off this machine, they need TLS in front.
        raise Misuse("control.listen", "The control plane listens on loopback only; put a TLS proxy in front of it.")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise Misuse("control.listen", "Give the address as 127.0.0.1:PORT.")
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, int(port)))
    except OSError:
        sock.close()
        raise Unavailable("control.port", f"Port {port} is taken; choose another or stop what uses it.") from None
    return sock
