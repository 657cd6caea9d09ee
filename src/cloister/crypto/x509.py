"""X.509 chains and revocation lists of hardware vendors (RFC 5280), judged at a clock that the caller gives.

Written for the short, fixed chains of attestation, not for the web: no names are matched, the root is known by its
key (SHA-256 of its SubjectPublicKeyInfo), and what isn't understood is refused. A check returns or raises.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature, encode_dss_signature
from cryptography.x509.oid import ExtensionOID

from ..errors import Malformed, Untrusted
from .certificates import MAX_CHAIN, Certificate, Crl, read_certificate, read_certificates, read_crl
from .der import BITS, SEQUENCE, encode, read_der
from .framing import sha256
from .memory import once_held

__all__ = [
    "Certificate",
    "Crl",
    "check_signature",
    "check_usage",
    "find_extension",
    "fingerprints",
    "read_certificate",
    "read_certificates",
    "read_crl",
    "verify_authorities",
    "verify_chain",
    "verify_crl",
]

T = TypeVar("T", bound=x509.ExtensionType)
_MIN_RSA, _MAX_RSA = 2048, 8192
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
# Critical extensions that are checked below, or restrict nothing that matters to a chain of fixed roots.
_UNDERSTOOD = {
    ExtensionOID.BASIC_CONSTRAINTS.dotted_string,
    ExtensionOID.KEY_USAGE.dotted_string,
}


def verify_chain(
    chain: Sequence[Certificate],
    *,
    roots: Collection[str],
    now: int,
    crls: Sequence[Crl] = (),
    require_crls: bool = False,
    critical: Collection[str] = (),
) -> None:
    """Return if ``chain`` (leaf first, root last) leads to one of ``roots`` and is good at ``now``.

    ``roots``: SHA-256 of SubjectPublicKeyInfo, hex. ``critical``: OIDs of critical extensions that the caller checks
    itself. ``crls``: whoever is on one of them, by its issuer's verified word, is refused; with ``require_crls`` every
    certificate but the root needs one in its time. Raises Untrusted with an ``x509.*`` or ``crl.*`` code, Malformed for
    a chain without a certificate or with too many.
    """
    understood = _UNDERSTOOD | set(critical)
    for depth, certificate in _from_the_root(chain, roots, now, understood):
        if depth > 0 or len(chain) == 1:
            _check_authority(certificate, below=max(depth - 1, 0), alone=len(chain) == 1)
        else:
            _check_leaf(certificate)
    _check_revocation(chain, crls, require_crls, now)


def verify_authorities(chain: Sequence[Certificate], *, roots: Collection[str], now: int) -> None:
    """As ``verify_chain``, for a chain without its leaf: every certificate in it must be an authority's, the first one
    too. For lists and documents that an authority itself signs. Raises as ``verify_chain``; looks at no lists."""
    for depth, certificate in _from_the_root(chain, roots, now, _UNDERSTOOD):
        _check_authority(certificate, below=depth, alone=False)


def _from_the_root(
    chain: Sequence[Certificate], roots: Collection[str], now: int, understood: Collection[str]
) -> Iterator[tuple[int, Certificate]]:
    """Each certificate with its place (the leaf's is 0), checked but for what its place asks of it: by whom it is
    signed, its time, what is critical in it. The caller must take all of them."""
    if not 1 <= len(chain) <= MAX_CHAIN:
        raise Malformed("x509.count", f"A certificate chain must hold 1 to {MAX_CHAIN} certificates.")
    if chain[-1].key_fingerprint not in roots:
        raise Untrusted("x509.root", "The certificate chain does not end in a pinned root.")
    # From the root down, so that no key which nobody vouches for yet is ever computed with. The root signs itself: its
    # key is what is pinned, and the signature keeps its dates and name from being edited.
    for depth, certificate in reversed(list(enumerate(chain))):
        _check_signed(certificate, chain[min(depth + 1, len(chain) - 1)])
        _check_time(certificate, now)
        _check_critical(certificate, understood)
        yield depth, certificate


def verify_crl(crl: Crl, issuer: Certificate, *, now: int) -> None:
    """Return if ``issuer`` signed the list and it is in its time. ``issuer`` must be trusted already."""
    if crl.issuer != issuer.subject:
        raise Untrusted("crl.issuer", "A revocation list is not its certificate authority's.")
    check_usage(issuer, "crl_sign", "crl.usage", "A certificate that may not sign revocation lists signed one.")
    check_signature(
        issuer,
        crl._parsed.signature,
        crl._parsed.tbs_certlist_bytes,
        _hash(crl._parsed),
        _pss(crl._parsed.signature_algorithm_oid),
        "crl.signature",
    )
    if crl.this_update > now:
        raise Untrusted("crl.future", "A revocation list is from the future; check the clock, or where it came from.")
    if now >= crl.next_update:
        raise Untrusted("crl.stale", "A revocation list is older than its next update; fetch the new one.")


def _check_revocation(chain: Sequence[Certificate], crls: Sequence[Crl], required: bool, now: int) -> None:
    for certificate, issuer in pairwise(chain):
        own = [crl for crl in crls if crl.issuer == issuer.subject]
        for crl in own:
            verify_crl(crl, issuer, now=now)
            if crl.revoked(certificate.serial):
                raise Untrusted("x509.revoked", f"The certificate {_short(certificate)} was revoked by its issuer.")
        if required and not own:
            raise Untrusted("crl.missing", f"There is no revocation list of {_short(issuer)}; fetch or import it.")


def _check_signed(certificate: Certificate, issuer: Certificate) -> None:
    parsed = certificate._parsed
    if parsed.issuer != issuer._parsed.subject:
        raise Untrusted("x509.issuer", f"The certificate {_short(certificate)} is not by the next one in its chain.")
    pss = _pss(parsed.signature_algorithm_oid)
    if pss and not _pss_is_plain(certificate):
        raise Untrusted("x509.signature", "A certificate is signed with unusual RSA-PSS parameters.")
    check_signature(issuer, parsed.signature, parsed.tbs_certificate_bytes, _hash(parsed), pss, "x509.signature")


def _pss(oid: x509.ObjectIdentifier) -> bool:
    return oid == x509.SignatureAlgorithmOID.RSASSA_PSS


def _hash(signed: x509.Certificate | x509.CertificateRevocationList) -> hashes.HashAlgorithm | None:
    """The hash of the signature; None for an algorithm that the library doesn't know."""
    try:
        return signed.signature_hash_algorithm
    except (UnsupportedAlgorithm, ValueError):
        return None


def _pss_is_plain(certificate: Certificate) -> bool:
    """Whether MGF1 uses the signature's own hash. Of lists the library doesn't tell: there it is taken to."""
    try:
        parameters = certificate._parsed.signature_algorithm_parameters
    except (UnsupportedAlgorithm, ValueError):
        return False
    return (
        isinstance(parameters, padding.PSS)
        and isinstance(parameters.mgf, padding.MGF1)
        and type(parameters.mgf._algorithm) is type(_hash(certificate._parsed))
    )


def check_signature(
    issuer: Certificate,
    signature: bytes,
    message: bytes,
    algorithm: hashes.HashAlgorithm | None,
    pss: bool,
    code: str,
) -> None:
    """Return if ``issuer``'s key signed ``message``; Untrusted(``code``) if not, or by what isn't accepted."""
    if not isinstance(algorithm, _HASHES):
        raise Untrusted(code, "A certificate or revocation list is signed with a hash that is not accepted.")
    key = issuer._parsed.public_key()
    curve = isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, _CURVES)
    if not curve and not (isinstance(key, rsa.RSAPublicKey) and _MIN_RSA <= key.key_size <= _MAX_RSA):
        raise Untrusted(code, "A certificate authority's key is of a kind or size that is not accepted.")
    digest = hashes.Hash(algorithm)
    digest.update(message)
    try:
        # The same vendor's authorities stand over every piece of evidence.
        told = (issuer.spki, signature, digest.finalize(), type(algorithm), pss)
        once_held(("x509", *told), partial(_verify, *told))
    except InvalidSignature:
        raise Untrusted(code, f"A signature that {_short(issuer)} should have made does not verify.") from None


def _verify(spki: bytes, signature: bytes, digest: bytes, kind: type[hashes.HashAlgorithm], pss: bool) -> None:
    """Raises InvalidSignature."""
    key, algorithm = serialization.load_der_public_key(spki), kind()
    if isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(signature, digest, ec.ECDSA(Prehashed(algorithm)))
    elif isinstance(key, rsa.RSAPublicKey):
        # A salt as long as the hash: RFC 4055 §3.1, and what vendors use.
        pad = padding.PSS(padding.MGF1(algorithm), algorithm.digest_size) if pss else padding.PKCS1v15()
        key.verify(signature, digest, pad, Prehashed(algorithm))
    else:
        raise InvalidSignature


def fingerprints(certificate: Certificate, issuer: Certificate) -> tuple[str, ...]:
    """The fingerprint of a certificate, and that of its other text, if ``issuer`` signs with ECDSA.

    Where (r, s) is a signature, so is (r, n - s): of one certificate anybody can make a second, as genuine, with
    another SHA-256. So what is known about a certificate by its fingerprint is to be looked for under both.
    """
    key = issuer._parsed.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return (certificate.fingerprint,)
    r, s = decode_dss_signature(certificate._parsed.signature)
    other = encode_dss_signature(r, key.curve.group_order - s)
    signed, algorithm, _ = read_der(
        certificate.der, "certificate", code="x509.form", limit=len(certificate.der)
    ).children()
    twin = encode(SEQUENCE, signed.encode() + algorithm.encode() + encode(BITS, b"\0" + other))
    return certificate.fingerprint, sha256(twin).hex()


def _check_time(certificate: Certificate, now: int) -> None:
    if now < certificate.not_before:
        raise Untrusted("x509.not-yet", f"The certificate {_short(certificate)} is not valid yet; check the clock.")
    if now > certificate.not_after:
        raise Untrusted("x509.expired", f"The certificate {_short(certificate)} has expired.")


def _check_critical(certificate: Certificate, understood: Collection[str]) -> None:
    for extension in certificate._parsed.extensions:
        if extension.critical and extension.oid.dotted_string not in understood:
            raise Untrusted(
                "x509.critical", f"The certificate {_short(certificate)} has an unknown critical extension."
            )


def _check_authority(certificate: Certificate, *, below: int, alone: bool) -> None:
    """A certificate authority (RFC 5280 §4.2.1.9) with ``below`` intermediate ones under it."""
    constraints = find_extension(certificate, x509.BasicConstraints)
    if constraints is None or not constraints.ca:
        if alone:
            return  # a pinned key without anything above it: nothing was issued by it here
        raise Untrusted("x509.ca", f"The certificate {_short(certificate)} is no certificate authority's.")
    if constraints.path_length is not None and below > constraints.path_length:
        raise Untrusted("x509.path-length", f"The certificate {_short(certificate)} may not stand so high in a chain.")
    check_usage(certificate, "key_cert_sign", "x509.usage", "A certificate that may not sign certificates signed one.")


def _check_leaf(certificate: Certificate) -> None:
    constraints = find_extension(certificate, x509.BasicConstraints)
    if constraints is not None and constraints.ca:
        raise Untrusted("x509.ca", f"The certificate {_short(certificate)} is an authority's, not a device's.")


def check_usage(certificate: Certificate, bit: str, code: str, why: str, *, stated: bool = False) -> None:
    """Untrusted(``code``) for a certificate that says what it is for, and not ``bit`` (a name of ``x509.KeyUsage``).
    With ``stated`` one that says nothing is refused, too."""
    usage = find_extension(certificate, x509.KeyUsage)
    if stated if usage is None else not getattr(usage, bit):
        raise Untrusted(code, why)


def find_extension(certificate: Certificate, kind: type[T]) -> T | None:
    """The extension of this kind, parsed; None where there is none."""
    try:
        return certificate._parsed.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _short(certificate: Certificate) -> str:
    """The subject, for a sentence: no more than people read, and nothing that moves a cursor."""
    text = "".join(c if c.isprintable() else "?" for c in certificate.subject)
    return f"'{text[:80]}'"
