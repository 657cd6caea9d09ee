"""TLS 1.3 where the peer is known by its public key, not by a name that somebody certified.

A broker's certificate is self-signed and only carries the key; the contract pins SHA-256 of its
SubjectPublicKeyInfo. Finishing the handshake proves possession of the key, so comparing the pin
before the first byte is sent authenticates the broker to the workload.
"""

from __future__ import annotations

import datetime
import socket
import ssl

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from ..errors import Unavailable, Untrusted
from .framing import sha256
from .kdf import constant_time_equal

__all__ = [
    "certificate_pin",
    "client_context",
    "connect_pinned",
    "make_certificate",
    "public_key_pin",
    "server_context",
]


def make_certificate(seed: bytes, name: str) -> tuple[bytes, bytes]:
    """(certificate PEM, private key PEM) for an Ed25519 seed. The same seed always has the same pin."""
    key = Ed25519PrivateKey.from_private_bytes(seed)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    start = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        # RFC 5280 §4.1.2.5: "no well-defined expiration"; validity is the pin's, which the contract bounds.
        .not_valid_after(datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC))
        .sign(key, None)
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return cert.public_bytes(pem), private


def public_key_pin(public: bytes) -> bytes:
    """SHA-256 of the SubjectPublicKeyInfo of a raw Ed25519 public key: what a card carries and a contract pins."""
    # RFC 8410 §4: fixed prefix of an Ed25519 SubjectPublicKeyInfo.
    return sha256(bytes.fromhex("302a300506032b6570032100") + public)


def certificate_pin(der: bytes) -> bytes:
    """SHA-256 of a DER certificate's SubjectPublicKeyInfo."""
    spki = (
        x509.load_der_x509_certificate(der)
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return sha256(spki)


def server_context(cert_file: str, key_file: str) -> ssl.SSLContext:
    """TLS 1.3 only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(cert_file, key_file)
    return context


def client_context() -> ssl.SSLContext:
    """TLS 1.3 only. Names and chains aren't checked here: ``connect_pinned`` compares the key, which is stricter."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def connect_pinned(sock: socket.socket, pin: bytes) -> ssl.SSLSocket:
    """Handshake over ``sock`` and return only if the peer holds the pinned key; nothing is sent before that."""
    try:
        tls = client_context().wrap_socket(sock, server_hostname=None)
    except (OSError, ssl.SSLError):
        sock.close()
        raise Unavailable("tls.handshake", "The TLS handshake with a broker failed; is it running?") from None
    der = tls.getpeercert(binary_form=True)
    if der is None or not constant_time_equal(certificate_pin(der), pin):
        tls.close()
        raise Untrusted("tls.pin", "A broker answered with another TLS key than the contract pins.")
    return tls
