"""Remote attestation: what runs where, proven to whoever holds the keys.

The tour: ``binding`` builds the nonce and report that tie evidence to one release (PROTOCOL §1, the one
place). ``models`` reads evidence, claims and reference values strictly. ``events`` is the node's measured
log. ``ports`` says what a platform brings; ``tpm/`` and ``insecure/`` bring it. ``registry`` chooses the
verifiers (never the insecure one in production). ``appraisal`` compares proven claims with a contract's
reference values and writes the result as an EAR token.

A broker's order: ``check_nonce``, ``report_data``, ``verifiers(...)[tee].verify``, ``appraise``, ``result_token``.
``insecure`` is deliberately not imported here.
"""

from .appraisal import appraise, result_token, verify_token
from .binding import Binding, check_nonce, device_data, make_nonce, report_data
from .models import LEVELS, Claims, Evidence, ReferenceValues, level_rank
from .ports import Attester, Verifier
from .registry import verifiers

__all__ = [
    "LEVELS",
    "Attester",
    "Binding",
    "Claims",
    "Evidence",
    "ReferenceValues",
    "Verifier",
    "appraise",
    "check_nonce",
    "device_data",
    "level_rank",
    "make_nonce",
    "report_data",
    "result_token",
    "verifiers",
    "verify_token",
]
