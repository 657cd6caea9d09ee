"""One narrow profile of XML signatures (W3C XML Signature 1.1): enveloped, over the whole document, by certificates.

Most attacks on XML signatures need something that this profile doesn't have: a second signature, a reference to a part
by its id, transforms that select, keys that are named rather than certified. So there is exactly one signature, a child
of the root; one reference, to the whole document; and what was verified is *returned*, without the signature. A caller
that reads only that can't read anything that wasn't signed.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from hashlib import sha384
from typing import Final

from ..errors import Malformed, Untrusted
from .canonical_xml import Element, canonicalize, parse_xml
from .kdf import constant_time_equal
from .signatures import raw_ecdsa, verify_hardware_signature
from .x509 import Certificate, check_usage, read_certificate, verify_chain

__all__ = ["SignedXml", "open_signed_xml"]

_DSIG: Final = "http://www.w3.org/2000/09/xmldsig#"
_MORE: Final = "http://www.w3.org/2001/04/xmldsig-more#"
_ENVELOPED: Final = f"{_DSIG}enveloped-signature"
_SIGNATURE: Final = f"{_MORE}ecdsa-sha384"
_DIGEST: Final = f"{_MORE}sha384"
_INCLUSIVE: Final = "http://www.w3.org/TR/2001/REC-xml-c14n-20010315"
_CANONICAL: Final = {
    _INCLUSIVE: False,
    "http://www.w3.org/2006/12/xml-c14n11": False,
    "http://www.w3.org/2001/10/xml-exc-c14n#": True,
}
"""The canonical forms that are understood, and whether each is the exclusive one."""
_MAX_CERTIFICATES: Final = 8
_ALGORITHM: Final = frozenset({("", "Algorithm")})
_SIZE: Final = 96


@dataclass(frozen=True)
class SignedXml:
    """``root``: the document as it was signed, without its signature. ``certificates``: the signer's chain."""

    root: Element
    certificates: tuple[Certificate, ...]


@dataclass(frozen=True)
class _Parts:
    signature: Element
    signed_info: Element
    exclusive_info: bool
    exclusive_document: bool
    digest: bytes
    value: bytes
    certificates: tuple[Certificate, ...]


def open_signed_xml(
    data: bytes, *, roots: Collection[str], now: int, above: Sequence[Certificate] = (), grace: int = 0
) -> SignedXml:
    """The document, if its one signature (ECDSA P-384 with SHA-384) covers it all and leads to one of ``roots``.

    ``roots``: SHA-256 of a root's SubjectPublicKeyInfo, hex. ``above``: certificates to append where the document
    leaves out the upper end of its chain. ``grace``: seconds for which a chain that has expired still counts. Raises
    Malformed (``xml.*``, ``xmldsig.form``, ``x509.*``) or Untrusted (``xmldsig.*``, ``x509.*``).
    """
    # 1. The form: one signature, of this profile.
    root = parse_xml(data)
    parts = _read(root)
    # 2. The document, but for the signature, is what the signature speaks of.
    digest = sha384(canonicalize(root, exclusive=parts.exclusive_document, without=parts.signature)).digest()
    if not constant_time_equal(digest, parts.digest):
        raise Untrusted("xmldsig.digest", "A signed document was changed after it was signed.")
    # 3. The signer's certificates lead to a root that is pinned.
    chain = parts.certificates
    if chain[-1].key_fingerprint not in roots:
        chain = chain + tuple(above)
    ends = min(certificate.not_after for certificate in chain)
    verify_chain(chain, roots=roots, now=ends if ends < now < ends + grace else now)
    # 4. The signer signed.
    leaf = chain[0]
    check_usage(leaf, "digital_signature", "x509.usage", "A document is signed by a certificate that may not sign any.")
    if leaf.curve != "P-384" or len(parts.value) != _SIZE:
        raise Untrusted("xmldsig.algorithm", "A document is signed with another kind of key than ECDSA P-384.")
    message = canonicalize(parts.signed_info, exclusive=parts.exclusive_info)
    try:
        verify_hardware_signature(leaf.spki, message, raw_ecdsa(parts.value), hash_name="sha384")
    except Untrusted:
        raise Untrusted("xmldsig.signature", "The signature of a signed document does not verify.") from None
    return SignedXml(root.without(parts.signature), chain)


def _bad(why: str) -> Malformed:
    return Malformed("xmldsig.form", f"A signed document {why}, so it is not of the one form that is accepted.")


def _read(root: Element) -> _Parts:
    found = [child for child in root.elements() if child.namespace == _DSIG]
    if len(found) != 1 or found[0].local != "Signature":
        raise _bad("does not have exactly one signature below its root")
    signature = found[0]
    inside = sum(1 for element in signature.walk() if element.namespace == _DSIG)
    if inside != sum(1 for element in root.walk() if element.namespace == _DSIG):
        raise _bad("has parts of a signature outside of its signature")
    info, value, keys = _children(signature, ("SignedInfo", "SignatureValue", "KeyInfo"))
    method, how, reference = _children(info, ("CanonicalizationMethod", "SignatureMethod", "Reference"))
    if _algorithm(how) != _SIGNATURE:
        raise Untrusted("xmldsig.algorithm", "A document is signed with another algorithm than ECDSA with SHA-384.")
    if set(reference.attributes) != {("", "URI")} or reference.attributes["", "URI"]:
        raise _bad("has a signature over a part of it")
    transforms, digest_method, digest = _children(
        reference, ("Transforms", "DigestMethod", "DigestValue"), attributes={("", "URI")}
    )
    if _algorithm(digest_method) != _DIGEST:
        raise Untrusted("xmldsig.algorithm", "A document is signed with another digest than SHA-384.")
    return _Parts(
        signature,
        info,
        _canonical(_algorithm(method)),
        _transforms(transforms),
        _base64(digest),
        _base64(value),
        _certificates(keys),
    )


def _children(
    parent: Element, names: tuple[str, ...], *, attributes: Collection[tuple[str, str]] = ()
) -> tuple[Element, ...]:
    """The children, which must be exactly these elements of the signature's namespace, in this order."""
    found = parent.elements()
    if [(e.namespace, e.local) for e in found] != [(_DSIG, name) for name in names]:
        raise _bad(f"has a signature with another content of {parent.local}")
    if set(parent.attributes) != set(attributes) or parent.text().strip():
        raise _bad(f"has a signature with something unknown in {parent.local}")
    return tuple(found)


def _algorithm(element: Element) -> str:
    if set(element.attributes) != _ALGORITHM or element.elements() or element.text().strip():
        raise _bad(f"has a signature with parameters of {element.local}")
    return element.attributes["", "Algorithm"]


def _canonical(algorithm: str) -> bool:
    if algorithm not in _CANONICAL:
        raise Untrusted("xmldsig.algorithm", "A signed document names a canonical form that is not accepted.")
    return _CANONICAL[algorithm]


def _transforms(transforms: Element) -> bool:
    """Whether the document is hashed in the exclusive form. Without a word it is Canonical XML 1.0 (§4.4.3.2)."""
    listed = transforms.elements()
    if not 1 <= len(listed) <= 2:
        raise _bad("has a signature with an unusual number of transforms")
    algorithms = [_algorithm(e) for e in _children(transforms, ("Transform",) * len(listed))]
    if algorithms[0] != _ENVELOPED:
        raise _bad("has a signature that isn't enveloped")
    return _canonical(algorithms[1] if len(algorithms) == 2 else _INCLUSIVE)


def _certificates(keys: Element) -> tuple[Certificate, ...]:
    (data,) = _children(keys, ("X509Data",))
    listed = data.elements()
    if not 1 <= len(listed) <= _MAX_CERTIFICATES:
        raise _bad(f"has a signature with no certificate, or with more than {_MAX_CERTIFICATES}")
    return tuple(read_certificate(_base64(e)) for e in _children(data, ("X509Certificate",) * len(listed)))


def _base64(element: Element) -> bytes:
    if element.attributes or element.elements():
        raise _bad(f"has a signature with something unknown in {element.local}")
    try:
        return b64decode("".join(element.text().split()), validate=True)
    except ValueError:
        raise _bad("has a signature with a part that is not base64") from None
