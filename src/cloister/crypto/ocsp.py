"""OCSP responses (RFC 6960): what the issuer of a certificate said about it at a moment, signed, as somebody kept it.

A response is data like a revocation list: whoever carries it isn't trusted, and it is judged at a clock that the caller
gives. It therefore answers no nonce of ours, which would make each usable once, by whoever asked. What bounds a replay
of an old good answer is its own end, ``next_update``; one that states none is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, OCSPExtensionOID

from ..errors import Malformed, Untrusted
from .certificates import MAX_CHAIN, Certificate, read_certificate
from .der import BITS, OCTETS, read_der
from .unreadable import UNREADABLE
from .x509 import check_signature, check_usage, find_extension, verify_chain

__all__ = ["MAX_OCSP", "SKEW", "OcspResponse", "OcspStatus", "ocsp_request", "read_ocsp", "verify_ocsp"]

MAX_OCSP: Final = 16 * 1024
"""Bytes of one response."""
SKEW: Final = 300
"""Seconds that a responder's clock may be ahead: responses are made when they are asked for, so one that was fetched
this moment would otherwise be from the future on a slow clock. Being newer than now makes nothing wrong with what it
says; it is refused so that a clock that was set back is noticed, and minutes don't matter to that."""
_CODE: Final = "ocsp.form"
_WHAT: Final = "response about a certificate"
_EXPLICIT: Final = 0xA0
# The names of issuers are hashed only to say whom a response is about. SHA-1 would do no harm there, for whoever signs
# is checked by the issuer's key; but nothing here asks with it, so nobody has to think about it.
_ID_HASHES: Final = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_STATUS: Final[dict[ocsp.OCSPCertStatus, Literal["good", "revoked", "unknown"]]] = {
    ocsp.OCSPCertStatus.GOOD: "good",
    ocsp.OCSPCertStatus.REVOKED: "revoked",
    ocsp.OCSPCertStatus.UNKNOWN: "unknown",
}


@dataclass(frozen=True)
class OcspResponse:
    """A parsed response about one certificate. It says nothing until ``verify_ocsp`` returned. Times are POSIX
    seconds; ``certificates`` came with it, and are nobody's until then."""

    der: bytes
    produced_at: int
    this_update: int
    next_update: int
    certificates: tuple[Certificate, ...] = field(repr=False)
    _parsed: ocsp.OCSPResponse = field(repr=False, compare=False)


@dataclass(frozen=True)
class OcspStatus:
    """A verified answer. "good" means not revoked, and no more: a responder may say it of a serial number that it never
    heard of (RFC 6960 §2.2). ``reason``: as RFC 5280 §5.3.1 names it, "" where none was given. ``responder``: who
    signed, the issuer itself or whom it delegated."""

    status: Literal["good", "revoked", "unknown"]
    this_update: int
    next_update: int
    responder: Certificate = field(repr=False)
    revoked_at: int | None = None
    reason: str = ""

    def check_good(self, what: str) -> None:
        """Return for "good" only. ``what``: the certificate, as the subject of a sentence. Raises Untrusted:
        ``x509.hold`` for one that was suspended, ``x509.revoked``, ``ocsp.unknown``."""
        if self.status == "good":
            return
        if self.status == "unknown":
            raise Untrusted("ocsp.unknown", f"{what} is not known to who answers for its issuer; don't rely on it.")
        if self.reason == x509.ReasonFlags.certificate_hold.value:
            raise Untrusted("x509.hold", f"{what} is on hold; ask its vendor why, and use another until it is lifted.")
        raise Untrusted("x509.revoked", f"{what} was revoked by its issuer.")


def ocsp_request(certificate: Certificate, issuer: Certificate) -> bytes:
    """DER of the question about one certificate, for whoever fetches: by SHA-384, unsigned, without a nonce. It is sent
    by POST as ``application/ocsp-request`` (RFC 6960 appendix A.1)."""
    return _question(certificate, issuer, hashes.SHA384()).public_bytes(serialization.Encoding.DER)


def read_ocsp(data: bytes) -> OcspResponse:
    """One successful response (DER) about exactly one certificate. Raises Malformed: ``ocsp.size``,
    ``ocsp.unanswered`` where the responder refused to answer, ``ocsp.form``, ``x509.*`` for a certificate in it."""
    if len(data) > MAX_OCSP:
        raise Malformed("ocsp.size", f"An OCSP response is longer than {MAX_OCSP} bytes.")
    try:
        parsed = ocsp.load_der_ocsp_response(data)
        if parsed.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            raise Malformed("ocsp.unanswered", "An OCSP responder gave no answer; ask again, or about what it knows.")
        return _read(data, parsed)
    except Malformed:
        raise
    except UNREADABLE:
        raise _bad("can't be parsed") from None


def _read(data: bytes, parsed: ocsp.OCSPResponse) -> OcspResponse:
    """Whatever the library reads late is read here, so that no error of its own comes out later."""
    if len(list(islice(parsed.responses, 2))) != 1:
        raise _bad("is not about exactly one certificate")
    if parsed.public_bytes(serialization.Encoding.DER) != data or not _whole(data):
        raise _bad("has two ways to be written")
    for extension in parsed.extensions:
        # A nonce was whoever asked's, and changes nothing about what is said.
        if extension.critical and extension.oid != OCSPExtensionOID.NONCE:
            raise _bad("has an unknown critical extension")
    if any(extension.critical for extension in parsed.single_extensions):
        raise _bad("has an unknown critical extension")
    if parsed.next_update_utc is None:
        raise _bad("does not say when the next one comes, so it never ends")
    this_update, next_update = int(parsed.this_update_utc.timestamp()), int(parsed.next_update_utc.timestamp())
    if next_update <= this_update:
        raise _bad("ends before it begins")
    found = parsed.certificates
    if len(found) > MAX_CHAIN:
        raise _bad("has too many certificates")
    _late = _identity(parsed), _revoked(parsed), parsed.hash_algorithm, parsed.signature_hash_algorithm
    return OcspResponse(
        der=data,
        produced_at=int(parsed.produced_at_utc.timestamp()),
        this_update=this_update,
        next_update=next_update,
        certificates=tuple(read_certificate(c.public_bytes(serialization.Encoding.DER)) for c in found),
        _parsed=parsed,
    )


def verify_ocsp(
    response: OcspResponse, certificate: Certificate, issuers: Sequence[Certificate], *, now: int, grace: int = 0
) -> OcspStatus:
    """What ``response`` says of ``certificate``, if somebody with the right to say it signed it, and it is in its time.

    ``issuers``: the issuer of the certificate first, then whoever is above it, the pinned root last; ``verify_chain``
    must have accepted them and the certificate. ``grace``: seconds for which a response is good after its own end.
    Who may answer (RFC 6960 §4.2.2.2): the issuer itself, or one whom that very issuer delegated, by a certificate with
    id-kp-OCSPSigning. No other: an authority higher up answers for what it issued. Raises Untrusted:
    ``ocsp.certificate``, ``ocsp.responder``, ``ocsp.signature``, ``ocsp.future``, ``ocsp.stale``, ``x509.*`` for the
    responder's certificate. The status is returned, not judged: see ``OcspStatus.check_good``.
    """
    parsed, issuer = response._parsed, issuers[0]
    # 1. It is about this certificate.
    algorithm = parsed.hash_algorithm
    asked = _question(certificate, issuer, algorithm) if isinstance(algorithm, _ID_HASHES) else None
    if asked is None or _identity(parsed) != _identity(asked):
        raise Untrusted("ocsp.certificate", "An OCSP response is about another certificate, or named by a weak hash.")
    # 2. Who signed may speak for the issuer. In the owner's grace, as it could when the response ended.
    responder = _responder(response, issuers, min(now, response.next_update))
    # 3. And did sign. RSA-PSS, which the library can't read here, was refused as unreadable.
    digest = parsed.signature_hash_algorithm
    check_signature(responder, parsed.signature, parsed.tbs_response_bytes, digest, False, "ocsp.signature")
    # 4. It is in its time.
    if max(response.this_update, response.produced_at) > now + SKEW:
        raise Untrusted("ocsp.future", "An OCSP response is from the future; check the clock, or where it came from.")
    if now >= response.next_update + grace:
        raise Untrusted("ocsp.stale", "An OCSP response is older than its next update; fetch the new one.")
    revoked_at, reason = _revoked(parsed)
    status = _STATUS[parsed.certificate_status]
    return OcspStatus(status, response.this_update, response.next_update, responder, revoked_at, reason)


def _responder(response: OcspResponse, issuers: Sequence[Certificate], now: int) -> Certificate:
    issuer = issuers[0]
    if _is_named(response, issuer):
        check_usage(issuer, "digital_signature", "ocsp.responder", "An issuer that may not sign answers signed one.")
        return issuer
    named = [certificate for certificate in response.certificates if _is_named(response, certificate)]
    if not named:
        raise Untrusted("ocsp.responder", "Who signed an OCSP response is neither the issuer nor shown beside it.")
    delegated = named[0]
    # The signature by this issuer, the time, that it is no authority, and what is critical.
    critical = {ExtensionOID.EXTENDED_KEY_USAGE.dotted_string}
    verify_chain([delegated, *issuers], roots={issuers[-1].key_fingerprint}, now=now, critical=critical)
    purposes = find_extension(delegated, x509.ExtendedKeyUsage)
    # "Any purpose" is not this one: RFC 6960 wants it named, else each device that an issuer certified could answer.
    if purposes is None or ExtendedKeyUsageOID.OCSP_SIGNING not in purposes:
        raise Untrusted("ocsp.responder", "Who signed an OCSP response was not made a responder by the issuer.")
    check_usage(delegated, "digital_signature", "ocsp.responder", "A responder's certificate does not let it sign.")
    return delegated


def _is_named(response: OcspResponse, certificate: Certificate) -> bool:
    """Whether the response calls its signer so: by name, or by SHA-1 of the key (RFC 6960 §4.2.1). It only chooses
    which key to try."""
    parsed = response._parsed
    if parsed.responder_name is not None:
        return parsed.responder_name == certificate._parsed.subject
    key = x509.SubjectKeyIdentifier.from_public_key(certificate._parsed.public_key())
    return parsed.responder_key_hash == key.digest


def _question(certificate: Certificate, issuer: Certificate, algorithm: hashes.HashAlgorithm) -> ocsp.OCSPRequest:
    return ocsp.OCSPRequestBuilder().add_certificate(certificate._parsed, issuer._parsed, algorithm).build()


def _identity(of: ocsp.OCSPRequest | ocsp.OCSPResponse) -> tuple[bytes, bytes, int]:
    """CertID (RFC 6960 §4.1.1)."""
    return of.issuer_name_hash, of.issuer_key_hash, of.serial_number


def _revoked(parsed: ocsp.OCSPResponse) -> tuple[int | None, str]:
    at, reason = parsed.revocation_time_utc, parsed.revocation_reason
    return None if at is None else int(at.timestamp()), "" if reason is None else str(reason.value)


def _whole(data: bytes) -> bool:
    """Whether the BIT STRING of the signature claims no unused bits (X.690 §8.6.2.2): the library doesn't look, and a
    second text of one response would pass. It stands in BasicOCSPResponse, within an OCTET STRING (RFC 6960 §4.2.1)."""
    _, explicit = read_der(data, _WHAT, code=_CODE, limit=MAX_OCSP).children(count=2)
    (answer,) = explicit.children(_EXPLICIT, count=1)
    _, basic = answer.children(count=2)
    _, _, signature, *_ = read_der(basic.of(OCTETS), _WHAT, code=_CODE, limit=MAX_OCSP).children()
    return signature.of(BITS)[:1] == b"\0"


def _bad(why: str) -> Malformed:
    return Malformed(_CODE, f"An OCSP response {why}; fetch it again.")
