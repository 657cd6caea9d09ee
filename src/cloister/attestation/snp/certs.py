"""VCEK and VLEK certificates, and the chain above them to AMD's root (AMD 57230; for VLEKs AMD 58369).

A VCEK is the key of one chip at one TCB, a VLEK one that AMD made for a cloud provider's machines at one TCB. Both are
ECDSA P-384 keys; ARK, ASK and ASVK are RSA-4096 and sign with RSASSA-PSS, SHA-384. What a leaf's key is good for stands
in AMD's extensions, 1.3.6.1.4.1.3704.1.*; none of them is critical, so they are read here or nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from ...crypto import frame, sha256
from ...crypto.der import IA5, UTF8, Der, read_der
from ...crypto.x509 import Certificate, Crl, read_certificate, verify_chain, verify_crl
from ...errors import Malformed, Untrusted
from .products import product_of_name
from .roots import intermediate_name, root_name

__all__ = ["LEEWAY", "Leaf", "attester_id", "check_chain", "check_revocation", "read_amd", "read_leaf", "role_of"]

LEEWAY: Final = 300
"""Seconds that a revocation list may begin, and that anything may have been obtained, in the future: the clock of AMD,
or of whoever fetched it, may be a little ahead of the broker's. A certificate's own time has no leeway."""

_AMD: Final = "1.3.6.1.4.1.3704.1."
_STRUCT_VERSION, _PRODUCT_NAME, _HWID, _CSP_ID = _AMD + "1", _AMD + "2", _AMD + "4", _AMD + "5"
# The extension that carries each byte of TCB_VERSION. 3.4 to 3.7 belong to reserved bytes: absent means zero.
_TCB_BEFORE_TURIN: Final = ("3.1", "3.2", "3.4", "3.5", "3.6", "3.7", "3.3", "3.8")
_TCB: Final = {
    "milan": _TCB_BEFORE_TURIN,
    "genoa": _TCB_BEFORE_TURIN,
    "turin": ("3.9", "3.1", "3.2", "3.3", "3.5", "3.6", "3.7", "3.8"),
}
_OPTIONAL: Final = {"3.4", "3.5", "3.6", "3.7"}
_HWID_SIZE: Final = {"milan": 64, "genoa": 64, "turin": 8}
_SIGNING_KEYS: Final = {"SEV-VCEK": "vcek", "SEV-VLEK": "vlek"}
_CODE: Final = "snp.certificate"
_MAX_EXTENSION: Final = 129
# A certificate and its signed part are SEQUENCEs of two bytes of length; then comes the version, [0] INTEGER 2 for v3.
_HEADER: Final = 8
_VERSION_3: Final = bytes.fromhex("a003020102")
# AlgorithmIdentifier of RSASSA-PSS with SHA-384, MGF1 with SHA-384 and a salt of 48 bytes (RFC 4055), without and with
# the trailer field, which AMD's older certificates write out; then the header of a signature of 4096 bits.
_PSS: Final = "a00f300d06096086480165030402020500a11c301a06092a864886f70d010108300d06096086480165030402020500a203020130"
_SIGNED: Final = tuple(
    bytes.fromhex(head + _PSS + tail + "0382020100")
    for head, tail in (("304106092a864886f70d01010a3034", ""), ("304606092a864886f70d01010a3039", "a303020101"))
)
_SIGNATURE: Final = 512


@dataclass(frozen=True)
class Leaf:
    """What a VCEK or VLEK certificate says. It is true once ``check_chain`` returned.

    ``signing_key``: vcek or vlek. ``tcb``: the 8 bytes of TCB_VERSION that the key is for. ``hwid``: the chip, 64 bytes
    (Turin: 8), empty for a VLEK. ``csp_id``: the cloud provider, empty for a VCEK.
    """

    certificate: Certificate
    signing_key: str
    product: str
    product_name: str
    tcb: bytes
    hwid: bytes
    csp_id: str


def read_amd(der: bytes) -> Certificate:
    """An X.509 certificate of version 3 in DER, which all of AMD's are. Raises Malformed."""
    if der[_HEADER : _HEADER + len(_VERSION_3)] != _VERSION_3:
        raise _bad("is not an X.509 certificate of version 3, in DER")
    return read_certificate(der)


def role_of(certificate: Certificate) -> Literal["leaf", "intermediate", "root"] | None:
    """Where a certificate stands by its own word, to sort what came in no order; None for one that isn't AMD's."""
    name = certificate.subject_attributes.get("CN", "")
    if name in _SIGNING_KEYS:
        return "leaf"
    return "root" if name.startswith("ARK-") else "intermediate" if name.startswith("SEV-") else None


def read_leaf(certificate: Certificate) -> Leaf:
    """Read AMD's extensions strictly. Raises Malformed ``snp.certificate``."""
    signing_key = _SIGNING_KEYS.get(certificate.subject_attributes.get("CN", ""))
    if signing_key is None:
        raise _bad("is neither a VCEK's nor a VLEK's")
    if certificate.curve != "P-384":
        raise _bad("does not hold an ECDSA P-384 key")
    if _must(certificate, _STRUCT_VERSION).unsigned(1) not in (0, 1):
        raise _bad("is of an unknown structure version")
    product_name = _text(_must(certificate, _PRODUCT_NAME))
    product = product_of_name(product_name)
    if product is None:
        raise _bad("names an unknown product")
    tcb = bytes(_part(certificate, oid) for oid in _TCB[product])
    hwid, csp_id = certificate.extension(_HWID), certificate.extension(_CSP_ID)
    if signing_key == "vcek" and csp_id is None and hwid is not None:
        return Leaf(certificate, signing_key, product, product_name, tcb, _octets(hwid, _HWID_SIZE[product]), "")
    if signing_key == "vlek" and hwid is None and csp_id is not None:
        return Leaf(certificate, signing_key, product, product_name, tcb, b"", _text(_der(csp_id)))
    raise _bad("does not name just a chip (VCEK) or just a cloud provider (VLEK)")


def check_chain(leaf: Leaf, chain: Sequence[Certificate], *, roots: Mapping[str, str], now: int) -> None:
    """Return if ``chain``, the ASK or ASVK and then the ARK, leads from ``leaf`` to the root of the leaf's own product.

    ``roots``: SHA-256 of each product's ARK key, hex. Raises Malformed for another number of certificates, Untrusted
    ``snp.chain`` for authorities of another product or kind of key, and what ``crypto.x509`` finds.
    """
    if len(chain) != 2:
        raise Malformed("snp.certificates", "Between a SEV-SNP key and AMD's root there is exactly one authority.")
    names = [certificate.subject_attributes.get("CN") for certificate in chain]
    if names != [intermediate_name(leaf.product, leaf.signing_key), root_name(leaf.product)]:
        raise Untrusted("snp.chain", "The authorities over a SEV-SNP key are of another product or kind of key.")
    whole = (leaf.certificate, *chain)
    if not all(c.der[:-_SIGNATURE].endswith(_SIGNED) for c in whole):
        raise Untrusted(
            "snp.algorithm", "A certificate over a SEV-SNP key isn't signed with RSA-4096, PSS and SHA-384."
        )
    pinned = roots.get(leaf.product)
    if pinned is None:
        raise Untrusted("snp.product", "No root is pinned here for this product of AMD.")
    verify_chain(whole, roots={pinned}, now=now)


def check_revocation(
    chain: Sequence[Certificate], crls: Sequence[Crl], *, now: int, grace: int, required: bool
) -> bool:
    """Whether the ARK's revocation lists were looked at; returns only if none of them names the ASK or ASVK.

    ``chain`` must have been checked. Only the ARK issues lists: VCEKs all have the serial number 0, and go out of use
    with their TCB. ``grace``: seconds for which a list is still good after its end; before its beginning it is good for
    ``LEEWAY`` seconds. Raises Untrusted.
    """
    intermediate, root = chain
    own = [crl for crl in crls if crl.issuer == root.subject]
    for crl in own:
        # Within leeway and grace the list is judged at the nearest moment of its own time.
        within = crl.this_update - LEEWAY <= now < crl.next_update + grace
        verify_crl(crl, root, now=max(crl.this_update, min(now, crl.next_update - 1)) if within else now)
        if crl.revoked(intermediate.serial) or crl.revoked(root.serial):
            raise Untrusted("x509.revoked", "AMD revoked the authority that certified this SEV-SNP key.")
    if required and not own:
        raise Untrusted(
            "crl.missing", "There is no revocation list of AMD's root for this product; fetch or import it."
        )
    return bool(own)


def attester_id(signing_key: str, name: str) -> str:
    """64 hex digits that name an attester: a chip (``name``: its hwid, hex), or under a VLEK the provider's csp_id."""
    return sha256(frame("cloister/snp-attester/v1", signing_key, name)).hex()


def _part(certificate: Certificate, oid: str) -> int:
    if oid in _OPTIONAL and certificate.extension(_AMD + oid) is None:
        return 0
    return _must(certificate, _AMD + oid).unsigned(1)


def _text(value: Der) -> str:
    text = value.text(IA5, UTF8)
    if not text or not text.isascii():
        raise _bad("has a text that can't be shown")
    return text


def _octets(value: bytes, size: int) -> bytes:
    """AMD writes the hardware id without a DER header; with one it would be longer, so the two can't be confused."""
    return value if len(value) == size else _der(value).octets(size)


def _must(certificate: Certificate, oid: str) -> Der:
    value = certificate.extension(oid)
    if value is None:
        raise _bad("lacks one of AMD's extensions")
    return _der(value)


def _der(value: bytes) -> Der:
    return read_der(value, "SEV-SNP certificate", code=_CODE, limit=_MAX_EXTENSION)


def _bad(why: str) -> Malformed:
    return Malformed(_CODE, f"A SEV-SNP certificate {why}; use the one that AMD issued for this processor.")
