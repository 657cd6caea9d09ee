"""A real S3 server on loopback for tests: ``rclone serve s3`` over a folder, and a proxy that misbehaves on demand."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from cloister.sealed.stores import FsspecStore, Patience, S3Credentials, open_store
from tests.patience import until

ACCESS, SECRET = "test-access", "test-secret-key"
BUCKET = "sealed"
# Few tries, since a test that kills its server means it; long ones, since a busy machine is no failure.
HASTY = Patience(attempts=3, first_wait=0.05, longest_wait=0.2, connect=20.0, read=60.0, request=90.0)


def _rclone() -> str:
    beside = Path(sys.executable).with_name("rclone")
    return str(beside) if beside.exists() else shutil.which("rclone") or "rclone"


def free_port() -> int:
    """One for a server that can't choose by itself. Below those that the kernel gives to clients (on Linux from 32768),
    so that none of them has it by the time the server binds it, or binds it again after it was killed."""
    for port in random.SystemRandom().sample(range(20_000, 32_000), 1000):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


@dataclass
class S3Server:
    """One server; ``root``/BUCKET holds the objects as plain files, so that tests can spoil them."""

    root: Path
    port: int = field(default_factory=free_port)
    secret: str = SECRET
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def credentials(self, *, secret: str | None = None, endpoint: str | None = None) -> S3Credentials:
        return S3Credentials(access_key=ACCESS, secret_key=secret or self.secret, endpoint=endpoint or self.endpoint)

    def start(self) -> None:
        (self.root / BUCKET).mkdir(parents=True, exist_ok=True)
        log = (self.root.parent / "rclone.log").open("ab")
        home = self.root.parent / "rclone-home"
        self.process = subprocess.Popen(
            [
                _rclone(), "serve", "s3", "--addr", f"127.0.0.1:{self.port}", "--config", os.devnull,
                "--vfs-cache-mode", "off", "--dir-cache-time", "250ms", "--no-checksum", str(self.root),
            ],
            env={"RCLONE_AUTH_KEY": f'"{ACCESS},{self.secret}"', "HOME": str(home), "PATH": os.defpath},
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
        log.close()
        until("rclone", self._listens)

    def _listens(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.root.parent / "rclone.log").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.kill()

    def changed(self) -> None:
        """Call after files below ``root`` were changed by hand: the server may show what it saw for 250 ms. (With no
        such time at all it never stops looking anew.)"""
        time.sleep(0.5)

    def path(self, prefix: str, digest: bytes, name: str = "") -> Path:
        return self.root / BUCKET / prefix / digest.hex() / name

    def store(self, prefix: str = "p", *, patience: Patience = HASTY, **credentials: str) -> FsspecStore:
        return open_store(f"s3://{BUCKET}/{prefix}", credentials=self.credentials(**credentials), patience=patience)


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    server = S3Server(folder / "s3")
    server.start()
    try:
        yield server
    finally:
        server.stop()


class Proxy:
    """Between client and server. Counts requests and the bytes of answers; ``behave`` is ``pass``, ``hang`` (takes a
    request and says nothing), ``drip`` (answers a byte at a time), ``cut`` (ends answers after 2,000 bytes) or
    ``refuse`` (closes at once). ``after`` is called once with this proxy when ``at_bytes`` went to the server."""

    def __init__(self, port: int) -> None:
        self.behave, self.requests, self.received, self.sent = "pass", 0, 0, 0
        self.gets: list[str] = []
        self.at_bytes: int | None = None
        self.reached = threading.Event()
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                proxy._serve(self.request, port)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True
            block_on_close = False

        self._stopped = threading.Event()
        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def _serve(self, client: socket.socket, port: int) -> None:
        if self.behave == "refuse":
            return
        with socket.socket() as server:
            try:
                server.connect(("127.0.0.1", port))
            except OSError:
                return
            back = threading.Thread(target=self._answers, args=(server, client), daemon=True)
            back.start()
            self._requests(client, server)
            back.join(5)

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        try:
            while data := client.recv(1 << 16):
                if data.split(b" ", 1)[0] in (b"GET", b"PUT", b"POST", b"HEAD", b"DELETE"):
                    self.requests += 1
                    self.gets.append(data.split(b"\r\n", 1)[0].decode("latin-1"))
                if self.behave == "hang":
                    self._stopped.wait(60)
                    return
                self.sent += len(data)
                if self.at_bytes is not None and self.sent >= self.at_bytes:
                    self.at_bytes = None
                    self.reached.set()
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)
        except OSError:
            _end(server, client)

    def _answers(self, server: socket.socket, client: socket.socket) -> None:
        seen = 0
        try:
            while data := server.recv(1 << 16):
                self.received += len(data)
                seen += len(data)
                if self.behave == "cut" and seen > 2000:
                    client.sendall(data[: max(0, len(data) - (seen - 2000))])
                    break
                if self.behave == "drip":
                    for byte in data:
                        client.sendall(bytes([byte]))
                        if self._stopped.wait(0.3):
                            return
                else:
                    client.sendall(data)
        except OSError:
            _end(server, client)
        _end(client)

    def reset(self) -> None:
        self.requests = self.received = self.sent = 0
        self.gets.clear()

    def close(self) -> None:
        self._stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


def _end(*sockets: socket.socket) -> None:
    """Both sides learn at once when one is gone."""
    for each in sockets:
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


@contextmanager
def proxied(server: S3Server) -> Iterator[Proxy]:
    proxy = Proxy(server.port)
    try:
        yield proxy
    finally:
        proxy.close()
