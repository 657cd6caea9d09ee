"""Parties whose keys come from a stock KBS server, such as a Trustee, and not from a broker of Cloister's.

Such a server's nonce names no contract, no job and no lease; it keeps no log that others can check, gives no lease, no
share of a checkpoint's key, no in-force statement and no permit. The contract says of whom that is true, and all
parties sign it. What binds a key to its contract all the same is what the party stores: not the bare key but a document
that names contract and asset, which the measured workload compares with its own.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ..crypto import canonical_json, parse_canonical
from ..errors import Denied, Malformed, Untrusted
from ..fields import Fields, party_name

if TYPE_CHECKING:
    from .contract import Contract
    from .documents import Job

__all__ = [
    "TRUSTEE_KEY_KIND",
    "TrusteeEntry",
    "check_trustee_job",
    "check_trustee_terms",
    "check_trustees",
    "read_trustee_key",
    "trustee_key",
]

TRUSTEE_KEY_KIND: Final = "asset-key"
"""KBS's resource type of an asset's key; the tag is the asset's digest in hex."""
_DOCUMENT: Final = "trustee-key/v1"
_KEY: Final = 32
_MOST_PORT: Final = 65535
_ADDRESS = re.compile(r"[A-Za-z0-9.-]{1,253}:[1-9][0-9]{0,4}")
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class TrusteeEntry:
    """What a contract says of a party's key broker that is not ours. ``tls_pin``: SHA-256 of its SubjectPublicKeyInfo.

    ``unbound``: whether the parties accept keys that nothing binds to this contract and job. ``repository``: KBS's.
    ``address``: host:port, where nodes reach it; the directory has addresses of our own brokers.
    """

    tls_pin: bytes
    repository: str
    unbound: bool
    address: str

    @classmethod
    def read(cls, party: str, value: Any) -> TrusteeEntry:
        """Raises Malformed; also for an entry that does not say ``"unbound": true``."""
        party_name(party)
        f = Fields(value, "contract's stock key broker")
        entry = cls(
            tls_pin=f.hex("tls_pin", 32),
            repository=f.text("repository", limit=128),
            unbound=f.boolean("unbound"),
            address=f.text("address", limit=300),
        )
        f.done()
        if not _ADDRESS.fullmatch(entry.address) or int(entry.address.rpartition(":")[2]) > _MOST_PORT:
            raise Malformed("contract.trustee", "A stock key broker's address is written host:port.")
        if not _REPOSITORY.fullmatch(entry.repository):
            raise Malformed("contract.trustee", "A repository is named by letters, digits, dots, dashes, underscores.")
        if not entry.unbound:
            raise Malformed(
                "contract.trustee", "A stock key broker's keys are bound to no contract and job; say 'unbound: true'."
            )
        return entry

    def document(self) -> dict[str, Any]:
        pin = self.tls_pin.hex()
        return {"address": self.address, "repository": self.repository, "tls_pin": pin, "unbound": self.unbound}


def check_trustees(contract: Contract) -> None:
    """What could never work under a contract is refused when it is read. Raises Malformed("contract.trustee")."""
    if not contract.trustees:
        return
    if not set(contract.trustees) <= set(contract.owners()):
        raise Malformed("contract.trustee", "A stock key broker is named for a party that owns none of the assets.")
    if not contract.brokers():
        raise Malformed(
            "contract.trustee",
            "At least one owner must run a broker of Cloister's: nobody else ends a run or lets an output go.",
        )
    least = contract.platform.witness_quorum
    if any(len(contract.witnesses(owner)) < least for owner in contract.brokers()):
        raise Malformed(
            "contract.witnesses", "A party with a stock key broker keeps no log and is no witness; lower the quorum."
        )


def check_trustee_job(contract: Contract, job: Job) -> None:
    """Raises Denied for a job that needs what a stock key broker hasn't."""
    if contract.trustees and (job.recipe.checkpoint_steps > 0 or job.recipe.checkpoint_minutes > 0):
        # The key of checkpoints is made of every owner's share, so that no single owner can open one.
        who = min(contract.trustees)
        raise Denied(
            "recipe.checkpoints",
            f"The keys of {who} come from a stock key broker, which has no share of a checkpoint's key; "
            "set checkpoint_steps and checkpoint_minutes to 0.",
            party=who,
        )


def check_trustee_terms(contract: Contract, job: Job, *, now: int) -> None:
    """Raises Denied("asset.retention") for a job that uses a stock key broker's asset at or after its end. Such a
    server knows no dates, so whoever else decides about the run looks at the one that all parties signed."""
    for asset in map(contract.asset, job.assets):
        if asset.owner in contract.trustees and now >= asset.terms.keep_until:
            raise Denied("asset.retention", f"The time for which {asset.name} may be kept is over.", party=asset.owner)


def trustee_key(contract: bytes, asset: bytes, key: bytes) -> bytes:
    """What a party stores at its stock key broker: the key (32 bytes) for one asset under one contract (digests)."""
    body = {"asset": asset.hex(), "contract": contract.hex(), "key": base64.b64encode(key).decode(), "type": _DOCUMENT}
    return canonical_json(body)


def read_trustee_key(data: bytes, *, contract: bytes, asset: bytes) -> bytes:
    """The key, if its owner stored it for this contract and asset. Raises Malformed, or Untrusted for another one's."""
    f = Fields(parse_canonical(data), "stock key broker's key")
    f.text("type", choices=(_DOCUMENT,))
    about, of, key = f.hex("contract", 32), f.hex("asset", 32), f.base64("key", limit=64)
    f.done()
    if len(key) != _KEY:
        raise Malformed("trustee.secret", f"A key that a stock key broker keeps has exactly {_KEY} bytes.")
    if about != contract or of != asset:
        raise Untrusted("trustee.other", "The stock key broker's key was stored for another contract or asset.")
    return key
