"""Which certificates and revocation lists go with a report: from the evidence where it has them, else from collateral.

Nothing is trusted here. What the evidence brings is sorted by what the certificates call themselves, and everything is
verified afterwards, so a wrong piece makes the verification fail and nothing else. Names of collateral:

| kind | name |
|---|---|
| ``amd-chain`` | product, or product and ``-vlek``: ``milan``, ``milan-vlek`` |
| ``amd-vcek`` | chip id and reported TCB in hex, ``vcek_name`` |
| ``amd-crl`` | as ``amd-chain`` |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...crypto.x509 import Certificate, Crl, read_certificates, read_crl
from ...errors import Malformed, Unavailable, Untrusted
from ..collateral import Collateral, Item, Staleness
from .certs import LEEWAY, Leaf, read_amd, read_leaf, role_of
from .products import product_of_cpuid
from .report import Report

__all__ = ["MAX_CERTIFICATES", "Endorsements", "chain_name", "find_endorsements", "vcek_name"]

MAX_CERTIFICATES = 3
"""Leaf, ASK or ASVK, ARK."""


@dataclass(frozen=True)
class Endorsements:
    """Still to be verified. ``chain``: the ASK or ASVK, then the ARK."""

    leaf: Leaf
    chain: tuple[Certificate, Certificate]
    crls: tuple[Crl, ...]


def chain_name(product: str, signing_key: str) -> str:
    """The name of a product's authorities, and of their revocation list, in collateral."""
    return f"{product}-vlek" if signing_key == "vlek" else product


def vcek_name(report: Report) -> str:
    """The name of the VCEK for a report in collateral: the chip id and the reported TCB version, in lower-case hex.

    The chip id is 64 bytes, on Turin its first 8 (the others are zero); the TCB version is written as a number, most
    significant byte first, 16 digits. Raises Untrusted for a report that hides its chip id: then nobody can look it up.
    """
    if not any(report.chip_id):
        raise Untrusted(
            "snp.certificate-missing", "The report hides its chip id; the evidence must bring the certificate along."
        )
    turin = product_of_cpuid(*report.cpuid[:2]) == "turin" if report.cpuid else not any(report.chip_id[8:])
    chip = report.chip_id[:8] if turin else report.chip_id
    return f"{chip.hex()}-{report.reported_tcb[::-1].hex()}"


def find_endorsements(
    report: Report, given: Sequence[Certificate], collateral: Collateral, staleness: Staleness, *, now: int
) -> Endorsements:
    """Complete ``given``, certificates in any order, from ``collateral``.

    Raises Malformed for a certificate that has no place here or comes twice; Unavailable ``snp.collateral`` for one
    that the collateral lacks, Untrusted ``snp.certificate-missing`` for one that only the evidence can bring;
    ``collateral.stale`` or ``collateral.future`` for what may not be used any more, or not yet.
    """
    roles: dict[str, Certificate] = {}
    for certificate in given:
        role = role_of(certificate)
        if role is None or role in roles:
            raise Malformed("snp.certificates", "The SEV-SNP evidence has a certificate that does not belong there.")
        roles[role] = certificate
    leaf = read_leaf(roles["leaf"] if "leaf" in roles else _vcek(report, collateral, staleness, now))
    name = chain_name(leaf.product, leaf.signing_key)
    if "intermediate" in roles and "root" in roles:
        chain = (roles["intermediate"], roles["root"])
    else:
        chain = _chain(name, collateral, staleness, now)
    return Endorsements(leaf, chain, _crls(name, collateral, staleness, now))


def _vcek(report: Report, collateral: Collateral, staleness: Staleness, now: int) -> Certificate:
    if report.signing_key != "vcek":
        # AMD gives VLEK certificates to the provider only: nobody else could have fetched one.
        raise Untrusted("snp.certificate-missing", "The evidence must bring the certificate of its key along.")
    item = _must(collateral, "amd-vcek", vcek_name(report))
    found = read_amd(item.data)
    _fresh(staleness, (found,), item, now)
    return found


def _chain(name: str, collateral: Collateral, staleness: Staleness, now: int) -> tuple[Certificate, Certificate]:
    item = _must(collateral, "amd-chain", name)
    found = read_certificates(item.data, limit=2)
    if len(found) != 2:
        raise Malformed("snp.certificates", "A SEV-SNP chain in the collateral must be the ASK or ASVK, then the ARK.")
    _fresh(staleness, found, item, now)
    return found[0], found[1]


def _crls(name: str, collateral: Collateral, staleness: Staleness, now: int) -> tuple[Crl, ...]:
    item = collateral.find("amd-crl", name)
    if item is None:
        return ()
    crl = read_crl(item.data)
    begins, obtained = crl.this_update - LEEWAY, item.obtained - LEEWAY
    staleness.check("revocation list of AMD", begins=begins, ends=crl.next_update, obtained=obtained, now=now)
    return (crl,)


def _must(collateral: Collateral, kind: str, name: str) -> Item:
    item = collateral.find(kind, name)
    if item is None:
        raise Unavailable(
            "snp.collateral", f"The collateral has no {kind} named {name}; fetch or import it.", kind=kind, name=name
        )
    return item


def _fresh(staleness: Staleness, found: Sequence[Certificate], item: Item, now: int) -> None:
    """Certificates say themselves how long they are good, and get no grace: ``verify_chain`` checks them again."""
    begins, ends = max(c.not_before for c in found), min(c.not_after for c in found)
    staleness.check("certificate of AMD", begins=begins, ends=ends + 1, obtained=item.obtained - LEEWAY, now=now)
