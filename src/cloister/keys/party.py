"""The secrets that every party has, and what they are called in its vault."""

from __future__ import annotations

from ..crypto import HpkePrivateKey, random_bytes
from .ports import KeyVault

__all__ = ["CHECKPOINT", "HPKE", "RECEIPT", "SIGNING", "STATUS", "TLS", "hpke_key", "provision_party"]

SIGNING = "signing"  # contracts and manifests
STATUS = "status"  # in-force statements
RECEIPT = "receipt"  # the audit log and what the broker answers
TLS = "tls"  # the broker's transport
HPKE = "hpke"  # what others encrypt to this party
CHECKPOINT = "checkpoint-root"  # shares of derived keys come from it (PROTOCOL §3)

_RANDOM = (SIGNING, STATUS, RECEIPT, TLS, CHECKPOINT)


def provision_party(vault: KeyVault) -> None:
    """Make each secret that the vault does not hold yet. Safe to repeat, also after a crash in between."""
    held = set(vault.secret_names())
    for name in _RANDOM:
        if name not in held:
            vault.put_secret(name, random_bytes(32))
    if HPKE not in held:
        vault.put_secret(HPKE, HpkePrivateKey.generate().export_secret_bytes())


def hpke_key(vault: KeyVault) -> HpkePrivateKey:
    return HpkePrivateKey(vault.secret(HPKE))
