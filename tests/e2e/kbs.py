"""Talking to a party's broker directly, as anybody on the machine can: the KBS protocol, step by step."""

from __future__ import annotations

import base64
import http.client
import json
import socket
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from cloister.client import Home
from cloister.contracts import Contract
from cloister.crypto import Envelope, HpkePrivateKey, JweKey, SigningKey, random_bytes
from cloister.crypto.tls import client_context, connect_pinned

__all__ = ["Asker", "Kbs"]

_HPKE = HpkePrivateKey.generate()  # making one is slow
_SIGNING = SigningKey.generate()
_TLS = client_context(_SIGNING.export_secret_seed())  # every connection proves it, as a workload's prove its own


class Kbs:
    """One HTTPS connection to ``party``'s broker. Answers are (status, parsed body)."""

    def __init__(self, home: Home, party: str) -> None:
        agent = home.agent(party)
        sock = socket.create_connection(("127.0.0.1", home.parties()[party]["port"]), timeout=60)
        self._http = http.client.HTTPConnection("broker", timeout=60)
        self._http.sock = connect_pinned(sock, agent.card.keys.tls_pin, _TLS)
        self.cookie: str | None = None

    def get(self, path: str) -> tuple[int, Any]:
        return self._ask("GET", path, None)

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        return self._ask("POST", path, body)

    def _ask(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        headers = {"Cookie": self.cookie} if self.cookie else {}
        data = None if body is None else json.dumps(body)
        self._http.request(method, path, data, {**headers, "Content-Type": "application/json"})
        response = self._http.getresponse()
        text = response.read()
        if cookie := response.headers.get("Set-Cookie"):
            self.cookie = cookie.partition(";")[0]
        return response.status, json.loads(text)

    def __enter__(self) -> Kbs:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._http.close()


@dataclass
class Asker:
    """Somebody who has all documents of a run, which the operator has, and keys of his own."""

    home: Home
    contract: Contract
    job: Envelope
    instance: bytes = field(default_factory=lambda: random_bytes(16))
    hpke: HpkePrivateKey = field(default_factory=lambda: _HPKE)
    signing: SigningKey = field(default_factory=lambda: _SIGNING)
    jwe: JweKey = field(default_factory=JweKey)

    def statements(self) -> list[str]:
        """Every party's true word that the contract is in force: the brokers say it to anybody who knows the digest."""
        found = []
        for party in sorted(self.contract.parties):
            with Kbs(self.home, party) as kbs:
                found.append(kbs.get(f"/cloister/v1/status/{self.contract.digest.hex()}")[1]["statement"])
        return found

    def request(self, **changes: Any) -> dict[str, Any]:
        cloister = {
            "contract": self.contract.envelope.to_bytes().decode(),
            "hpke": base64.b64encode(self.hpke.public).decode(),
            "instance": self.instance.hex(),
            "job": self.job.to_bytes().decode(),
            "purpose": "release",
            "sequence": 0,
            "signing": self.signing.public.hex(),
            "statements": self.statements(),
            **changes,
        }
        return {"extra-params": {"cloister": cloister}, "tee": "tpm", "version": "0.4.0"}

    def attestation(self, nonce: str, evidence: dict[str, Any]) -> dict[str, Any]:
        names = ("additional_evidence", "primary_evidence")
        return {
            "runtime-data": {"nonce": nonce, "tee-pubkey": self.jwe.public_jwk},
            "tee-evidence": {name: evidence[name] for name in names},
        }

    def made_up(self) -> dict[str, Any]:
        """Evidence of the right form that no TPM has signed."""
        zeros = base64.b64encode(bytes(64)).decode()
        pcrs = {str(n): "00" * 32 for n in (*range(8), 15)}
        names = ("quote", "signature", "ak_public", "ek_public")
        events = {"agent": {}, "events": [], "launch": {}}
        return {
            "additional_evidence": json.dumps({"cloister": events}, separators=(",", ":"), sort_keys=True),
            "primary_evidence": {**dict.fromkeys(names, zeros), "pcrs": pcrs},
        }
