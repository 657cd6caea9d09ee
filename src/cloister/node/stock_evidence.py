"""Evidence of a confidential guest for a stock attestation service, such as Trustee's: in the form of its own guests.

It holds no launch log, for such a service knows none. So it says what this guest is, and not which sandbox asked: what
the service's owner pins must be a guest whose agent launches one workload only, and holds that in what is measured. The
runtime data is hashed here. A sandbox that could choose what is signed could have a launch log of its own signed.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from ..attestation import snp
from ..attestation.guests import stock_report_data
from ..attestation.models import Evidence
from ..crypto.x509 import Certificate
from .configfs import DATA, Quote

__all__ = ["asked", "stock_wire"]


def asked(nonce: str, tee_pubkey: Mapping[str, Any], algorithm: str) -> bytes:
    """The 64 bytes that the report is made over: the hash, then zeros. Raises Malformed."""
    return stock_report_data(nonce, tee_pubkey, "", algorithm).ljust(DATA, b"\0")


def stock_wire(quote: Quote, leaf: Sequence[Certificate]) -> dict[str, Any]:
    """``{"tee", "primary_evidence", "additional_evidence"}``. ``leaf``: the certificate of the key that signed, or
    none; what stands above it such services bring along."""
    if quote.tee == "tdx":
        primary: dict[str, Any] = {"cc_eventlog": None, "quote": base64.b64encode(quote.report).decode()}
    else:
        kind = snp.parse_report(quote.report).signing_key.upper()
        chain = [{"cert_type": kind, "data": list(certificate.der)} for certificate in leaf]
        primary = {"attestation_report": snp.stock_fields(quote.report), "cert_chain": chain or None}
    return Evidence(quote.tee, primary, "").to_wire()
