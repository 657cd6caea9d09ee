"""A vendor's collateral service on the loopback interface, which can fail, hang and die."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

__all__ = ["Vendor", "vendor"]


@dataclass
class Vendor:
    """``pages``: by path with its query: status, headers, body. ``asked``: paths in order, with the ETag asked with."""

    pages: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    posted: list[bytes] = field(default_factory=list)
    hang: threading.Event | None = None
    drip: bool = False
    url: str = ""


@contextmanager
def vendor() -> Iterator[Vendor]:
    double = Vendor()
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            etag = self.headers.get("If-None-Match", "")
            double.asked.append((self.path, etag))
            if double.hang is not None:
                double.hang.wait(60)
                return
            status, headers, body = double.pages.get(self.path, (404, {}, b""))
            if etag and headers.get("ETag") == etag:
                status, body = 304, b""
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if double.drip:
                self.drip(body)
                return
            self.wfile.write(body)

        def do_POST(self) -> None:
            double.posted.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.do_GET()

        def drip(self, body: bytes) -> None:
            """One byte at a time, for ever: each comes well within a socket's timeout."""
            try:
                for byte in body:
                    self.wfile.write(bytes([byte]))
                    if ended.wait(0.05):
                        return
            except OSError:
                return  # whoever asked has had enough

        def log_message(self, format: str, *args: object) -> None:
            """Tests look at ``asked``."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    double.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield double
    finally:
        ended.set()
        if double.hang is not None:
            double.hang.set()
        server.shutdown()
        thread.join()
        server.server_close()
