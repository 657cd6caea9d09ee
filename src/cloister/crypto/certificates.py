"""X.509 certificates and revocation lists (RFC 5280), read strictly from untrusted bytes. ``x509`` judges them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ..errors import Malformed
from . import pem
from .der import BITS, SEQUENCE, Der, read_der
from .framing import sha256
from .unreadable import UNREADABLE

__all__ = ["MAX_CHAIN", "Certificate", "Crl", "read_certificate", "read_certificates", "read_crl"]

# AMD's older chips have certificates with serial number 0, which RFC 5280 §4.1.2.2 doesn't allow. They are known by
# issuer and contents, so the number does no harm; and a hostile name of odd length is refused by what it is for. The
# library's words about either would only fill a broker's error output.
for _message in ("Parsed a serial number which wasn't positive", "Attribute's length must be"):
    warnings.filterwarnings("ignore", message=_message)

MAX_CHAIN = 8
_CODE = "x509.form"
_MAX_CERTIFICATE = 16 * 1024
_MAX_CRL = 1024 * 1024
_MAX_CRL_REST = 8 * 1024
_TIMES = (0x17, 0x18)  # UTCTime, GeneralizedTime
_CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
_NAMES = {x509.NameOID.COMMON_NAME: "CN", x509.NameOID.ORGANIZATION_NAME: "O", x509.NameOID.SERIAL_NUMBER: "SN"}


@dataclass(frozen=True)
class Certificate:
    """A parsed certificate. Nothing about it is true until ``verify_chain`` returned. Times are POSIX seconds."""

    der: bytes
    subject: str
    issuer: str
    serial: int
    not_before: int
    not_after: int
    spki: bytes = field(repr=False)
    _parsed: x509.Certificate = field(repr=False, compare=False)
    _extensions: Mapping[str, bytes] = field(repr=False, compare=False)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the whole certificate, hex."""
        return sha256(self.der).hex()

    @property
    def key_fingerprint(self) -> str:
        """SHA-256 of the SubjectPublicKeyInfo, hex: what is pinned."""
        return sha256(self.spki).hex()

    @property
    def curve(self) -> str:
        """The curve of its key: P-256, P-384 or P-521; "" for any other key."""
        key = self._parsed.public_key()
        return _CURVES.get(key.curve.name, "") if isinstance(key, ec.EllipticCurvePublicKey) else ""

    @property
    def subject_attributes(self) -> dict[str, str]:
        """Common name (CN), organization (O) and serial number (SN), where the subject has exactly one of each."""
        found: dict[str, str] = {}
        for oid, name in _NAMES.items():
            values = self._parsed.subject.get_attributes_for_oid(oid)
            if len(values) == 1 and isinstance(values[0].value, str):
                found[name] = values[0].value
        return found

    def extension(self, oid: str) -> bytes | None:
        """The raw value (DER) of the extension with this dotted OID; None where there is none."""
        return self._extensions.get(oid)


@dataclass(frozen=True)
class Crl:
    """A parsed revocation list. It says nothing until ``verify_crl`` returned. Times are POSIX seconds."""

    der: bytes
    issuer: str
    this_update: int
    next_update: int
    _parsed: x509.CertificateRevocationList = field(repr=False, compare=False)

    def revoked(self, serial: int) -> bool:
        """Whether the list names this serial number."""
        return self._parsed.get_revoked_certificate_by_serial_number(serial) is not None


def read_certificate(data: bytes) -> Certificate:
    """One certificate, as DER or as exactly one PEM block. Raises Malformed."""
    found = pem.one(data, b"CERTIFICATE", _MAX_CERTIFICATE)
    _outline(found, "certificate", _MAX_CERTIFICATE)
    try:
        parsed = x509.load_der_x509_certificate(found)
        if parsed.public_bytes(serialization.Encoding.DER) != found:
            raise _bad("certificate")
        extensions = {e.oid.dotted_string: e.value.public_bytes() for e in parsed.extensions}
        return Certificate(
            der=found,
            subject=parsed.subject.rfc4514_string(),
            issuer=parsed.issuer.rfc4514_string(),
            serial=parsed.serial_number,
            not_before=int(parsed.not_valid_before_utc.timestamp()),
            not_after=int(parsed.not_valid_after_utc.timestamp()),
            spki=parsed.public_key().public_bytes(
                serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
            ),
            _parsed=parsed,
            _extensions=extensions,
        )
    except Malformed:
        raise
    except UNREADABLE:
        raise _bad("certificate") from None


def read_certificates(bundle: bytes, *, limit: int = MAX_CHAIN) -> tuple[Certificate, ...]:
    """The certificates of a PEM bundle, in its order: 1 to ``limit``. Text between the blocks is refused."""
    if len(bundle) > limit * _MAX_CERTIFICATE * 2:
        raise Malformed("x509.size", "A certificate bundle is too long.")
    found = pem.blocks(bundle, b"CERTIFICATE")
    if not 1 <= len(found) <= limit:
        raise Malformed("x509.count", f"A certificate bundle must hold 1 to {limit} certificates.")
    return tuple(read_certificate(block) for block in found)


def read_crl(data: bytes) -> Crl:
    """One certificate revocation list, as DER or as exactly one PEM block. Raises Malformed."""
    found = pem.one(data, b"X509 CRL", _MAX_CRL)
    parts = _outline(found, "revocation list", _MAX_CRL)
    # tbsCertList (RFC 5280 §5.1) is long by its entries. Names and extensions take the library long to decode.
    last = max((at for at, part in enumerate(parts) if part.tag in _TIMES), default=len(parts))
    entries = sum(len(part.body) for part in parts[last + 1 : last + 2] if part.tag == SEQUENCE)
    if len(found) - entries > _MAX_CRL_REST:
        raise Malformed("x509.size", "A revocation list is too long beside what it revokes.")
    try:
        parsed = x509.load_der_x509_crl(found)
        if parsed.next_update_utc is None:
            raise Malformed("crl.form", "A revocation list does not say when the next one comes, so it never ends.")
        if not all(_complete(extension) for extension in parsed.extensions):
            raise Malformed(
                "crl.form", "A revocation list is not a complete one, or has an unknown critical extension."
            )
        return Crl(
            found,
            parsed.issuer.rfc4514_string(),
            int(parsed.last_update_utc.timestamp()),
            int(parsed.next_update_utc.timestamp()),
            parsed,
        )
    except Malformed:
        raise
    except UNREADABLE:
        raise _bad("revocation list") from None


def _complete(extension: x509.Extension[x509.ExtensionType]) -> bool:
    """Whether the list is about all that its issuer issued (RFC 5280 §5.2), critical or not: no delta, no part."""
    value = extension.value
    if isinstance(value, x509.DeltaCRLIndicator):
        return False
    if isinstance(value, x509.IssuingDistributionPoint):
        return not (
            value.only_contains_attribute_certs
            or value.only_contains_ca_certs
            or value.only_contains_user_certs
            or value.indirect_crl
            or value.only_some_reasons
            or value.relative_name
        )
    return not extension.critical


def _outline(der: bytes, what: str, limit: int) -> list[Der]:
    """The parts of what is signed, of a certificate or list (RFC 5280 §4.1, §5.1: the signed part, an algorithm, a
    signature), once there is no second way to write the rest, which the library would let pass: nobody signed the
    algorithm there, so it must be the one that was signed (§4.1.1.2), in every byte. And no bit of the signature may
    be called unused (X.690 §8.6.2.2)."""
    signed, algorithm, signature = read_der(der, what, code=_CODE, limit=limit).children(count=3)
    parts = signed.children()
    # Version and serial number before it, where there are any, are no sequences.
    if next((part for part in parts if part.tag == SEQUENCE), None) != algorithm or signature.of(BITS)[:1] != b"\0":
        raise signature.bad("is signed in another way than it says")
    return parts


def _bad(what: str) -> Malformed:
    return Malformed(_CODE, f"A {what} can't be parsed; it was cut, changed or is of an unsupported kind.")
