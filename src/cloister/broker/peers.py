"""Talking to other parties' brokers. Addresses are hints from anybody; the pinned TLS key says who answers."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

from ..contracts import Card
from ..crypto import canonical_json, constant_time_equal, parse_json, sha256
from ..crypto.tls import client_context, connect_pinned
from ..deadlines import hung_up_at
from ..errors import Malformed, Misuse, Unavailable, error_from_wire
from ..fields import Fields
from .config import Limits, parse_listen
from .state import State

__all__ = ["Peers"]


class Peers:
    """One short-lived connection an exchange. Bounded in time and size; nothing secret is ever sent.

    ``tls_seed`` gives our card's TLS key, which each connection proves: so a peer knows who shows it a log's head.
    """

    def __init__(self, state: State, limits: Limits, tls_seed: Callable[[], bytes]) -> None:
        self._state = state
        self._limits = limits
        self._tls_seed = tls_seed
        self._context: tuple[bytes, ssl.SSLContext] | None = None  # and the digest of the seed that it was made from

    @property
    def seconds(self) -> float:
        """The most that one exchange takes, from the first packet to the answer's last byte."""
        return self._limits.peer_seconds

    def set_address(self, name: str, address: str) -> None:
        """Remember where ``name`` may answer. Raises Misuse for what is no ADDRESS:PORT."""
        parse_listen(address)
        self._state.put_hint("peers", {"name": name, "address": address})

    def addresses(self) -> dict[str, str]:
        return {row["name"]: row["address"] for row in self._state.rows("peers")}

    def get(self, card: Card, path: str) -> Any:
        return self._exchange(card, "GET", path, None)

    def post(self, card: Card, path: str, body: dict[str, Any]) -> Any:
        return self._exchange(card, "POST", path, canonical_json(body))

    def revocation(self, card: Card, contract: bytes) -> str | None:
        """The revocation of a contract that ``card``'s broker holds against it, not verified yet; None if it has none.

        Raises Unavailable where nobody answers.
        """
        status, answer = self._ask(card, "GET", f"/cloister/v1/status/{contract.hex()}", None)
        if status != 403 or not isinstance(answer, dict):
            return None
        return Fields(answer, "peer's answer").optional_text("revocation", limit=self._limits.peer_answer)

    def _exchange(self, card: Card, method: str, path: str, body: bytes | None) -> Any:
        """The parsed answer. Raises Unavailable where nobody answers, and what the peer refused with."""
        status, answer = self._ask(card, method, path, body)
        if status != 200:
            raise error_from_wire(answer.get("error") if isinstance(answer, dict) else None)
        if not isinstance(answer, dict):
            raise Malformed("peer.form", f"The broker of {card.name} answered with something else than an object.")
        return answer

    def _ask(self, card: Card, method: str, path: str, body: bytes | None) -> tuple[int, Any]:
        """(status, parsed answer). It takes ``seconds`` at most, however the peer behaves."""
        context, end = self._tls(), time.monotonic() + self.seconds
        unreachable = Unavailable("peer.unreachable", f"The broker of {card.name} does not answer.")
        sock = self._dial(card.name, end)
        connection = http.client.HTTPConnection("broker", timeout=self.seconds)
        try:
            with hung_up_at(end, sock):
                connection.sock = connect_pinned(sock, card.keys.tls_pin, context)
                connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
                with connection.getresponse() as response:
                    data = response.read(self._limits.peer_answer + 1)
        except (OSError, http.client.HTTPException, ValueError):
            raise unreachable from None
        finally:
            connection.close()
            sock.close()
        if time.monotonic() > end:
            raise unreachable  # what was cut off may look like a short answer
        return response.status, parse_json(data, limit=self._limits.peer_answer)

    def _tls(self) -> ssl.SSLContext:
        """Of the card's present TLS key. Two threads may make one each; both are right."""
        seed = self._tls_seed()
        made = self._context
        if made is None or not constant_time_equal(made[0], sha256(seed)):
            made = (sha256(seed), client_context(seed))
            self._context = made
        return made[1]

    def _dial(self, name: str, end: float) -> socket.socket:
        row = self._state.row("peers", name=name)
        if row is None:
            raise Unavailable("peer.unknown", f"No address of the broker of {name} is known; tell this broker one.")
        try:
            host, port = parse_listen(row["address"])
        except Misuse:
            raise Unavailable("peer.address", f"The address of the broker of {name} is not usable.") from None
        with contextlib.suppress(OSError):  # the name has no address, or there are no more sockets
            for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
                if (left := end - time.monotonic()) <= 0:
                    break
                sock = socket.socket(family, kind, protocol)
                try:
                    sock.settimeout(left)
                    sock.connect(address)
                    sock.settimeout(self.seconds)
                except OSError:
                    sock.close()
                    continue  # a name may have more addresses
                return sock
        raise Unavailable("peer.unreachable", f"The broker of {name} does not answer.")
