"""Intel's revocation lists, at one clock and under one staleness policy."""

from __future__ import annotations

import binascii
from typing import Final

from ...crypto.x509 import Certificate, Crl, read_crl, verify_crl
from ...errors import Malformed, Untrusted
from ..collateral import Staleness
from .documents import check_time

__all__ = ["RevocationList", "read_intel_crl"]

_MAX_CRL: Final = 256 * 1024


def read_intel_crl(data: bytes) -> Crl:
    """A revocation list as DER, PEM, or DER in hex, which is how Intel's own cache sends it. Raises Malformed."""
    if len(data) > _MAX_CRL:
        raise Malformed("crl.form", "A revocation list is too long.")
    try:
        return read_crl(binascii.unhexlify(data.strip()))
    except binascii.Error:
        return read_crl(data)


class RevocationList:
    """A list in its time. Its signature is verified under the issuer of each certificate that is looked up."""

    def __init__(self, data: bytes, *, now: int, staleness: Staleness) -> None:
        self._crl = read_intel_crl(data)
        begins, ends = self._crl.this_update, self._crl.next_update
        check_time("revocation list", begins=begins, ends=ends, now=now, staleness=staleness)
        # Within leeway and grace the list is judged at the nearest moment of its own time.
        self._now = max(begins, min(now, ends - 1))
        self._verified: set[bytes] = set()

    def check(self, certificate: Certificate, issuer: Certificate) -> None:
        """Return if ``issuer``, whom the caller trusts, did not revoke ``certificate``. Raises Untrusted
        ``x509.revoked``, ``crl.*``."""
        if issuer.der not in self._verified:
            verify_crl(self._crl, issuer, now=self._now)
            self._verified.add(issuer.der)
        if self._crl.revoked(certificate.serial):
            raise Untrusted("x509.revoked", "Intel revoked a certificate of the quote's chain or of its collateral.")
