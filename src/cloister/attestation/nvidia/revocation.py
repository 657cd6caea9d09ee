"""Whether NVIDIA has revoked a device or one of the authorities above it, by OCSP responses and revocation lists.

NVIDIA's service answers for every certificate between root and leaf, the boot ROM's among them: that is the chip. The
leaf is certified by the boot ROM, inside the device, and nobody keeps a list for it; so revoking a device means its
boot ROM's certificate. A device that NVIDIA only suspects is put on hold, which is a revocation that can be lifted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ...crypto.ocsp import OcspStatus, read_ocsp, verify_ocsp
from ...crypto.x509 import Certificate, Crl, fingerprints, read_crl, verify_crl
from ...errors import Untrusted
from ..collateral import Collateral, CollateralSet, Item, Staleness

__all__ = ["answered_for", "check_revocation"]

_WHAT = "A certificate of a GPU's chain"


def answered_for(chain: Sequence[Certificate]) -> range:
    """The places in a chain (leaf first, root last) that can be revoked: all but the leaf's and the root's."""
    return range(1, len(chain) - 1)


def check_revocation(
    chain: Sequence[Certificate], collateral: Collateral | None, staleness: Staleness, *, required: bool, now: int
) -> bool:
    """Return whether each certificate but leaf and root is known not to be revoked at ``now``. With ``required`` that
    is so, or Untrusted is raised. ``chain`` must have been verified.

    A response (``nvidia-ocsp``, by SHA-256 of the certificate) or a list (``nvidia-crl``, by SHA-256 of its issuer's
    key) is enough. Both are judged where they are at hand, so that neither hides what the other says; one that has run
    out is passed over only for the other's sake. Raises Malformed (``ocsp.*``, ``crl.*``, ``x509.*``) or Untrusted:
    ``x509.hold``, ``x509.revoked``, ``ocsp.*``, ``crl.*``, ``collateral.*``.
    """
    known = True
    pieces = collateral if collateral is not None else CollateralSet()
    for at in answered_for(chain):
        found = _Sources(chain[at], chain[at + 1 :], pieces, staleness, now).look()
        if required and not found:
            raise Untrusted(
                "collateral.missing",
                "There is no OCSP response about a certificate of a GPU's chain; fetch or import it.",
                ocsp=chain[at].fingerprint,
            )
        known = known and found
    return known


@dataclass(frozen=True)
class _Sources:
    """What is at hand about one certificate. ``late`` collects what was passed over because it has run out."""

    certificate: Certificate
    issuers: Sequence[Certificate]
    collateral: Collateral
    staleness: Staleness
    now: int
    late: list[Untrusted] = field(default_factory=list)

    def look(self) -> bool:
        """Whether something in its time says that it is not revoked; raises if something says otherwise."""
        crl, answers = self._list(), self._responses()
        if crl is not None and crl.revoked(self.certificate.serial):
            raise Untrusted("x509.revoked", f"{_WHAT} was revoked by its issuer.")
        for status in answers:
            # Who answers was certified by the same issuer, so it can be on its list; nobody answers for it.
            if crl is not None and crl.revoked(status.responder.serial):
                raise Untrusted("ocsp.responder", "Who signed an OCSP response was revoked by the issuer.")
            status.check_good(_WHAT)
        if crl is None and not answers and self.late:
            raise self.late[0]
        return crl is not None or bool(answers)

    def _list(self) -> Crl | None:
        issuer = self.issuers[0]
        item = self.collateral.find("nvidia-crl", issuer.key_fingerprint)
        if item is None:
            return None
        crl = read_crl(item.data)
        if not self._in_time("revocation list", crl.this_update, crl.next_update, item):
            return None
        # Its time has been judged above, with the owner's grace; here only who signed it counts.
        verify_crl(crl, issuer, now=crl.this_update)
        return crl

    def _responses(self) -> list[OcspStatus]:
        """What is kept about the certificate, under each name that a device can give it: else one that was revoked
        would write its certificate anew, and nothing would be known about it."""
        found: list[OcspStatus] = []
        for name in fingerprints(self.certificate, self.issuers[0]):
            item = self.collateral.find("nvidia-ocsp", name)
            if item is None:
                continue
            response = read_ocsp(item.data)
            # Its beginning is judged by verify_ocsp, which knows how far a responder's clock may be ahead.
            if self._in_time("OCSP response", None, response.next_update, item):
                grace = self.staleness.grace
                found.append(verify_ocsp(response, self.certificate, self.issuers, now=self.now, grace=grace))
        return found

    def _in_time(self, what: str, begins: int | None, ends: int, item: Item) -> bool:
        try:
            self.staleness.check(what, begins=begins, ends=ends, obtained=item.obtained, now=self.now)
        except Untrusted as error:
            if error.code != "collateral.stale":
                raise
            self.late.append(error)
            return False
        return True
