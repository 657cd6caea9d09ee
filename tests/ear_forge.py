"""Another verifier made of Python: its keys, and tokens in the shapes of Trustee and Veraison, signed by a second
implementation of JWS."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from cloister.attestation import Evidence, report_data
from cloister.attestation.events import Journal
from cloister.attestation.external import ExternalVerifier, PinnedVerifier
from cloister.crypto import JweKey

NOW = 1_790_000_000
INSTANCE, CONTRACT, JOB, WORKLOAD = b"i" * 16, b"c" * 32, b"j" * 32, b"w" * 32
MR_TD, CHIP = "ab" * 48, "0f" * 16
NONCE = base64.b64encode(b"n" * 64).decode()
TEE_PUBKEY = JweKey().public_jwk


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def number(value: int, size: int) -> str:
    return b64(value.to_bytes(size, "big"))


class Signer:
    """A verifier's signing key, of each kind that can be pinned."""

    def __init__(self, algorithm: str) -> None:
        self.algorithm = algorithm
        self._key: Any
        if algorithm == "EdDSA":
            self._key = ed25519.Ed25519PrivateKey.generate()
            self.jwk = {"kty": "OKP", "crv": "Ed25519", "x": b64(self._key.public_key().public_bytes_raw())}
            return
        curve, self._size, self._hash = {
            "ES256": (ec.SECP256R1(), 32, hashes.SHA256()),
            "ES384": (ec.SECP384R1(), 48, hashes.SHA384()),
        }[algorithm]
        self._key = ec.generate_private_key(curve)
        n = self._key.public_key().public_numbers()
        name = {"ES256": "P-256", "ES384": "P-384"}[algorithm]
        self.jwk = {"kty": "EC", "crv": name, "x": number(n.x, self._size), "y": number(n.y, self._size)}

    def token(self, body: Any, **header: Any) -> str:
        head = b64(json.dumps({"alg": self.algorithm, "typ": "JWT", **header}).encode())
        message = f"{head}.{b64(body if isinstance(body, bytes) else json.dumps(body).encode())}"
        return f"{message}.{b64(self.sign(message.encode()))}"

    def sign(self, message: bytes) -> bytes:
        if self.algorithm == "EdDSA":
            return bytes(self._key.sign(message))
        r, s = decode_dss_signature(self._key.sign(message, ec.ECDSA(self._hash)))
        return r.to_bytes(self._size, "big") + s.to_bytes(self._size, "big")


SIGNERS = {name: Signer(name) for name in ("ES256", "ES384", "EdDSA")}
GOOD = {"hardware": 2, "executables": 3, "configuration": 2, "instance-identity": 0}


def additional(**more: Any) -> str:
    journal = Journal(b"a" * 32)
    event = journal.prepare(INSTANCE, WORKLOAD, CONTRACT, JOB, **more)
    journal.commit(event)
    return journal.additional(INSTANCE)


ADDITIONAL = additional()
REPORT = report_data(NONCE, TEE_PUBKEY, ADDITIONAL)


def runtime() -> dict[str, Any]:
    return {"additional-evidence": ADDITIONAL, "nonce": NONCE, "tee-pubkey": TEE_PUBKEY}


def trustee() -> dict[str, Any]:
    """As Trustee's attestation service writes it: ``ear_`` names, runtime data under the verifier's claims."""
    cpu = {
        "ear_status": "affirming",
        "ear_trustworthiness_vector": dict(GOOD),
        "ear_appraisal_policy_ids": ["default"],
        "ear_attester_claims": {
            "tee": "tdx",
            "report_data": REPORT.hex() + "00" * 32,
            "claims": {"quote": {"body": {"mr_td": MR_TD}}, "td_attributes": {"debug": False}, "platform": CHIP},
        },
        "ear_verifier_claims": {"runtime_data": runtime()},
    }
    return {
        "eat_profile": "tag:github.com,2024:confidential-containers/Trustee",
        "iat": NOW - 5,
        "exp": NOW + 295,
        "ear_verifier_id": {"developer": "somebody", "build": "1"},
        "submods": {"cpu0": cpu},
    }


def veraison() -> dict[str, Any]:
    """As Veraison writes it: dotted names, the nonce at the top."""
    evidence = {"tdx": {"mr_td": MR_TD, "platform": CHIP}}
    cpu = {
        "ear.status": "affirming",
        "ear.trustworthiness-vector": dict(GOOD),
        "ear.appraisal-policy-id": "policy:TDX",
        "ear.veraison.annotated-evidence": evidence,
    }
    return {
        "eat_profile": "tag:github.com,2023:veraison/ear",
        "eat_nonce": b64(REPORT),
        "ear.verifier-id": {"developer": "somebody", "build": "1"},
        "iat": NOW,
        "exp": NOW + 60,
        "submods": {"cpu0": cpu},
    }


def pin(form: Callable[[], dict[str, Any]] = trustee, algorithm: str = "ES256", **changes: Any) -> PinnedVerifier:
    claims = "/ear_attester_claims/claims" if form is trustee else "/ear.veraison.annotated-evidence/tdx"
    wire = {
        "algorithm": algorithm,
        "binding": "runtime_data" if form is trustee else "eat_nonce",
        "bound_at": "/ear_verifier_claims/runtime_data" if form is trustee else None,
        "identity": f"{claims}/platform",
        "key": SIGNERS[algorithm].jwk,
        "level": "cpu-tee",
        "measurements": {"mrtd": f"{claims}/quote/body/mr_td" if form is trustee else f"{claims}/mr_td"},
        "most_seconds": 300,
        "name": "attestation-service",
        "profile": form()["eat_profile"],
        "required": {f"{claims}/td_attributes/debug": False} if form is trustee else {},
        "submodule": "cpu0",
        "tee": "tdx",
        "warnings": False,
        **changes,
    }
    return PinnedVerifier.from_wire(wire)


def evidence(token: str, **changes: Any) -> Evidence:
    return Evidence("ear", changes.get("primary", {"token": token}), changes.get("additional", ADDITIONAL))


def judge(
    body: Any, pinned: PinnedVerifier | None = None, algorithm: str = "ES256", *, now: int = NOW, report: bytes = REPORT
) -> Any:
    token = SIGNERS[algorithm].token(body)
    return ExternalVerifier([pinned or pin()]).verify(evidence(token), report, now=now)


def nested(body: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    *front, last = path.split("/")
    place = body
    for part in front:
        place = place[part]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return body
