"""The KBS protocol, seen from the workload: prove, receive, check the receipt before using the key.

One ``AttestedSession`` is one request-challenge-attestation exchange with one broker, for one purpose.
"""

from __future__ import annotations

import base64
import ssl
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..attestation.binding import Binding, check_nonce
from ..audit import Receipt, verify_quorum
from ..contracts import Contract, Job, log_origin
from ..crypto import Envelope, JweKey, frame, parse_canonical, parse_json, sha256
from ..crypto.merkle import leaf_hash
from ..crypto.tls import client_context
from ..errors import CloisterError, Untrusted
from ..fields import Fields
from .broker_client import BrokerClient
from .identity import WorkloadIdentity
from .node_link import NodeLink
from .trustee import BINDING_CTX

__all__ = ["AttestedSession", "Lease", "ReleasedKey", "RunContext", "boottime", "gather_statements", "share_resource"]

KBS_VERSION = "0.4.0"
LEASE_TYPE = "application/vnd.cloister.lease+json"


def boottime() -> float:
    """Seconds since boot, counting suspension: a machine that slept has not stopped its leases' clocks."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def share_resource(tag: str) -> bytes:
    """The digest that names a state share among resources."""
    return sha256(frame("cloister/state-share/v1", tag))


@dataclass(frozen=True)
class RunContext:
    """Everything that one run's handshakes have in common."""

    contract: Contract
    job: Job
    instance: bytes
    tee: str
    identity: WorkloadIdentity
    link: NodeLink

    @cached_property
    def tls(self) -> ssl.SSLContext:
        """Connections that prove this workload's signing key: sessions work on no other ones."""
        return client_context(self.identity.signing.export_secret_seed())


@dataclass(frozen=True)
class Lease:
    """``deadline`` is on this machine's boot-time clock, counted from before the request was sent. ``term``: how many
    seconds the broker gave, fewer than the contract's where that ends; None: the contract's."""

    sequence: int
    deadline: float
    term: int | None = None


@dataclass(frozen=True, repr=False)
class ReleasedKey:
    """A key with the proof that its release was logged first, and where the broker says the run stood.

    ``binding``: what the broker's nonce committed to, for the run's result; see ``trustee`` for keys without any.
    """

    secret: bytes
    resource: bytes
    receipt: Receipt
    lease: Lease
    checkpoint: tuple[int, bytes] | None
    binding: str = BINDING_CTX


def gather_statements(run: RunContext) -> list[str]:
    """Every party's fresh in-force statement, but for those whose stock key broker can't give one. A party that is down
    or has revoked ends the attempt here."""
    statements = []
    for party in run.contract.speaking():
        client = BrokerClient(run.link, run.contract, party, tls=run.tls)
        try:
            body = parse_json(client.get(f"/cloister/v1/status/{run.contract.digest.hex()}"))
            f = Fields(body, "status answer")
            statements.append(f.text("statement", limit=64 * 1024))
        finally:
            client.close()
    return statements


class AttestedSession:
    """Context manager: the handshake happens on entry, the connection closes on exit."""

    def __init__(self, run: RunContext, party: str, *, purpose: str, sequence: int, statements: list[str]) -> None:
        self.run, self.party = run, party
        self._purpose, self._sequence, self._statements = purpose, sequence, statements
        self._client = BrokerClient(run.link, run.contract, party, tls=run.tls)
        self._jwe = JweKey()  # one per challenge, as KBS asks
        self._started = 0.0
        self.token = ""

    def __enter__(self) -> AttestedSession:
        self._started = boottime()
        try:
            self._attest(self._challenge())
        except CloisterError:
            self._client.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def _challenge(self) -> str:
        run = self.run
        cloister = {
            "contract": run.contract.envelope.to_bytes().decode(),
            "hpke": base64.b64encode(run.identity.hpke.public).decode(),
            "instance": run.instance.hex(),
            "job": run.job.envelope.to_bytes().decode(),
            "purpose": self._purpose,
            "sequence": self._sequence,
            "signing": run.identity.signing.public.hex(),
            "statements": self._statements,
        }
        answer = self._client.post(
            "/kbs/v0/auth", {"extra-params": {"cloister": cloister}, "tee": run.tee, "version": KBS_VERSION}
        )
        f = Fields(answer, "challenge")
        nonce = f.text("nonce", limit=256)
        f.child("extra-params").text("selected-hash-algorithm", choices=("sha256",))
        binding = Binding(
            purpose=self._purpose,
            broker_pin=self._client.pin,
            contract=run.contract.digest,
            job=run.job.digest,
            instance=run.instance,
            hpke_public=run.identity.hpke.public,
            signing_public=run.identity.signing.public,
            lease_sequence=self._sequence,
        )
        check_nonce(nonce, binding.ctx())  # a broker that commits to anything else gets no evidence
        return nonce

    def _attest(self, nonce: str) -> None:
        evidence = self.run.link.evidence(nonce, self._jwe.public_jwk)
        answer = self._client.post(
            "/kbs/v0/attest",
            {
                "runtime-data": {"nonce": nonce, "tee-pubkey": self._jwe.public_jwk},
                "tee-evidence": {
                    "additional_evidence": evidence["additional_evidence"],
                    "primary_evidence": evidence["primary_evidence"],
                },
            },
        )
        self.token = Fields(answer, "attestation answer").text("token", limit=64 * 1024)

    def key(self, kind: str, tag: str, resource: bytes) -> ReleasedKey:
        """Fetch one key. Its log receipt is verified before the key is opened, let alone used."""
        run = self.run
        body = self._jwe.decrypt(self._client.get(f"/kbs/v0/resource/{self.party}/{kind}/{tag}"))
        f = Fields(parse_canonical(body), "key answer")
        receipt = Receipt.from_wire(f.raw("receipt"))
        receipt.verify(log_origin(self.party), run.contract.parties[self.party].receipt)
        if least := run.contract.platform.witness_quorum:
            verify_quorum(receipt.checkpoint, run.contract.witnesses(self.party), least, not_before=0)
        lease = f.child("lease")
        expires, seconds = lease.integer("expires"), lease.integer("seconds", low=1, high=run.contract.lease_seconds)
        info = frame("cloister/key/v1", run.contract.digest, run.job.digest, resource, leaf_hash(receipt.leaf), expires)
        secret = run.identity.hpke.open(f.base64("sealed"), info)
        if len(secret) != 32:
            raise Untrusted("key.size", "A released key does not have 32 bytes.")
        return ReleasedKey(
            secret=secret,
            resource=resource,
            receipt=receipt,
            lease=Lease(lease.integer("sequence"), self._started + seconds, seconds),
            checkpoint=_checkpoint(f.raw("checkpoint")),
        )

    def renew(self) -> Lease:
        """A renewed lease, signed by the broker's receipt key. The deadline counts from before the handshake."""
        run = self.run
        f = Fields(self._client.post("/cloister/v1/lease", {}), "lease answer")
        envelope = Envelope.from_bytes(f.text("lease", limit=64 * 1024).encode())
        envelope.verify(LEASE_TYPE, [run.contract.parties[self.party].receipt])
        lease = Fields(envelope.document(), "lease")
        same = (
            lease.hex("contract", 32) == run.contract.digest
            and lease.hex("job", 32) == run.job.digest
            and lease.hex("instance", 16) == run.instance
            and lease.integer("sequence") == self._sequence
        )
        if not same:
            raise Untrusted("lease.other", "A broker renewed another lease than the one asked for.")
        # A broker's lease ends with the contract, which may be sooner. One that is older than this field does not say.
        seconds = run.contract.lease_seconds
        if lease.raw("seconds", optional=True) is not None:
            seconds = min(seconds, lease.integer("seconds", low=1))
        return Lease(self._sequence, self._started + seconds, seconds)

    def send(self, path: str, body: dict[str, Any]) -> Fields:
        """A further request in this session (checkpoint records, permits)."""
        return Fields(self._client.post(path, body), "broker's answer")


def _checkpoint(value: Any) -> tuple[int, bytes] | None:
    if value is None:
        return None
    f = Fields(value, "checkpoint record")
    step, root = f.integer("step", low=1), f.hex("root", 32)
    f.done()
    return step, root
