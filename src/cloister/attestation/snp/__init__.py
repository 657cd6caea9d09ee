"""Evidence from AMD SEV-SNP: an attestation report, and the certificates that lead from its key to AMD's root.

``verifier`` decides, as nine numbered steps; ``report`` reads the report, ``certs`` the certificates, ``products``
knows the processors, ``endorsements`` finds what the evidence left out, ``facts`` says what was proven. The entry for a
report alone is ``verify_report``. The README beside this file says what a success proves and what it doesn't.
"""

from .certs import Leaf, attester_id, read_amd, read_leaf, role_of
from .endorsements import chain_name, vcek_name
from .report import Report, parse_report
from .roots import AMD_ROOTS
from .stock import SnpGuestJudge, stock_fields
from .verifier import SnpVerifier, level_of, verify_report

__all__ = [
    "AMD_ROOTS",
    "Leaf",
    "Report",
    "SnpGuestJudge",
    "SnpVerifier",
    "attester_id",
    "chain_name",
    "level_of",
    "parse_report",
    "read_amd",
    "read_leaf",
    "role_of",
    "stock_fields",
    "vcek_name",
    "verify_report",
]
