"""Two parties with real brokers in this process, sealed toy assets, a signed contract, and a workload that attests.

The attester is the development one: it signs with a software key, and everything after it is the real thing.
"""

from __future__ import annotations

import base64
import io
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloister.attestation import Attester
from cloister.audit import Receipt
from cloister.broker import RunningBroker
from cloister.contracts import (
    CONTRACT_TYPE,
    Contract,
    Job,
    Terms,
    contract_document,
    read_contract,
    read_job,
)
from cloister.crypto import (
    Envelope,
    HpkePrivateKey,
    JweKey,
    SigningKey,
    frame,
    parse_canonical,
    random_bytes,
    sign_document,
)
from cloister.sealed import Sealed, SealIdentity, seal_object
from tests.broker_party import (
    AGENT,
    LEASE,
    MEASUREMENT,
    NOW,
    OUTPUT,
    TERMS,
    FakeClock,
    Party,
    insecure_attester,
    insecure_judges,
    recipe,
    recipe_document,
)

__all__ = [
    "AGENT",
    "HPKE",
    "LEASE",
    "MEASUREMENT",
    "NOW",
    "OUTPUT",
    "TERMS",
    "Party",
    "Workload",
    "World",
    "insecure_attester",
    "introduce",
    "nothing_granted",
    "recipe",
    "recipe_document",
    "serving",
]


@dataclass
class World:
    """Hospital (data) and lab (base model), who pinned each other, and one node."""

    folder: Path
    clock: FakeClock = field(default_factory=FakeClock)
    parties: dict[str, Party] = field(default_factory=dict)
    data: Sealed = field(init=False)
    base: Sealed = field(init=False)
    contract: Contract = field(init=False)
    job: Job = field(init=False)

    def __post_init__(self) -> None:
        self.attester: Attester = insecure_attester()

    def open(self) -> World:
        judges = insecure_judges()
        for name in ("hospital", "lab"):
            self.parties[name] = Party(name, self.folder / name, self.clock, judges)
        return self

    def build(self) -> World:
        self.open()
        for name, other in (("hospital", "lab"), ("lab", "hospital")):
            card = self.parties[other].broker.card
            self.parties[name].broker.core.parties.pin(card.envelope.to_bytes().decode(), card.fingerprint)
        self.data = self.hospital.seal(self.folder / "data", "hospital/queries", "dataset")
        self.base = self.lab.seal(self.folder / "base", "lab/minilm", "model")
        self.contract = self.sign(self.contract_fields())
        self.job = self.make_job()
        return self

    def copy_to(self, folder: Path) -> World:
        """The same world, opened anew from copies of the homes: quicker than building one a test."""
        shutil.copytree(self.folder, folder)
        copy = World(folder)
        copy.data, copy.base, copy.contract, copy.job = self.data, self.base, self.contract, self.job
        return copy.open()

    @property
    def hospital(self) -> Party:
        return self.parties["hospital"]

    @property
    def lab(self) -> Party:
        return self.parties["lab"]

    def close(self) -> None:
        for party in self.parties.values():
            party.broker.close()

    def contract_fields(self, **changes: Any) -> dict[str, Any]:
        def asset(sealed: Sealed, use: str) -> dict[str, Any]:
            m = sealed.manifest
            return {
                "digest": sealed.digest.hex(),
                "name": m.name,
                "owner": m.owner,
                "terms": TERMS.document(),
                "use": use,
            }

        fields: dict[str, Any] = {
            "name": "intents",
            "serial": 1,
            "assets": [asset(self.data, "data"), asset(self.base, "base")],
            "purpose": "tests",
            "recipes": {"tasks": ["classification"], "methods": ["lora"], "max_epochs": 5},
            "runs": 2,
            "platform": {
                "measurements": [MEASUREMENT.hex()],
                "agents": [AGENT.hex()],
                "attesters": [self.attester.attester_id],
                "pcrs": {},
                "assurance": "none",
                "regions": ["local"],
                "witness_quorum": 0,
            },
            "telemetry": ["loss"],
            "gates": [{"metric": "accuracy", "better_than_base_by": "0.01"}],
            "outputs": [{"name": OUTPUT, "form": "adapter", "recipients": ["hospital"]}],
            "unbounded_memorization": ["hospital"],
            "lease_seconds": LEASE,
            "not_before": NOW - 100,
            "expires": NOW + 10_000,
        }
        return {**fields, **changes}

    def unsigned(self, fields: dict[str, Any]) -> Envelope:
        cards = {name: party.broker.card for name, party in self.parties.items()}
        return sign_document(CONTRACT_TYPE, contract_document(fields, cards))

    def sign(self, fields: dict[str, Any]) -> Contract:
        """Signed by both brokers and stored at both."""
        envelope = self.unsigned(fields)
        for party in self.parties.values():
            envelope = party.broker.agreements.sign(envelope)
        for party in self.parties.values():
            party.broker.agreements.store(envelope)
        return read_contract(envelope)

    def make_job(self, contract: Contract | None = None, **changes: Any) -> Job:
        contract = contract or self.contract
        envelope = self.hospital.broker.agreements.sign_job(contract.envelope, recipe_document(**changes), OUTPUT)
        return read_job(envelope, contract)

    def workload(self, **changes: Any) -> Workload:
        return Workload(self, **changes)

    def strict_workload(self, serial: int) -> Workload:
        """Under a contract that asks for evidence of level tpm."""
        platform = {**self.contract_fields()["platform"], "assurance": "tpm", "witness_quorum": 1}
        contract = self.sign(self.contract_fields(serial=serial, platform=platform))
        return self.workload(contract=contract, job=self.make_job(contract))


HPKE = HpkePrivateKey.generate()  # making one is slow, and tests that need another make it


@dataclass
class Workload:
    """What the trusted code would do, step by step, so that a test can do one step differently."""

    world: World
    contract: Contract = None  # type: ignore[assignment]
    job: Job = None  # type: ignore[assignment]
    instance: bytes = field(default_factory=lambda: random_bytes(16))
    hpke: HpkePrivateKey = field(default_factory=lambda: HPKE)
    signing: SigningKey = field(default_factory=SigningKey.generate)
    jwe: JweKey = field(default_factory=JweKey)
    measurement: bytes = MEASUREMENT
    launched: bool = False

    def __post_init__(self) -> None:
        self.contract = self.contract or self.world.contract
        self.job = self.job or self.world.job

    def launch(self) -> Workload:
        """The node records this sandbox, once."""
        if not self.launched:
            self.world.attester.extend_launch(self.instance, self.measurement, self.contract.digest, self.job.digest)
            self.launched = True
        return self

    def statements(self) -> list[str]:
        found = []
        for party in self.world.parties.values():
            status = party.broker.agreements.status(self.contract.digest)
            if status.statement is not None:
                found.append(status.statement.to_bytes().decode())
        return found

    def request(self, purpose: str = "release", sequence: int = 0, **changes: Any) -> dict[str, Any]:
        cloister = {
            "contract": self.contract.envelope.to_bytes().decode(),
            "hpke": base64.b64encode(self.hpke.public).decode(),
            "instance": self.instance.hex(),
            "job": self.job.envelope.to_bytes().decode(),
            "purpose": purpose,
            "sequence": sequence,
            "signing": self.signing.public.hex(),
            "statements": self.statements(),
            **changes,
        }
        return {"extra-params": {"cloister": cloister}, "tee": self.world.attester.tee, "version": "0.4.0"}

    def attestation(self, nonce: str, **changes: Any) -> dict[str, Any]:
        evidence = self.launch().world.attester.evidence(self.instance, nonce, self.jwe.public_jwk)
        return {
            "runtime-data": {"nonce": nonce, "tee-pubkey": self.jwe.public_jwk},
            "tee-evidence": {
                "additional_evidence": evidence["additional_evidence"],
                "primary_evidence": evidence["primary_evidence"],
            },
            **changes,
        }

    def attested(self, party: Party, purpose: str = "release", sequence: int = 0) -> str:
        """The cookie of an attested session."""
        cookie, challenge = party.broker.releases.challenge(self.request(purpose, sequence))
        party.broker.releases.attest(cookie, self.attestation(challenge["nonce"]))
        return cookie

    def fetch(self, party: Party, cookie: str, digest: bytes) -> bytes:
        return party.broker.releases.resource(cookie, party.name, "asset-key", digest.hex())

    def open(self, jwe: bytes, resource: bytes) -> tuple[bytes, dict[str, Any]]:
        """(the key, the answer) as the workload checks them."""
        body = parse_canonical(self.jwe.decrypt(jwe))
        receipt = Receipt.from_wire(body["receipt"])
        info = frame(
            "cloister/key/v1",
            self.contract.digest,
            self.job.digest,
            resource,
            receipt.leaf_hash,
            body["lease"]["expires"],
        )
        return self.hpke.open(base64.b64decode(body["sealed"]), info), body

    def run(self, purpose: str = "release") -> Workload:
        """Attest to both owners and fetch all keys: a run that has begun."""
        for party, digest in ((self.world.hospital, self.job.data), (self.world.lab, self.job.base)):
            self.fetch(party, self.attested(party, purpose), digest)
        return self

    def record(self, step: int, root: bytes = b"\x01" * 32, **changes: Any) -> Envelope:
        body = {
            "contract": self.contract.digest.hex(),
            "instance": self.instance.hex(),
            "job": self.job.digest.hex(),
            "root": root.hex(),
            "step": step,
            "type": "checkpoint/v1",
            **changes,
        }
        return sign_document("application/vnd.cloister.checkpoint+json", body, self.signing)

    def output(self, folder: Path, *, dek: bytes | None = None, identity: Any = None, **terms: Any) -> Sealed:
        """A sealed output, by default exactly what the contract lets out."""
        described = {
            "form": "adapter",
            "gates": [{"base": "0.9", "margin": "0.01", "metric": "accuracy", "passed": True, "tuned": "0.95"}],
            "instance": self.instance.hex(),
            "recipients": ["hospital"],
            "terms": Terms.intersect([TERMS, TERMS]).document(),
            **terms,
        }
        fields: dict[str, Any] = {
            "owner": "hospital",
            "asset_id": self.job.digest[:16],
            "name": OUTPUT,
            "version": 1,
            "asset_class": "artifact",
            "created": self.job.created,
            "contract": self.contract.digest,
            "job": self.job.digest,
            "parents": tuple(sorted((self.job.data, self.job.base))),
            **(identity or {}),
        }
        return seal_object(
            [("adapter.safetensors", io.BytesIO(b"weights"))],
            folder,
            dek=dek or random_bytes(32),
            identity=SealIdentity(**fields),
            sign=lambda kind, payload: Envelope(kind, payload).signed_by(self.signing),
            terms=described,
        )


@contextmanager
def nothing_granted(*parties: Party) -> Iterator[None]:
    """Whatever happens inside leaves the logged state as it was; the log may gain refusals and attestations only."""
    before = [(party.tables(), party.revision(), len(party.log())) for party in parties]
    yield
    for party, (tables, revision, size) in zip(parties, before, strict=True):
        assert party.tables() == tables
        assert party.revision() == revision
        new = party.log()[size:]
        assert all(facts.outcome == "failure" or facts.kind == "attest.ok" for facts in new)


@contextmanager
def serving(party: Party) -> Iterator[RunningBroker]:
    """The party's broker behind its real sockets, in a thread. It is closed at the end."""
    running = RunningBroker(party.broker)
    ready = threading.Event()
    thread = threading.Thread(target=running.run, args=(ready.set,))
    thread.start()
    try:
        assert ready.wait(120)
        yield running
    finally:
        running.stop()
        thread.join(120)
        assert not thread.is_alive()


def introduce(party: Party, other: Party, running: RunningBroker) -> None:
    """Tell ``party`` where ``other`` answers."""
    party.broker.core.peers.set_address(other.name, f"127.0.0.1:{running.port}")
