"""Evidence from a TPM 2.0: quote and event log. ``verifier`` decides, ``parser`` reads, ``wire`` holds the bytes.

The README beside this file says what is checked and what is missing (vendor roots).
"""

from .verifier import EVENT_PCR, QUOTED_PCRS, TpmVerifier, attester_id

__all__ = ["EVENT_PCR", "QUOTED_PCRS", "TpmVerifier", "attester_id"]
