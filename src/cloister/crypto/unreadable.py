"""What the cryptography library raises for certificates that it can't make sense of. In a module of its own, because
the workload's TLS needs it and nothing else of what reads certificates."""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

__all__ = ["UNREADABLE"]

# It also warns, which some callers turn into errors.
UNREADABLE = (
    ArithmeticError,
    LookupError,
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    Warning,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
