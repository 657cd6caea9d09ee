"""What the doubles over HTTP share: a TLS server on loopback with its own CA, and failures on request."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

__all__ = ["Certificates", "Reply", "Request", "Server", "make_certificates"]


@dataclass(frozen=True)
class Certificates:
    ca: Path
    cert: Path
    key: Path


def make_certificates(folder: Path) -> Certificates:
    """A CA, and a certificate of its for loopback."""
    folder.mkdir(parents=True, exist_ok=True)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"test CA of {folder.name}")])
    now = datetime.datetime.now(datetime.UTC)

    def builder(subject: x509.Name, public: Any) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca_name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=30))
        )

    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    ca = builder(ca_name, ca_key.public_key()).add_extension(x509.BasicConstraints(True, 0), True)
    ca = ca.add_extension(usage, True)
    ca = ca.add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), False)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    leaf = builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]), key.public_key())
    leaf = leaf.add_extension(x509.SubjectAlternativeName(names), False)
    leaf = leaf.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), False)
    pem = serialization.Encoding.PEM
    made = Certificates(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")
    made.ca.write_bytes(ca.sign(ca_key, hashes.SHA256()).public_bytes(pem))
    made.cert.write_bytes(leaf.sign(ca_key, hashes.SHA256()).public_bytes(pem))
    no_passphrase = serialization.NoEncryption()
    made.key.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, no_passphrase))
    return made


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: str
    headers: dict[str, str]  # names in lower case
    body: bytes


@dataclass(frozen=True)
class Reply:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class Server:
    """``answer`` is the double's. ``fail`` queues what happens to the next requests instead: a ``Reply``, or ``hang``
    (no answer), ``drip`` (a byte now and then), ``drop`` (the connection ends), ``cut`` (half of the right answer),
    ``half`` (the same, with a length that fits), ``huge`` (an endless one), ``lost`` (done, but no answer)."""

    def __init__(self, certificates: Certificates | None, answer: Callable[[Request], Reply]) -> None:
        self.requests: list[Request] = []
        self._failures: deque[Reply | str] = deque()
        self._only = ""
        self._stop = threading.Event()
        self.connections: list[socket.socket] = []
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, answer))
        self._http.daemon_threads = True
        self._http.block_on_close = False
        self._http.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that hung up
        if certificates is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificates.cert, certificates.key)
            self._http.socket = context.wrap_socket(self._http.socket, server_side=True, do_handshake_on_connect=False)
        self._scheme = "https" if certificates else "http"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._http.server_address[1])

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}"

    def fail(self, *failures: Reply | str, only: str = "") -> None:
        """``only``: for requests whose path holds this."""
        self._failures.extend(failures)
        self._only = only

    @property
    def pending(self) -> int:
        return len(self._failures)

    def next_failure(self, request: Request) -> Reply | str | None:
        if self._failures and self._only in request.path:
            return self._failures.popleft()
        return None

    @property
    def stopping(self) -> threading.Event:
        return self._stop

    def stop(self) -> None:
        """Also ends the connections that clients keep open."""
        self._stop.set()
        if self._thread.is_alive():
            self._http.shutdown()
            self._http.server_close()
            self._thread.join(5)
        for connection in self.connections:
            with contextlib.suppress(OSError):  # the client has closed it already
                connection.shutdown(socket.SHUT_RDWR)


def _handler(server: Server, answer: Callable[[Request], Reply]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            server.connections.append(self.request)
            super().setup()

        def log_message(self, *args: object) -> None:
            """Quiet."""

        def _serve(self) -> None:
            path, _, query = self.path.partition("?")
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(self.command, path, query, headers, body)
            server.requests.append(request)
            failure = server.next_failure(request)
            if isinstance(failure, Reply):
                return self._send(failure)
            if failure in {"hang", "drip", "drop", "huge"}:
                return getattr(self, f"_{failure}")()
            reply = answer(request)
            if failure == "lost":
                return self._drop()
            if failure in {"cut", "half"}:
                half = reply.body[: len(reply.body) // 2]
                return self._send(
                    Reply(reply.status, half, reply.headers), len(reply.body) if failure == "cut" else None
                )
            return self._send(reply)

        def _send(self, reply: Reply, length: int | None = None) -> None:
            self.send_response(reply.status)
            for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body) if length is None else length))
            self.end_headers()
            self.wfile.write(reply.body)
            if length is not None:
                self._drop()

        def _drop(self) -> None:
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()

        def _hang(self) -> None:
            server.stopping.wait(30)
            self.close_connection = True

        def _drip(self) -> None:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while not server.stopping.wait(0.1):
                self.wfile.write(b"x")

        def _huge(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.close_connection = True
            while not server.stopping.is_set():
                self.wfile.write(b" " * 65536)

        do_GET = do_POST = do_PUT = do_DELETE = do_LIST = do_PATCH = _serve

    return Handler
