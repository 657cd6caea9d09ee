"""A key from a key broker that is not ours: KBS exactly as published, without what Cloister binds beside it.

Such a server's nonce names no contract, no job and no lease. So nothing shows that the key was meant for this run, no
log entry proves its release, and no lease ends it. That is never the default: the contract must say that the party's
key comes from there and that this is accepted, and the result of the run says so too (``binding``: none). What the
party stores there names contract and asset, and is refused in a run of any other (``contracts.trustees``): else whoever
runs a node could make up a contract, and have this very workload fetch the key for it.

Sources: Trustee, kbs/docs/kbs_attestation_protocol.md (messages, paths, errors); its guests' client for the hash
over the runtime data: the one that the server selects in ``extra-params``, and SHA-384 where it selects none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final, Protocol

from ..contracts import TRUSTEE_KEY_KIND, Contract, TrusteeEntry, read_trustee_key
from ..crypto import JweKey
from ..errors import Denied, Malformed
from ..fields import Fields
from .broker_client import BrokerClient
from .node_link import NodeLink

__all__ = [
    "BINDING_CTX",
    "BINDING_NONE",
    "NodeEvidence",
    "PublishedSession",
    "StockEvidence",
    "TrusteeEntry",
    "UnboundKey",
]

VERSION: Final = "0.4.0"
BINDING_CTX: Final = "ctx"
"""The nonce committed to contract, job, keys and lease (PROTOCOL §1)."""
BINDING_NONE: Final = "none"
"""The nonce was the server's own: nothing ties this release to this run."""

_TEES = {"insecure": "sample", "snp": "snp", "tdx": "tdx"}
"""Our names of platforms, and KBS's, where the node can make evidence that a stock attestation service reads."""
_HASHES = ("sha256", "sha384", "sha512")
_DEFAULT_HASH = "sha384"
_MAX_TOKEN = 512 * 1024
_MAX_SECRET = 64 * 1024
_PART = re.compile(r"[A-Za-z0-9._-]{1,128}")


class StockEvidence(Protocol):
    """Evidence in the form that a stock attestation service reads: no launch log of ours in it."""

    tee: str

    def make(self, nonce: str, tee_pubkey: dict[str, str], algorithm: str) -> tuple[str, Any]:
        """(additional, primary) evidence, whose report data is the hash over the runtime data: nonce, key and the
        additional evidence, which is a JSON object by platform as text, and empty where there is none."""
        ...


class NodeEvidence:
    """The node's. Raises Denied("trustee.platform") where it can make none."""

    def __init__(self, link: NodeLink, tee: str) -> None:
        if tee not in _TEES:
            raise Denied(
                "trustee.platform", "A stock key broker takes evidence of SEV-SNP or TDX; run on a node of that kind."
            )
        self.tee = _TEES[tee]
        self._link = link

    def make(self, nonce: str, tee_pubkey: dict[str, str], algorithm: str) -> tuple[str, Any]:
        f = Fields(self._link.stock_evidence(nonce, tee_pubkey, algorithm), "node's evidence")
        return f.text("additional_evidence", limit=_MAX_TOKEN), f.raw("primary_evidence")


@dataclass(frozen=True, repr=False)
class UnboundKey:
    """A secret of a stock key broker. There is no receipt and no lease: nothing proves its release, nothing ends it."""

    party: str
    resource: str
    secret: bytes
    binding: str = BINDING_NONE

    def statement(self) -> dict[str, str]:
        """For the run's result."""
        return {"binding": self.binding, "party": self.party, "resource": self.resource}


class PublishedSession:
    """Context manager: request, challenge and attestation happen on entry, the connection closes on exit.

    Raises Denied("trustee.unbound") before anything is sent where the contract's entry does not accept it.
    """

    def __init__(
        self, link: NodeLink, contract: Contract, party: str, entry: TrusteeEntry, evidence: StockEvidence
    ) -> None:
        if not entry.unbound:
            raise Denied(
                "trustee.unbound",
                "The contract does not accept keys that are bound to no contract and job; name a Cloister broker.",
                party=party,
            )
        self._party, self._entry, self._evidence = party, entry, evidence
        self._contract = contract
        self._client = BrokerClient(link, contract, party, pin=entry.tls_pin)
        self._jwe = JweKey()
        self.token = ""

    def __enter__(self) -> PublishedSession:
        try:
            self._handshake()
        except BaseException:
            self._client.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def _handshake(self) -> None:
        request = {
            "extra-params": {"supported-hash-algorithms": list(_HASHES)},
            "tee": self._evidence.tee,
            "version": VERSION,
        }
        challenge = Fields(self._client.post("/kbs/v0/auth", request), "challenge")
        nonce = challenge.text("nonce", limit=4096)
        algorithm = _selected(challenge.raw("extra-params", optional=True))
        key = self._jwe.public_jwk
        additional, primary = self._evidence.make(nonce, key, algorithm)
        attestation = {
            "runtime-data": {"nonce": nonce, "tee-pubkey": key},
            "tee-evidence": {"additional_evidence": additional, "primary_evidence": primary},
        }
        answer = Fields(self._client.post("/kbs/v0/attest", attestation), "attestation answer")
        self.token = answer.text("token", limit=_MAX_TOKEN)

    def asset_key(self, digest: bytes) -> UnboundKey:
        """The key (32 bytes) of an asset, as its owner stored it for this very contract. Raises as ``key`` does, and
        Untrusted("trustee.other") for what was stored for another contract or asset."""
        stored = self.key(TRUSTEE_KEY_KIND, digest.hex())
        secret = read_trustee_key(stored.secret, contract=self._contract.digest, asset=digest)
        return UnboundKey(self._party, stored.resource, secret)

    def key(self, kind: str, tag: str) -> UnboundKey:
        """The resource ``repository/kind/tag``. Raises Malformed or Untrusted for an answer that does not open."""
        parts = (self._entry.repository, kind, tag)
        if not all(_PART.fullmatch(part) and part.strip(".") for part in parts):
            raise Malformed("trustee.resource", "A resource is named by letters, digits, dots, dashes and underscores.")
        path = "/".join(parts)
        secret = self._jwe.decrypt(self._client.get(f"/kbs/v0/resource/{path}"))
        if not 0 < len(secret) <= _MAX_SECRET:
            raise Malformed("trustee.secret", f"The key broker's resource does not have 1 to {_MAX_SECRET} bytes.")
        return UnboundKey(self._party, path, secret)


def _selected(extra: Any) -> str:
    """The hash that the server chose. Its extra-params are an object, or empty text where it chose nothing."""
    if extra in (None, ""):
        return _DEFAULT_HASH
    chosen = Fields(extra, "challenge's extra-params").raw("selected-hash-algorithm", optional=True)
    if chosen is None:
        return _DEFAULT_HASH
    if not isinstance(chosen, str) or chosen.lower() not in _HASHES:
        raise Malformed("trustee.hash", "The key broker selected a hash algorithm that is not known here.")
    return chosen.lower()
