"""Vaults: where an owner's keys are kept, and the only place that can unwrap a data key.

The tour: ``ports`` (``KeyVault``, what every vault promises), ``models`` (``WrappedKey`` and what binds it), ``file``
(``FileVault``: one file under a passphrase), ``document`` (that file's format and integrity), ``storage`` (durable
replacement), ``party`` (the secrets that a party has). The format is docs/spec/vault.md.
"""

from .file import MIN_PASSPHRASE, FileVault
from .models import WrappedKey, wrap_context
from .party import CHECKPOINT, HPKE, RECEIPT, SIGNING, STATUS, TLS, hpke_key, provision_party
from .ports import KeyVault

__all__ = [
    "CHECKPOINT",
    "HPKE",
    "MIN_PASSPHRASE",
    "RECEIPT",
    "SIGNING",
    "STATUS",
    "TLS",
    "FileVault",
    "KeyVault",
    "WrappedKey",
    "hpke_key",
    "provision_party",
    "wrap_context",
]
