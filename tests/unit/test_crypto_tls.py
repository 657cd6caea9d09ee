"""Pinned TLS: the right key connects, any other does not, and nothing is sent before that is known."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.crypto import SigningKey
from cloister.crypto.tls import (
    certificate_pin,
    connect_pinned,
    make_certificate,
    peer_key,
    public_key_pin,
    server_context,
)
from cloister.errors import Malformed, Unavailable, Untrusted
from tests.patience import until

SEED = b"\7" * 32


def of_version_2(pem: bytes) -> bytes:
    """The same certificate under another version than there is: OpenSSL takes it, as nobody asks it who signed."""
    der = ssl.PEM_cert_to_DER_cert(pem.decode())
    third, second = bytes.fromhex("a003020102"), bytes.fromhex("a003020101")
    assert der.count(third) == 1
    return ssl.DER_cert_to_PEM_cert(der.replace(third, second)).encode()


@pytest.fixture
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[int, list[bytes]]]:
    cert, key = make_certificate(SEED, "broker")
    (tmp_path / "c").write_bytes(getattr(request, "param", bytes)(cert))
    (tmp_path / "k").write_bytes(key)
    context = server_context(str(tmp_path / "c"), str(tmp_path / "k"))
    listener = socket.create_server(("127.0.0.1", 0))
    received: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                raw, _ = listener.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(raw, server_side=True) as tls:
                    received.append(tls.recv(100))
                    tls.sendall(b"pong")
            except (OSError, ssl.SSLError):
                received.append(b"")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()[1], received
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(60)


def test_pin_is_of_the_key_not_of_the_certificate() -> None:
    first, _ = make_certificate(SEED, "a")
    second, _ = make_certificate(SEED, "b")
    pins = {certificate_pin(ssl.PEM_cert_to_DER_cert(pem.decode())) for pem in (first, second)}
    assert pins == {public_key_pin(SigningKey(SEED).public)}


def test_the_pinned_key_connects(server: tuple[int, list[bytes]]) -> None:
    port, received = server
    with connect_pinned(socket.create_connection(("127.0.0.1", port)), public_key_pin(SigningKey(SEED).public)) as tls:
        assert tls.version() == "TLSv1.3"
        tls.sendall(b"ping")
        assert tls.recv(10) == b"pong"
    assert received == [b"ping"]


def test_another_key_is_refused_before_anything_is_sent(server: tuple[int, list[bytes]]) -> None:
    port, received = server
    with pytest.raises(Untrusted, match="another TLS key"):
        connect_pinned(socket.create_connection(("127.0.0.1", port)), b"\0" * 32)
    assert b"".join(until("what the server heard", lambda: list(received))) == b""


@pytest.mark.parametrize("server", [of_version_2], indirect=True)
def test_a_certificate_that_only_openssl_can_read_is_refused(server: tuple[int, list[bytes]]) -> None:
    port, received = server
    with pytest.raises(Untrusted) as caught:
        connect_pinned(socket.create_connection(("127.0.0.1", port)), public_key_pin(SigningKey(SEED).public))
    assert caught.value.code == "tls.pin"
    assert b"".join(until("what the server heard", lambda: list(received))) == b""


def test_a_certificate_that_cant_be_read_has_no_pin_and_no_key() -> None:
    cert, _ = make_certificate(SEED, "broker")
    der = ssl.PEM_cert_to_DER_cert(of_version_2(cert).decode())
    unknown = ssl.PEM_cert_to_DER_cert(cert.decode()).replace(b"\x2b\x65\x70", b"\x2a\x03\x04")
    for data in (der, unknown, b"", b"\x30\0"):
        with pytest.raises(Malformed) as caught:
            certificate_pin(data)
        assert caught.value.code == "tls.certificate"

        class Peer:
            def getpeercert(self, binary_form: bool, shown: bytes = data) -> bytes:
                assert binary_form
                return shown

        assert peer_key(Peer()) is None  # type: ignore[arg-type]


def test_a_peer_that_speaks_no_tls_is_unavailable() -> None:
    left, right = socket.socketpair()
    right.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
    right.close()
    with pytest.raises(Unavailable, match="handshake"):
        connect_pinned(left, b"\0" * 32)
