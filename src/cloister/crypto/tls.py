"""TLS 1.3 where both sides are known by their public keys, not by names that somebody certified.

A broker's certificate is self-signed and only carries the key; the contract pins SHA-256 of its
SubjectPublicKeyInfo. Finishing the handshake proves possession of the key, so comparing the pin
before the first byte is sent authenticates the broker to the workload.

A client is known by its key as well: to a broker a connection *is* the key that its certificate carries. OpenSSL,
as Python offers it, accepts a client certificate only under an authority that it knows. So there is one authority
whose private key is public: ``_EVERYBODY``. Anybody issues any key a certificate under it, and its signature says
nothing at all. What counts is made by TLS itself: CertificateVerify (RFC 8446 §4.4.3), which only the holder of the
certificate's key can sign, over this very handshake. Names, validity and issuer are never looked at.
"""

from __future__ import annotations

import datetime
import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import NameOID

from ..errors import Malformed, Unavailable, Untrusted
from .framing import random_bytes, sha256
from .kdf import constant_time_equal
from .unreadable import UNREADABLE

__all__ = [
    "certificate_pin",
    "client_context",
    "connect_pinned",
    "make_certificate",
    "peer_key",
    "public_key_pin",
    "server_context",
    "server_context_from_seed",
]

Clients = Literal["any", "optional", "required"]

_START = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
# RFC 5280 §4.1.2.5: "no well-defined expiration"; validity is the pin's, which the contract bounds.
_END = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
_PEM = serialization.Encoding.PEM
_EVERYBODY = "everybody"
# Not a secret, and nothing may ever rest on it being one. See above.
_EVERYBODYS_KEY = Ed25519PrivateKey.from_private_bytes(sha256(b"cloister/everybody-may-issue/v1"))


def _certificate(
    public: Ed25519PublicKey, name: str, issuer: str, signer: Ed25519PrivateKey, *, authority: bool | None = None
) -> x509.Certificate:
    """``authority`` True or False adds basic constraints that say so; None leaves them out."""

    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    builder = (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named(issuer))
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_START)
        .not_valid_after(_END)
    )
    if authority is not None:
        limits = x509.BasicConstraints(ca=authority, path_length=0 if authority else None)
        builder = builder.add_extension(limits, critical=True)
    return builder.sign(signer, None)


def _private(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def make_certificate(seed: bytes, name: str) -> tuple[bytes, bytes]:
    """(certificate PEM, private key PEM) for an Ed25519 seed. The same seed always has the same pin."""
    key = Ed25519PrivateKey.from_private_bytes(seed)
    return _certificate(key.public_key(), name, name, key).public_bytes(_PEM), _private(key)


def _client_certificate(seed: bytes) -> tuple[bytes, bytes]:
    """(certificate PEM, private key PEM) with which a client shows the key of ``seed``."""
    key = Ed25519PrivateKey.from_private_bytes(seed)
    cert = _certificate(key.public_key(), "client", _EVERYBODY, _EVERYBODYS_KEY, authority=False)
    return cert.public_bytes(_PEM), _private(key)


def public_key_pin(public: bytes) -> bytes:
    """SHA-256 of the SubjectPublicKeyInfo of a raw Ed25519 public key: what a card carries and a contract pins."""
    # RFC 8410 §4: fixed prefix of an Ed25519 SubjectPublicKeyInfo.
    return sha256(bytes.fromhex("302a300506032b6570032100") + public)


def certificate_pin(der: bytes) -> bytes:
    """SHA-256 of a DER certificate's SubjectPublicKeyInfo. Raises Malformed for one that can't be read: OpenSSL takes
    versions, curves and names that this library doesn't."""
    try:
        key = x509.load_der_x509_certificate(der).public_key()
        spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    except UNREADABLE:
        raise Malformed("tls.certificate", "A TLS certificate can't be read; use one that Cloister made.") from None
    return sha256(spki)


def peer_key(tls: ssl.SSLSocket | ssl.SSLObject) -> bytes | None:
    """The raw Ed25519 key (32 bytes) that the other side proved in its handshake; None for none or another kind."""
    der = tls.getpeercert(binary_form=True)
    if not der:
        return None
    try:
        key = x509.load_der_x509_certificate(der).public_key()
    except UNREADABLE:
        return None  # OpenSSL could read it and this library can't: then it proves no key of ours
    return key.public_bytes_raw() if isinstance(key, Ed25519PublicKey) else None


def server_context(cert_file: str, key_file: str, *, clients: Clients = "any") -> ssl.SSLContext:
    """TLS 1.3 only. ``clients``: ``required`` refuses a connection without a client key in its handshake, ``optional``
    takes one where there is one, ``any`` does not ask."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(cert_file, key_file)
    if clients != "any":
        authority = _certificate(_EVERYBODYS_KEY.public_key(), _EVERYBODY, _EVERYBODY, _EVERYBODYS_KEY, authority=True)
        context.load_verify_locations(cadata=authority.public_bytes(serialization.Encoding.DER))
        context.verify_mode = ssl.CERT_REQUIRED if clients == "required" else ssl.CERT_OPTIONAL
        context.num_tickets = 0  # no resumption: every connection proves its key anew
    return context


def server_context_from_seed(seed: bytes, name: str, *, clients: Clients) -> ssl.SSLContext:
    """``server_context`` for the key of an Ed25519 seed."""
    certificate, key = make_certificate(seed, name)
    with _in_memory(certificate) as cert_path, _in_memory(key) as key_path:
        return server_context(cert_path, key_path, clients=clients)


def client_context(seed: bytes | None = None) -> ssl.SSLContext:
    """TLS 1.3 only. Names and chains aren't checked here: ``connect_pinned`` compares the key, which is stricter.

    ``seed`` (32 bytes) is the Ed25519 key that this side proves; None: a fresh one, which means nobody in particular.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    certificate, key = _client_certificate(seed if seed is not None else random_bytes(32))
    with _in_memory(certificate) as cert_path, _in_memory(key) as key_path:
        context.load_cert_chain(cert_path, key_path)
    return context


@contextmanager
def _in_memory(data: bytes) -> Iterator[str]:
    """OpenSSL reads keys from files only: they pass through one in memory that has no name and is gone at the end."""
    fd = os.memfd_create("tls", os.MFD_CLOEXEC)
    try:
        os.write(fd, data)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def connect_pinned(sock: socket.socket, pin: bytes, context: ssl.SSLContext | None = None) -> ssl.SSLSocket:
    """Handshake over ``sock`` and return only if the peer holds the pinned key; nothing is sent before that.

    ``context``: from ``client_context``, with the key that this side proves. To make one takes about as long as a
    handshake, so whoever connects often keeps it. None: a fresh one, of nobody in particular.
    """
    try:
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            # A request goes out as header and body. Without this the second waits until the first is acknowledged.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tls = (context or client_context()).wrap_socket(sock, server_hostname=None)
    except (OSError, ssl.SSLError):
        sock.close()
        raise Unavailable("tls.handshake", "The TLS handshake with a broker failed; is it running?") from None
    if not _is_pinned(tls.getpeercert(binary_form=True), pin):
        tls.close()
        raise Untrusted("tls.pin", "A broker answered with another TLS key than the contract pins.")
    return tls


def _is_pinned(der: bytes | None, pin: bytes) -> bool:
    try:
        return der is not None and constant_time_equal(certificate_pin(der), pin)
    except Malformed:
        return False  # a certificate that can't be read holds no key that was pinned
