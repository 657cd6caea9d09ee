"""HTTPS to one broker through the node's tunnel. The broker is known by the TLS key that the contract pins."""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import time
from typing import Any, Literal

from ..contracts import Contract
from ..crypto import canonical_json, parse_json
from ..crypto.tls import connect_pinned
from ..deadlines import hung_up_at
from ..errors import CloisterError, Denied, Internal, Unavailable, error_from_wire
from .node_link import NodeLink

__all__ = ["BrokerClient"]

_BODY_LIMIT = 1024 * 1024
_EXCHANGE = 30.0  # seconds from a request's first byte, with the handshake before it, to its answer's last
_PROBLEM = re.compile(r"[A-Za-z]{1,40}")


class BrokerClient:
    """One connection, one session. Not thread-safe: each handshake makes its own. An exchange takes ``_EXCHANGE``
    seconds at most, however the broker behaves: what other owners gave must not stay in memory past their leases.

    ``tls`` has the key that this side proves: a session works on connections of its own workload's signing key only.
    Without it the connection is nobody's in particular, which is enough for what speaks for itself. ``pin``: of another
    server than the party's own broker.
    """

    def __init__(
        self,
        link: NodeLink,
        contract: Contract,
        party: str,
        *,
        tls: ssl.SSLContext | None = None,
        pin: bytes | None = None,
    ) -> None:
        self.party = party
        self.pin = contract.parties[party].tls_pin if pin is None else pin
        self._ours = pin is None
        self._link = link
        self._tls = tls
        self._cookie: str | None = None
        self._http: http.client.HTTPConnection | None = None
        self._raw: socket.socket | None = None  # what is below TLS

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return parse_json(self._send("POST", path, canonical_json(body)), limit=_BODY_LIMIT)

    def get(self, path: str) -> bytes:
        return self._send("GET", path, None)

    def close(self) -> None:
        if self._http is not None:
            self._http.close()
            self._http = None
        if self._raw is not None:
            self._raw.close()
            self._raw = None

    def _connection(self, raw: socket.socket) -> http.client.HTTPConnection:
        if self._http is None:
            connection = http.client.HTTPConnection("broker", timeout=_EXCHANGE)
            connection.sock = _Joined(connect_pinned(raw.dup(), self.pin, self._tls))
            self._http = connection
        return self._http

    def _send(self, method: str, path: str, body: bytes | None) -> bytes:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        if self._cookie is not None:
            headers["Cookie"] = self._cookie
        silent = Unavailable(
            "broker.unreachable", f"The broker of {self.party} does not answer; is it running?", party=self.party
        )
        if self._raw is None:
            self._raw = self._link.tunnel(self.party)
        end = time.monotonic() + _EXCHANGE
        try:
            with hung_up_at(end, self._raw):
                connection = self._connection(self._raw)
                connection.request(method, path, body, headers)
                with connection.getresponse() as response:
                    data = response.read(_BODY_LIMIT + 1)
        except (OSError, http.client.HTTPException):
            self.close()
            raise silent from None
        except CloisterError:
            self.close()
            raise
        if time.monotonic() > end:
            self.close()
            raise silent  # what was cut off may look like a short answer
        if len(data) > _BODY_LIMIT:
            self.close()
            raise Internal("broker.size", f"The broker of {self.party} answered with more than expected.")
        for value in response.headers.get_all("Set-Cookie") or ():
            self._cookie = value.partition(";")[0]
        if response.status != 200:
            raise _error(data, ours=self._ours)
        return data


class _Joined:
    """A socket that sends what was written when an answer is asked for: a request's head and body in one piece, which
    the other side then reads in one. As much of a socket as ``http.client`` needs of one that is connected."""

    def __init__(self, tls: ssl.SSLSocket) -> None:
        self._tls = tls
        self._written = bytearray()

    def sendall(self, data: bytes) -> None:
        self._written += data

    def makefile(self, mode: Literal["rb"]) -> Any:
        written, self._written = self._written, bytearray()
        self._tls.sendall(written)
        return self._tls.makefile(mode)

    def close(self) -> None:
        self._tls.close()


def _error(data: bytes, *, ours: bool) -> Exception:
    try:
        body = parse_json(data, limit=_BODY_LIMIT)
    except Exception as unreadable:  # noqa: BLE001 - whatever it was, it is no answer
        return Internal("wire.unreadable", f"A broker's refusal could not be read ({type(unreadable).__name__}).")
    if not ours:  # else it could speak in another party's name
        return _problem(body.get("type") if isinstance(body, dict) else None)
    if isinstance(body, dict) and "error" not in body and isinstance(body.get("type"), str):
        return _problem(body["type"])
    return error_from_wire(body.get("error", body) if isinstance(body, dict) else body)


def _problem(kind: object) -> Denied:
    """KBS's ErrorInformation from a server that is not ours. Its ``detail`` is a stranger's text and goes nowhere."""
    problem = kind.rpartition("/")[2] if isinstance(kind, str) else ""
    known = problem if _PROBLEM.fullmatch(problem) else "something unreadable"
    return Denied("kbs.refused", f"The key broker refused ({known}); its operator's log says why.", problem=known)
