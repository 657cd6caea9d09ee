"""Endorsement certificates: a manufacturer's word that a key is one of its TPMs' (TCG EK Credential Profile 2.6 §3)."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from ...crypto.der import SET, Der, read_der
from ...crypto.x509 import Certificate, Crl, check_usage, read_certificate, verify_chain
from ...errors import Malformed, Untrusted
from .ek import EndorsementKey
from .parser import ALG_RSA
from .roots import MANUFACTURERS, ROOTS

__all__ = ["EkCertificate", "maker_name", "read_ek_certificate", "shipped", "verify_ek"]

_ALTERNATIVE_NAME: Final = "2.5.29.17"
_POLICIES: Final = "2.5.29.32"
_EXTENDED_USAGE: Final = "2.5.29.37"
_EK_USAGE: Final = "2.23.133.8.1"  # tcg-kp-EKCertificate
_ATTRIBUTES: Final = {"2.23.133.2.1": "manufacturer", "2.23.133.2.2": "model", "2.23.133.2.3": "version"}
_MAKER: Final = re.compile(r"id:([0-9A-Fa-f]{8})")
_DIRECTORY_NAME: Final = 0xA4
_CODE: Final = "tpm.ek-certificate"
_MAX_POOL: Final = 16


@dataclass(frozen=True)
class EkCertificate:
    """A certificate of the right form. Nothing about it is true before ``verify_ek`` returned.

    ``manufacturer``: 8 hex digits, lower case. ``model``, ``version``: as the maker wrote them.
    """

    certificate: Certificate
    manufacturer: str
    model: str
    version: str


def _untrusted(why: str) -> Untrusted:
    return Untrusted(_CODE, f"The endorsement certificate {why}.")


def _der(value: bytes) -> Der:
    return read_der(value, "TPM's endorsement certificate", code=_CODE)


def read_ek_certificate(data: bytes) -> EkCertificate:
    """Read a certificate (DER or one PEM block) and check that it is one for an endorsement key.

    Its subject alternative name has exactly one each of the TPM's manufacturer, model and version (§3.1.2); it says
    tcg-kp-EKCertificate. Raises Malformed for its form, Untrusted
    ``tpm.ek-certificate`` for another purpose.
    """
    certificate = read_certificate(data)
    name = _names(certificate)
    maker = _MAKER.fullmatch(name["manufacturer"])
    if maker is None:
        raise _untrusted("does not name its manufacturer by an id")
    usage = certificate.extension(_EXTENDED_USAGE)
    if usage is None or _EK_USAGE not in [purpose.oid() for purpose in _der(usage).children()]:
        raise _untrusted("is not for endorsement keys")
    return EkCertificate(certificate, maker[1].lower(), name["model"], name["version"])


def _names(certificate: Certificate) -> dict[str, str]:
    extension = certificate.extension(_ALTERNATIVE_NAME)
    if extension is None:
        raise _untrusted("does not say which TPM it is for")
    found: dict[str, str] = {}
    for general in _der(extension).children():
        if general.tag != _DIRECTORY_NAME:
            continue
        (name,) = general.children(_DIRECTORY_NAME, count=1)
        for attribute in (attribute for relative in name.children() for attribute in relative.children(SET)):
            kind, value = attribute.children(count=2)
            which = _ATTRIBUTES.get(kind.oid())
            if which is None:
                continue
            if which in found:
                raise _untrusted("names two TPMs")
            found[which] = value.text()
    if set(found) != set(_ATTRIBUTES.values()):
        raise _untrusted("does not say which TPM it is for")
    return found


def verify_ek(
    ek: EkCertificate,
    key: EndorsementKey,
    pool: Sequence[Certificate],
    *,
    now: int,
    roots: Collection[str] = (),
    crls: Sequence[Crl] = (),
) -> str:
    """The root's fingerprint under which ``ek`` is good at ``now`` and for exactly ``key``.

    ``pool``: the certificates between it and the root, and the root's, in any order, at most 16. ``roots``:
    fingerprints that the owner accepts beside the shipped ones; what they vouch for never reaches level ``tpm``. Raises
    Untrusted: ``tpm.ek-key`` for another key, ``tpm.ek-usage`` for a key usage of the other kind,
    ``tpm.ek-manufacturer`` for an id that isn't registered or isn't this shipped root's, or what ``verify_chain``
    raises.
    """
    if ek.certificate.spki != key.der():
        raise Untrusted("tpm.ek-key", "The endorsement certificate is for another key than the one shown.")
    _check_usage(ek.certificate, key)
    chain = _ordered(ek.certificate, pool)
    accepted = set(ROOTS) | set(roots)
    # The subject may be empty: then the alternative name is critical (RFC 5280 §4.2.1.6); it and the usage were checked
    # when the certificate was read. Policies are critical in some makers' authorities; as none is asked for here, they
    # restrict nothing (RFC 5280 §6.1: the initial policy set is any-policy). What could demand one is still refused.
    understood = {_ALTERNATIVE_NAME, _EXTENDED_USAGE, _POLICIES}
    verify_chain(chain, roots=accepted, now=now, crls=crls, critical=understood)
    root = chain[-1].key_fingerprint
    if root in ROOTS and ek.manufacturer not in (ROOTS[root].makers & set(MANUFACTURERS)):
        raise Untrusted("tpm.ek-manufacturer", "The endorsement certificate names another maker than its root's.")
    return root


def _check_usage(certificate: Certificate, key: EndorsementKey) -> None:
    """§3.1.2: an RSA key encrypts keys, an ECC key agrees on them."""
    wanted = "key_encipherment" if key.template.algorithm == ALG_RSA else "key_agreement"
    why = "The endorsement certificate's key usage is not an endorsement key's."
    check_usage(certificate, wanted, "tpm.ek-usage", why, stated=True)


def _ordered(leaf: Certificate, pool: Sequence[Certificate]) -> list[Certificate]:
    """From the leaf up, by names. A name that two certificates have is the first one's: the signature decides
    anyway."""
    if len(pool) > _MAX_POOL:
        raise Malformed("tpm.ek-chain", f"An endorsement certificate comes with at most {_MAX_POOL} others.")
    chain = [leaf]
    for _ in range(_MAX_POOL):
        last = chain[-1]
        above = next((c for c in pool if c.subject == last.issuer and c not in chain), None)
        if last.subject == last.issuer or above is None:
            break
        chain.append(above)
    return chain


def shipped(root: str, manufacturer: str) -> bool:
    """Whether a root's fingerprint and a maker's id are a pair of the shipped list: what level ``tpm`` follows from."""
    return root in ROOTS and manufacturer in ROOTS[root].makers and manufacturer in MANUFACTURERS


def maker_name(manufacturer: str) -> str:
    """The registered name for people; the id where there is none."""
    return MANUFACTURERS.get(manufacturer, f"unregistered maker {manufacturer}")
