"""Certificates and revocation lists for tests: right but for what a test makes wrong. Keys are made anew each time."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloister.crypto.x509 import Certificate, read_certificate

NOW = 1_790_000_000
DAY = 86_400
Edit = Callable[[bytes], bytes]


def p256() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def p384() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def rsa4096() -> rsa.RSAPrivateKey:
    """Slow to make (a second): keep it for a module."""
    return rsa.generate_private_key(65537, 4096)


@dataclass
class Entity:
    """A key with its certificate, and what it issues."""

    key: Any
    cert: x509.Certificate
    pss: bool = False
    hash_: Any = field(default_factory=hashes.SHA384)

    @property
    def der(self) -> bytes:
        return self.cert.public_bytes(serialization.Encoding.DER)

    @property
    def pem(self) -> bytes:
        return self.cert.public_bytes(serialization.Encoding.PEM)

    @property
    def parsed(self) -> Certificate:
        return read_certificate(self.der)

    @property
    def root(self) -> str:
        """What a verifier pins."""
        return self.parsed.key_fingerprint

    def crl(self, *serials: int, start: int = NOW - DAY, end: int = NOW + DAY) -> bytes:
        """DER of a revocation list of this authority."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.cert.subject)
            .last_update(at(start))
            .next_update(at(end))
        )
        for serial in serials:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(at(start)).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(self.key, self.hash_).public_bytes(serialization.Encoding.DER)


def at(seconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def name(common: str, organization: str = "Test") -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, common), x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization)]
    )


def issue(
    common: str,
    key: Any,
    issuer: Entity | None = None,
    *,
    ca: bool = False,
    start: int = NOW - 30 * DAY,
    end: int = NOW + 3650 * DAY,
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
    path_length: int | None = None,
    subject: x509.Name | None = None,
    serial: int | None = None,
    pss: bool = False,
    hash_: Any = None,
    usage: bool = True,
) -> Entity:
    """A certificate for ``key``; without an issuer it signs itself. ``pss``: the issuer signs with RSA-PSS."""
    subject = subject if subject is not None else name(common)
    algorithm = hash_ if hash_ is not None else hashes.SHA384()
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.cert.subject if issuer is not None else subject)
        .public_key(key.public_key())
        .serial_number(serial if serial is not None else x509.random_serial_number())
        .not_valid_before(at(start))
        .not_valid_after(at(end))
    )
    if ca:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        if usage:
            builder = builder.add_extension(_USAGE, critical=True)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    signer = issuer.key if issuer is not None else key
    rsa_padding = padding.PSS(padding.MGF1(algorithm), algorithm.digest_size) if pss else None
    cert = builder.sign(signer, algorithm, rsa_padding=rsa_padding)
    return Entity(key, cert, pss, algorithm)


_USAGE = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


def extension(oid: str, value: bytes, *, critical: bool = False) -> tuple[x509.ExtensionType, bool]:
    """A vendor's extension with these very bytes."""
    return x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value), critical


_ANSWERS = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


def responder(
    issuer: Entity, *, purposes: Sequence[x509.ObjectIdentifier] = (ExtendedKeyUsageOID.OCSP_SIGNING,), **how: Any
) -> Entity:
    """Whom ``issuer`` lets answer OCSP requests about what it issued."""
    extensions = [(_ANSWERS, True), (x509.OCSPNoCheck(), False)]
    if purposes:
        extensions.append((x509.ExtendedKeyUsage(purposes), False))
    return issue(**({"common": "Responder", "key": p384(), "issuer": issuer, "extensions": extensions} | how))


def answer(
    about: Entity,
    issuer: Entity,
    signer: Entity | None = None,
    *,
    status: ocsp.OCSPCertStatus = ocsp.OCSPCertStatus.GOOD,
    reason: x509.ReasonFlags | None = None,
    start: int = NOW - 60,
    end: int | None = NOW + DAY - 60,
    made: int | None = None,
    serial: int | None = None,
    shown: Sequence[Entity] | None = None,
    by_name: bool = False,
    hash_: Any = None,
    id_hash: Any = None,
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
    edit: Edit = bytes,
    algorithm: bytes | None = None,
) -> bytes:
    """DER of an OCSP response. ``signer``: the issuer where none is given; ``shown``: certificates in it, the signer's
    own where another than the issuer signs; ``reason``: makes the status "revoked"; ``made``: at the start, where not
    given; ``edit``: changes what is signed before it is; ``algorithm``: the AlgorithmIdentifier that stands beside it,
    in DER."""
    signer = signer or issuer
    shown = shown if shown is not None else [signer] if signer is not issuer else []
    revoked = ocsp.OCSPCertStatus.REVOKED
    status = revoked if reason is not None else status
    asked = ocsp.OCSPRequestBuilder().add_certificate(about.cert, issuer.cert, id_hash or hashes.SHA384()).build()
    builder = ocsp.OCSPResponseBuilder().add_response_by_hash(
        asked.issuer_name_hash,
        asked.issuer_key_hash,
        asked.serial_number if serial is None else serial,
        asked.hash_algorithm,
        status,
        at(start),
        at(end) if end is not None else None,
        at(start) if status is revoked else None,
        reason,
    )
    encoding = ocsp.OCSPResponderEncoding.NAME if by_name else ocsp.OCSPResponderEncoding.HASH
    builder = builder.responder_id(encoding, signer.cert)
    if shown:
        builder = builder.certificates([entity.cert for entity in shown])
    for extension_, critical in extensions:
        builder = builder.add_extension(extension_, critical=critical)
    response = builder.sign(signer.key, hash_ or hashes.SHA384())
    # Signed anew: the library has only the machine's clock for when a response was made.
    signed = response.tbs_response_bytes
    moment = at(start if made is None else made).strftime("%Y%m%d%H%M%SZ").encode()
    tbs = edit(re.sub(rb"(?<=\x18\x0f)\d{14}Z", moment, signed, count=1))
    after = response.public_bytes(serialization.Encoding.DER).partition(signed)[2]
    own_algorithm, digest = after[: 2 + after[1]], hash_ or hashes.SHA384()
    if isinstance(signer.key, rsa.RSAPrivateKey):
        signature = signer.key.sign(tbs, padding.PKCS1v15(), digest)
    else:
        signature = signer.key.sign(tbs, ec.ECDSA(digest))
    certificates = [tlv(0xA0, tlv(0x30, *(entity.der for entity in shown)))] if shown else []
    basic = tlv(0x30, tbs, algorithm or own_algorithm, tlv(0x03, b"\0", signature), *certificates)
    kind = tlv(0x06, bytes.fromhex("2b0601050507300101"))
    return tlv(0x30, tlv(0x0A, b"\0"), tlv(0xA0, tlv(0x30, kind, tlv(0x04, basic))))


def tlv(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    if len(body) < 0x80:
        return bytes([tag, len(body)]) + body
    size = (len(body).bit_length() + 7) // 8
    return bytes([tag, 0x80 + size]) + len(body).to_bytes(size, "big") + body
