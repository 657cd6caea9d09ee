"""Vaults: where an owner's keys are kept, and the only place that can unwrap a data key.

The tour: ``ports`` (``KeyVault``, what every vault promises; ``KekDriver``, what keeps its KEKs), ``models``
(``WrappedKey`` and what binds it), ``opening`` (create and unlock), ``vault`` (``Vault``: one file of sealed entries
over one driver), ``drivers`` (file, TPM, HSM, services), ``document`` and ``entries`` (the file's format and
integrity), ``storage`` (durable replacement), ``usage`` (counts), ``recovery`` (k of n people restore a vault),
``renewal`` (a new master key), ``party`` (the keys that a party has). The format is docs/spec/vault.md.
"""

from .drivers import DriverConfig, open_driver
from .models import DEK_SIZE, KeyInfo, WrappedKey, wrap_context
from .opening import MIN_PASSPHRASE, change_passphrase, create_vault, open_vault
from .party import CHECKPOINT, HPKE, RECEIPT, SIGNING, STATUS, TLS, hpke_key, provision_party
from .ports import KekDriver, KeyVault, SigningDriver
from .recovery import Restored, restore_root, split_root
from .renewal import rekey
from .vault import Vault

__all__ = [
    "CHECKPOINT",
    "DEK_SIZE",
    "HPKE",
    "MIN_PASSPHRASE",
    "RECEIPT",
    "SIGNING",
    "STATUS",
    "TLS",
    "DriverConfig",
    "KekDriver",
    "KeyInfo",
    "KeyVault",
    "Restored",
    "SigningDriver",
    "Vault",
    "WrappedKey",
    "change_passphrase",
    "create_vault",
    "hpke_key",
    "open_driver",
    "open_vault",
    "provision_party",
    "rekey",
    "restore_root",
    "split_root",
    "wrap_context",
]
