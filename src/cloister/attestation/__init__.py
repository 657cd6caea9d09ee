"""Remote attestation: what runs where, proven to whoever holds the keys.

The tour: ``binding`` builds the nonce and report that tie evidence to one release (PROTOCOL §1, the one place).
``models`` reads evidence, claims and reference values strictly, ``reader`` structures of hardware. ``events`` is the
node's measured log, ``bootlog`` the firmware's. ``ports`` says what a platform brings: ``tpm``, ``snp``, ``tdx``,
``nvidia``, ``external`` (another verifier's word) and ``insecure`` bring it, from evidence and ``collateral``.
``registry`` chooses the verifiers (never the insecure one in production), ``composite`` asks them about a processor and
the devices beside it. ``appraisal`` compares proven claims with a contract's reference values, ``policy`` with what the
owner asks, and ``trust`` is what the result, an EAR token, says of each device. ``corim`` reads and writes signed
reference values.

A broker's order: ``check_nonce``, ``report_data``, ``composite.verify_evidence``, ``appraise``, ``result_token``.
Only what workloads and clients need is imported here: verifiers and their doubles aren't part of the trusted image.
"""

from .appraisal import appraise, result_token, verify_token
from .binding import Binding, check_nonce, device_data, make_nonce, report_data
from .models import LEVELS, Claims, Evidence, ReferenceValues, level_rank
from .ports import Attester, DeviceVerifier, Verifier

__all__ = [
    "LEVELS",
    "Attester",
    "Binding",
    "Claims",
    "DeviceVerifier",
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
    "verify_token",
]
