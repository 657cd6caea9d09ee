"""The one socket between a sandbox and the node agent.

Each sandbox has its own server on its own path, so the agent knows who asks without believing anybody. A
connection carries one request (``socket_requests``) and gets one answer; after a granted ``connect`` it is a raw tunnel
to that party's broker, whose TLS ends inside the workload: the agent carries bytes that it can't read.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from ..crypto import canonical_json
from ..errors import CloisterError, Denied, Internal, Malformed, Misuse, Unavailable
from .socket_requests import (
    Connect,
    EvidenceRequest,
    RateLimit,
    SocketLimits,
    StockEvidenceRequest,
    Telemetry,
    parse_request,
)
from .tunnel import pump

__all__ = ["SocketLimits", "SocketServer"]

MakeEvidence = Callable[[str, dict[str, str]], dict[str, Any]]
MakeStockEvidence = Callable[[str, dict[str, str], str], dict[str, Any]]
TakeTelemetry = Callable[[dict[str, Any]], None]


class SocketServer:
    """Serves one sandbox until ``close``. As a context manager it starts and closes itself.

    ``parties``: host and port of the broker of each party that the job's contract names; nothing else is reached.
    ``owner``: user and group of the sandbox on the host; nobody else may connect. ``evidence`` gives the answer's
    fields for (nonce, public key), ``stock_evidence`` those for (nonce, public key, hash) or is None where the platform
    has none, ``telemetry`` takes a checked event. A ``CloisterError`` that they raise goes to
    the sandbox as it is, anything else as an Internal error without its text.
    """

    def __init__(
        self,
        path: Path,
        *,
        parties: Mapping[str, tuple[str, int]],
        evidence: MakeEvidence,
        telemetry: TakeTelemetry,
        stock_evidence: MakeStockEvidence | None = None,
        owner: tuple[int, int] | None = None,
        limits: SocketLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self._parties, self._evidence, self._telemetry = dict(parties), evidence, telemetry
        self._stock_evidence = stock_evidence
        self._owner = owner or (os.geteuid(), os.getegid())
        self._limits = limits or SocketLimits()
        self._evidence_rate = RateLimit(self._limits.evidence_per_minute, clock)
        self._telemetry_rate = RateLimit(self._limits.telemetry_per_minute, clock)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None
        self._closing = False

    def start(self) -> SocketServer:
        """Bind and serve in threads of its own. Raises Misuse if the path is taken or can't be made."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _bind(listener, self.path)
            os.chmod(self.path, 0o600)
            if self._owner != (os.geteuid(), os.getegid()):
                os.chown(self.path, *self._owner)
            # Nobody can connect before this, so nobody connects with the wrong mode or owner.
            listener.listen(self._limits.connections)
        except OSError as error:
            listener.close()
            raise Misuse(
                "node.socket", f"The socket {self.path} can't be made ({error.strerror}); use an empty folder."
            ) from None
        self._listener = listener
        thread = threading.Thread(target=self._accept, args=(listener,), name="node-socket", daemon=True)
        thread.start()
        self._threads.append(thread)
        return self

    def close(self) -> None:
        """Stop serving, cut every tunnel, remove the socket."""
        with self._lock:
            self._closing = True
            sockets = [*self._open, *([self._listener] if self._listener else [])]
            for sock in sockets:
                # Wakes the thread that waits on it; that thread closes it. It may have ended already.
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            threads = list(self._threads)
        for thread in threads:
            thread.join(self._limits.connect_seconds + 1)
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> SocketServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self, listener: socket.socket) -> None:
        with listener:
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:  # closed
                    return
                if not self._admit(sock):
                    sock.close()

    def _admit(self, sock: socket.socket) -> bool:
        """Start serving a new connection, if it is the sandbox's and not one too many."""
        if _peer_uid(sock) != self._owner[0]:
            return False
        with self._lock:
            self._threads = [t for t in self._threads if t.is_alive()]
            if self._closing or len(self._threads) > self._limits.connections:
                return False
            thread = threading.Thread(target=self._serve, args=(sock,), name="node-socket-peer", daemon=True)
            self._threads.append(thread)
            self._open.add(sock)
            thread.start()  # before anybody can see it here: closing joins what it finds, and joins only what has begun
        return True

    def _serve(self, sock: socket.socket) -> None:
        try:
            self._answer(sock)
        except OSError:  # the sandbox hung up; there is nobody to tell
            return
        finally:
            self._forget(sock)

    def _forget(self, sock: socket.socket) -> None:
        with self._lock:
            self._open.discard(sock)
        sock.close()

    def _answer(self, sock: socket.socket) -> None:
        sock.settimeout(self._limits.line_seconds)
        broker = None
        try:
            line, rest = _read_line(sock, self._limits.line_bytes)
            request = parse_request(line, self._limits)
            if isinstance(request, Connect):
                broker = self._connect(request.party)
                body: dict[str, Any] = {}
            else:
                body = self._call(request)
        except CloisterError as error:
            sock.sendall(_line({"ok": False, "error": error.to_wire()}))
            return
        if broker is None:
            sock.sendall(_line({**body, "ok": True}))
            return
        try:
            sock.sendall(_line({"ok": True}))
            pump(sock, broker, early=rest, idle_seconds=self._limits.idle_seconds)
        finally:
            self._forget(broker)

    def _call(self, request: EvidenceRequest | StockEvidenceRequest | Telemetry) -> dict[str, Any]:
        try:
            if isinstance(request, StockEvidenceRequest):
                if self._stock_evidence is None:
                    raise Denied("node.stock-evidence", "This node makes no evidence for a stock attestation service.")
                self._evidence_rate.take("evidence")
                return self._stock_evidence(request.nonce, request.tee_pubkey, request.algorithm)
            if isinstance(request, EvidenceRequest):
                self._evidence_rate.take("evidence")
                return self._evidence(request.nonce, request.tee_pubkey)
            self._telemetry_rate.take("telemetry")
            self._telemetry(request.event)
            return {}
        except CloisterError:
            raise
        except Exception:  # noqa: BLE001  its text could hold anything; the sandbox learns only that it failed
            raise Internal("node.failed", "The node agent failed at this request; look at its own log.") from None

    def _connect(self, party: str) -> socket.socket:
        if party not in self._parties:
            raise Denied("node.party", "The job has no such party; a sandbox reaches only the brokers of its contract.")
        try:
            broker = socket.create_connection(self._parties[party], self._limits.connect_seconds)
        except OSError:
            raise Unavailable("node.broker", f"The broker of {party} can't be reached; is it running?") from None
        with self._lock:
            if self._closing:
                broker.close()
                raise Unavailable("node.closing", "The node agent is ending this sandbox.")
            self._open.add(broker)
        return broker


def _bind(listener: socket.socket, path: Path) -> None:
    # A socket's address holds 107 bytes at most (unix(7)); through the folder's descriptor any path fits.
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listener.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


def _peer_uid(sock: socket.socket) -> int:
    """The user on the other end, as the kernel recorded it when it connected (unix(7), SO_PEERCRED)."""
    _, uid, _ = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(uid)


def _read_line(sock: socket.socket, limit: int) -> tuple[bytes, bytes]:
    """(the line without its end, what came after it)."""
    data = b""
    while b"\n" not in data:
        try:
            part = sock.recv(limit + 1 - len(data)) if len(data) <= limit else b""
        except TimeoutError:
            part = b""
        if not part:
            raise Malformed("node.line", f"A request is one line of at most {limit} bytes; send it at once.")
        data += part
    line, _, rest = data.partition(b"\n")
    return line, rest


def _line(body: dict[str, Any]) -> bytes:
    return canonical_json(body) + b"\n"
