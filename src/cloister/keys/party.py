"""The keys that every party has, and what they are called in its vault."""

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

# These only ever sign, so they can stay inside a device. The others must be at hand as bytes: TLS libraries, HPKE and
# HKDF take nothing else.
_SIGNING = (SIGNING, STATUS, RECEIPT)
_RANDOM = (TLS, CHECKPOINT)


def provision_party(vault: KeyVault) -> None:
    """Make each key that the vault does not hold yet. Safe to repeat, also after a crash in between."""
    keys = vault.keys()
    held = {info.name for info in keys}
    for name in _SIGNING:
        if name not in held:
            vault.create_signing_key(name)
    for name in _RANDOM:
        if name not in held:
            vault.put_secret(name, random_bytes(32))
    if HPKE not in held:
        vault.put_secret(HPKE, HpkePrivateKey.generate().export_secret_bytes())


def hpke_key(vault: KeyVault) -> HpkePrivateKey:
    return HpkePrivateKey(vault.secret(HPKE))
