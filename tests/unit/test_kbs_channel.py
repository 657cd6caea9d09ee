"""Who a connection is: the key that its client proved. Three kinds of servers, and whatever a client brings."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from cloister.broker.decision import Request
from cloister.broker.sessions import Channel, Cookie, Session
from cloister.crypto import SigningKey
from cloister.crypto.tls import (
    client_context,
    connect_pinned,
    make_certificate,
    peer_key,
    public_key_pin,
    server_context_from_seed,
)
from cloister.errors import Denied, Untrusted

SEED = b"\7" * 32
PIN = public_key_pin(SigningKey(SEED).public)


@contextmanager
def server(clients: Any) -> Iterator[tuple[int, list[bytes | None]]]:
    """Answers each connection with the key that it proved."""
    context = server_context_from_seed(SEED, "broker", clients=clients)
    listener = socket.create_server(("127.0.0.1", 0))
    seen: list[bytes | None] = []

    def serve() -> None:
        while True:
            try:
                raw, _ = listener.accept()
            except OSError:
                return
            with raw, suppress(OSError), context.wrap_socket(raw, server_side=True) as tls:
                seen.append(peer_key(tls))
                tls.sendall((seen[-1] or b"nobody").hex().encode())

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()[1], seen
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(60)


def told(port: int, context: ssl.SSLContext | None) -> str | None:
    """What the server says, or None where it refuses the handshake."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=60)
    try:
        with connect_pinned(sock, PIN, context) as tls:
            return bytes.fromhex(tls.recv(200).decode()).hex() or None
    except OSError:
        return None


def bare() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


@pytest.fixture
def foreign(tmp_path: Path) -> ssl.SSLContext:
    """A certificate that issued itself."""
    certificate, key = make_certificate(b"\5" * 32, "client")
    (tmp_path / "c").write_bytes(certificate)
    (tmp_path / "k").write_bytes(key)
    context = bare()
    context.load_cert_chain(tmp_path / "c", tmp_path / "k")
    return context


def test_a_client_is_its_key(foreign: ssl.SSLContext) -> None:
    key = SigningKey.generate()
    own = client_context(key.export_secret_seed())
    with server("required") as (port, _):
        assert told(port, own) == told(port, own) == key.public.hex()
        fresh = {told(port, None), told(port, None)}
        assert len(fresh) == 2  # nobody in particular, and never the same
        assert None not in fresh
        assert told(port, bare()) is None
        assert told(port, foreign) is None


def test_where_a_key_is_optional_a_wrong_one_is_still_refused(foreign: ssl.SSLContext) -> None:
    key = SigningKey.generate()
    with server("optional") as (port, _):
        assert told(port, client_context(key.export_secret_seed())) == key.public.hex()
        assert told(port, bare()) == b"nobody".hex()
        assert told(port, foreign) is None


def test_a_server_that_does_not_ask_learns_nothing() -> None:
    with server("any") as (port, seen):
        assert told(port, client_context(b"\3" * 32)) == b"nobody".hex()
        assert seen == [None]


def test_every_connection_proves_its_key_anew() -> None:
    """No resumption: a ticket would stand for a key that this connection never proved."""
    with server("required") as (port, _):
        context = client_context(b"\3" * 32)
        sock = socket.create_connection(("127.0.0.1", port), timeout=60)
        with connect_pinned(sock, PIN, context) as tls:
            tls.recv(200)
            assert not (tls.session and tls.session.has_ticket)


@pytest.mark.parametrize("key", [None, b"", b"\1" * 31, b"\2" * 32])
def test_a_channel_of_another_key(key: bytes | None) -> None:
    Channel(b"\1" * 32).check(b"\1" * 32)
    with pytest.raises(Untrusted) as caught:
        Channel(key).check(b"\1" * 32)
    assert caught.value.code == "channel.key"


def test_a_cookie_counts_on_its_own_clients_connections_only() -> None:
    request: Request = None  # type: ignore[assignment]
    own, other = Channel(b"\1" * 32), Channel(b"\2" * 32)
    session = Session(request, 0, "nonce", own)
    assert session.reached_by(Cookie("c", own))
    assert session.reached_by(Cookie("c", Channel(b"\1" * 32)))
    for cookie in (Cookie("c", other), Cookie("c", Channel(None)), "c"):
        assert not session.reached_by(cookie)
    assert Session(request, 0, "nonce").reached_by("c")  # opened inside this process
    keyless = Session(request, 0, "nonce", Channel(None))
    assert not keyless.reached_by(Cookie("c", Channel(None)))  # no key is no client
    stock = Session(None, 0, "nonce", Channel(None), stock="snp")
    assert stock.reached_by(Cookie("c", Channel(None)))
    with pytest.raises(Denied):
        _ = stock.request
