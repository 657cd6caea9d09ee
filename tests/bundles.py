"""A small release bundle, made from the real signed parts without any process running."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from cloister.attestation import Claims, ReferenceValues, result_token
from cloister.audit import AuditLog, encode_event, event
from cloister.client.verify import RELEASE_FILE
from cloister.contracts import (
    CONTRACT_TYPE,
    Card,
    Contract,
    Job,
    PartyKeys,
    Terms,
    contract_document,
    job_envelope,
    log_origin,
    make_card,
    parse_recipe,
    permit_envelope,
    read_contract,
    read_job,
)
from cloister.crypto import Envelope, HpkePrivateKey, SigningKey, sign_document
from cloister.sealed import SealIdentity, seal_object
from cloister.workload.release.provenance import provenance_statement

NOW = 1_790_000_000
INSTANCE = bytes(range(16))
DATA, BASE = bytes([1] * 32), bytes([2] * 32)
MEASUREMENT, AGENT, ATTESTER = "aa" * 32, "bb" * 32, "cc" * 32
TERMS = Terms(("CC-BY-4.0",), "confidential", ("metrics", "adapter"))
FILES = {"adapter/adapter_model.safetensors": b"weights", "README.md": b"# card\n", "evaluation.json": b"{}"}
_HPKE = HpkePrivateKey.generate()  # one for all: making it is slow and nothing here opens anything


def key(name: str) -> SigningKey:
    return SigningKey(name.encode().ljust(32, b".")[:32])


@dataclass
class Party:
    """A party's secret keys and card."""

    name: str
    card: Card = field(init=False)

    def __post_init__(self) -> None:
        keys = PartyKeys(*(self.secret(role).public for role in ("signing", "status", "receipt", "tls")), _HPKE.public)
        self.card = make_card(self.name, keys, (self.secret("signing"),), serial=1, issued=NOW)

    def secret(self, role: str) -> SigningKey:
        return key(f"{self.name}-{role}")


HOSPITAL, LAB, MALLORY = Party("hospital"), Party("lab"), Party("mallory")
PINS = {"hospital": HOSPITAL.card, "lab": LAB.card}


def contract_fields(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "name": "intents",
        "serial": 1,
        "assets": [
            {
                "digest": DATA.hex(),
                "name": "hospital/queries",
                "owner": "hospital",
                "terms": TERMS.document(),
                "use": "data",
            },
            {"digest": BASE.hex(), "name": "lab/minilm", "owner": "lab", "terms": TERMS.document(), "use": "base"},
        ],
        "purpose": "tests",
        "recipes": {"tasks": ["classification"], "methods": ["lora"], "max_epochs": 5},
        "runs": 2,
        "platform": {
            "measurements": [MEASUREMENT],
            "agents": [AGENT],
            "attesters": [ATTESTER],
            "pcrs": {},
            "assurance": "none",
            "regions": ["local"],
            "witness_quorum": 0,
        },
        "telemetry": ["loss"],
        "gates": [{"metric": "accuracy", "better_than_base_by": "0.01"}],
        "outputs": [{"name": "hospital/queries-adapter", "form": "adapter", "recipients": ["hospital"]}],
        "unbounded_memorization": ["hospital"],
        "lease_seconds": 30,
        "not_before": NOW - 100,
        "expires": NOW + 10_000,
    }
    return {**fields, **changes}


def make_contract(*signers: Party, cards: dict[str, Card] | None = None, **changes: Any) -> Contract:
    document = contract_document(contract_fields(**changes), PINS if cards is None else cards)
    secrets = [party.secret("signing") for party in signers or (HOSPITAL, LAB)]
    return read_contract(sign_document(CONTRACT_TYPE, document, *secrets))


def make_job(contract: Contract, submitter: Party = HOSPITAL) -> Job:
    recipe = parse_recipe(
        {
            "task": "classification",
            "method": "lora",
            "data": "hospital/queries",
            "base": "lab/minilm",
            "columns": {"text": "text", "label": "category"},
        }
    )
    envelope = job_envelope(
        contract,
        submitter.name,
        recipe,
        "hospital/queries-adapter",
        submitter.secret("signing"),
        now=NOW,
        salt=b"s" * 16,
    )
    return read_job(envelope, contract)


@dataclass
class Bundle:
    """Everything that a test may want to falsify before ``write``."""

    logs: Path
    contract: Contract = field(default_factory=make_contract)
    workload: SigningKey = field(default_factory=lambda: key("workload"))
    job: Job = field(init=False)
    gates: list[dict[str, Any]] = field(
        default_factory=lambda: [
            {"base": "0.9", "margin": str(Decimal("0.01")), "metric": "accuracy", "passed": True, "tuned": "0.95"}
        ]
    )
    details: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=lambda: dict(FILES))

    def __post_init__(self) -> None:
        self.job = make_job(self.contract)

    def log(self, party: Party) -> AuditLog:
        folder = self.logs / party.name
        origin, signer = log_origin(party.name), party.secret("receipt")
        if folder.exists():
            return AuditLog.open(folder, origin=origin, signer=signer)
        return AuditLog.create(folder, origin=origin, signer=signer)

    def receipt(self, party: Party, kind: str, **details: str) -> dict[str, Any]:
        facts = {
            "contract": self.contract.digest.hex(),
            "instance": INSTANCE.hex(),
            "job": self.job.digest.hex(),
            "level": "none",
            "measurement": MEASUREMENT,
            "signing": self.workload.public.hex(),
            **details,
            **self.details,
        }
        log = self.log(party)
        try:
            body = event(kind, actor=party.name, target="run", details=facts, now=NOW)
            return log.append(encode_event(body)).to_wire()
        finally:
            log.close()

    def token(self, party: Party, **changes: Any) -> str:
        claims = Claims(
            tee="tpm",
            level="none",
            attester=ATTESTER,
            measurement=MEASUREMENT,
            agent=AGENT,
            instance=INSTANCE.hex(),
            contract=self.contract.digest.hex(),
            job=self.job.digest.hex(),
        )
        reference = ReferenceValues(frozenset([MEASUREMENT]), frozenset([AGENT]), frozenset([ATTESTER]), {}, "none")
        merged = Claims(**{**vars(claims), **changes})
        secret = party.secret("receipt")
        return result_token(merged, reference, signer=secret, now=NOW, ttl=60, tee_pubkey={})

    def manifest(self, folder: Path, **changes: Any) -> Envelope:
        parents = tuple(sorted((DATA, BASE)))
        terms = {
            "form": "adapter",
            "gates": self.gates,
            "instance": INSTANCE.hex(),
            "recipients": ["hospital"],
            "terms": Terms.intersect([TERMS, TERMS]).document(),
            **changes,
        }
        identity = SealIdentity(
            owner="hospital",
            asset_id=self.job.digest[:16],
            name="hospital/queries-adapter",
            version=1,
            asset_class="artifact",
            created=NOW,
            contract=self.contract.digest,
            job=self.job.digest,
            parents=parents,
        )
        return seal_object(
            [(name, io.BytesIO(data)) for name, data in self.files.items()],
            folder,
            dek=b"d" * 32,
            identity=identity,
            sign=lambda kind, payload: Envelope(kind, payload).signed_by(self.workload),
            terms=terms,
        ).envelope

    def permit(self, party: Party, output: bytes) -> dict[str, Any]:
        envelope = permit_envelope(
            party.name, self.contract.digest, self.job.digest, output, INSTANCE, party.secret("receipt"), now=NOW
        )
        text = envelope.to_bytes().decode()
        return {"permit": text, "receipt": self.receipt(party, "permit.issued", output=output.hex())}

    def record(self, manifest: Envelope) -> dict[str, Any]:
        own = {"hospital": DATA, "lab": BASE}
        parties = (HOSPITAL, LAB)
        return {
            "contract": self.contract.envelope.to_bytes().decode(),
            "job": self.job.envelope.to_bytes().decode(),
            "keys": {p.name: [self.receipt(p, "key.released", resource=own[p.name].hex())] for p in parties},
            "manifest": manifest.to_bytes().decode(),
            "permits": {p.name: self.permit(p, manifest.digest) for p in parties},
            "tokens": {p.name: self.token(p) for p in parties},
            "version": 1,
            "wraps": {},
        }

    def write(self, folder: Path) -> Path:
        """The folder that ``cloister pull`` would leave."""
        manifest = self.manifest(self.logs / "sealed")
        for name, data in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        statement = provenance_statement(self.files, self.contract, self.job, INSTANCE, MEASUREMENT, self.workload)
        (folder / "provenance.dsse.json").write_bytes(statement.to_bytes())
        (folder / RELEASE_FILE).write_text(json.dumps(self.record(manifest)))
        return folder
