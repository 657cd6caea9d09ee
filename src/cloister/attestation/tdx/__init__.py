"""Evidence from Intel TDX, and SGX quotes, which share all of its machinery.

``verifier`` decides about a node in a trust domain; ``quoting`` verifies a quote, which is the entry for tools.
``quote`` and ``pck`` read what the platform signed and its certificate; ``documents``, ``tcb``, ``enclave`` and
``revocation`` what Intel says about it; ``sources`` brings that in from outside. ``runtime`` is RTMR 3. The README
beside this file numbers the checks and says what a success proves and what it doesn't.
"""

from .quote import MAX_QUOTE, EnclaveReport, Quote, TdReport, parse_quote
from .quoting import Authentic, authenticate_quote, judge_quote, verify_quote
from .roots import ROOTS
from .runtime import extended_value, replay_rtmr3
from .sources import read_collateral, service_items
from .stock import TdxGuestJudge
from .tcb import NOT_SUPPORTED, REVOKED, Evaluation
from .verifier import GUEST_MEASUREMENTS, TdxVerifier, attester_id, level_of

__all__ = [
    "GUEST_MEASUREMENTS",
    "MAX_QUOTE",
    "NOT_SUPPORTED",
    "REVOKED",
    "ROOTS",
    "Authentic",
    "EnclaveReport",
    "Evaluation",
    "Quote",
    "TdReport",
    "TdxGuestJudge",
    "TdxVerifier",
    "attester_id",
    "authenticate_quote",
    "extended_value",
    "judge_quote",
    "level_of",
    "parse_quote",
    "read_collateral",
    "replay_rtmr3",
    "service_items",
    "verify_quote",
]
