"""Evidence from a TPM 2.0: quote, event log, boot log, and whose TPM it is.

The tour: ``verifier`` decides, ``quoting`` does for one quote by itself, ``parser`` reads structures over ``wire``.
``enrolment`` is how an owner learns that a key lives in a manufacturer's TPM: ``ek`` has the templates,
``ek_certificate`` the certificates' profile (``der`` reads their extensions), ``roots`` the pinned makers,
``credential`` the protected secret. ``hcl`` reads what Azure's confidential VMs give, and ``azure``, which is not
imported here, verifies it with the hardware's verifiers. The README beside this file says what is checked, and what a
success proves.
"""

from .enrolment import Challenge, Enrolment, EnrolmentRequest, Pending, answer, begin, finish
from .quoting import verify_quote
from .verifier import BOOT_PCRS, EVENT_PCR, MAX_BOOT_LOG, QUOTED_PCRS, TpmVerifier, attester_id

__all__ = [
    "BOOT_PCRS",
    "EVENT_PCR",
    "MAX_BOOT_LOG",
    "QUOTED_PCRS",
    "Challenge",
    "Enrolment",
    "EnrolmentRequest",
    "Pending",
    "TpmVerifier",
    "answer",
    "attester_id",
    "begin",
    "finish",
    "verify_quote",
]
