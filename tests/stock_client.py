"""A guest of the Confidential Containers kind over a real connection, written from the published protocol alone.

It has no client certificate, hashes its own runtime data, and opens the responses by itself. ``Chip`` is what it runs
on: forged hardware of AMD's or Intel's kind, whose evidence is in the form that stock attesters write.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from cryptography.hazmat.primitives import keywrap
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash

from cloister.attestation.collateral import Staleness
from cloister.attestation.guests import Guest, GuestJudge
from cloister.attestation.models import guest_digest
from cloister.attestation.snp import SnpGuestJudge
from cloister.attestation.snp import attester_id as snp_attester
from cloister.attestation.tdx import TdxGuestJudge
from cloister.attestation.tdx import attester_id as tdx_attester
from cloister.broker import RunningBroker
from tests import snp_forge, stock_evidence, tdx_forge

snp_maker, tdx_maker = cache(snp_forge.Forge), cache(tdx_forge.Forge)


@dataclass(frozen=True)
class Chip:
    """``evidence``: primary evidence for (report data of 64 bytes, init-data's text), with fields changed by name.
    ``open``: the changes that make the guest one that its host can debug."""

    tee: str
    hash: str
    agent: str
    attester: str
    evidence: Callable[..., dict[str, Any]]
    open: dict[str, Any]


@dataclass(frozen=True)
class Then:
    """A judge whose clock is that of its forge: their certificates are of another year than the brokers' tests."""

    inner: GuestJudge
    now: int

    @property
    def tee(self) -> str:
        return self.inner.tee

    def judge(self, primary: object, report: bytes, *, now: int) -> Guest:
        del now
        return self.inner.judge(primary, report, now=self.now)


def judges() -> dict[str, GuestJudge]:
    amd, intel = snp_maker(), tdx_maker()
    made: list[GuestJudge] = [
        Then(SnpGuestJudge(amd.collateral(), Staleness(), roots=amd.roots), snp_forge.NOW),
        Then(TdxGuestJudge(intel.collateral(), Staleness(), roots=intel.roots), tdx_forge.NOW),
    ]
    return {judge.tee: judge for judge in made}


def amd() -> Chip:
    forge = snp_maker()

    def evidence(report: bytes, init: str, **changed: Any) -> dict[str, Any]:
        fields = {"report_data": report, "host_data": hashlib.sha256(init.encode()).digest()} | changed
        return stock_evidence.snp(forge.report(**fields), None)

    agent = guest_digest("snp", {"launch": (b"m" * 48).hex()})
    return Chip("snp", "sha256", agent, snp_attester("vcek", forge.hwid.hex()), evidence, {"policy": 0xB0000})


def intel() -> Chip:
    forge = tdx_maker()

    def evidence(report: bytes, init: str, **changed: Any) -> dict[str, Any]:
        fields = {"report_data": report, "mr_config_id": hashlib.sha384(init.encode()).digest()} | changed
        return stock_evidence.tdx(forge.quote(forge.td(**fields)))

    measured = {"mrtd": b"m", "rtmr0": b"0", "rtmr1": b"1", "rtmr2": b"2"}
    agent = guest_digest("tdx", {name: (octet * 48).hex() for name, octet in measured.items()})
    one = TdxGuestJudge(forge.collateral(), Staleness(), roots=forge.roots)
    told = one.judge(evidence(bytes(64), ""), bytes(32), now=tdx_forge.NOW).device
    return Chip("tdx", "sha384", agent, tdx_attester(told.identity), evidence, {"attributes": b"\1" + bytes(7)})


@dataclass
class StockClient:
    """One start of a guest. ``job``: the text that its init-data holds."""

    chip: Chip
    job: str
    version: str = "0.4.0"
    entries: dict[str, str] = field(default_factory=dict)
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    cookie: str | None = None

    def init_data(self) -> str:
        data = {"cloister.job": self.job, **self.entries}
        return json.dumps({"algorithm": self.chip.hash, "version": "0.1.0", "data": data})

    def jwk(self) -> dict[str, str]:
        numbers = self.key.public_key().public_numbers()
        x, y = (b64(n.to_bytes(32, "big")) for n in (numbers.x, numbers.y))
        return {"alg": "ECDH-ES+A256KW", "crv": "P-256", "kty": "EC", "x": x, "y": y}

    def request(self) -> dict[str, Any]:
        hashes = {"supported-hash-algorithms": ["sha256", "sha384", "sha512"]}
        return {"extra-params": hashes, "tee": self.chip.tee, "version": self.version}

    def attestation(self, nonce: str, *, shown: str | None = None, **changed: Any) -> dict[str, Any]:
        runtime: dict[str, Any] = {"nonce": nonce, "tee-pubkey": self.jwk()}
        covered = runtime if self.version < "0.4" else {**runtime, "additional-evidence": ""}
        digest = hashlib.sha256(json.dumps(covered, sort_keys=True, separators=(",", ":")).encode()).digest()
        primary = self.chip.evidence(digest + bytes(32), self.init_data(), **changed)
        both = {"primary_evidence": primary, "additional_evidence": ""}
        return {
            "init-data": {"format": "json", "body": self.init_data() if shown is None else shown},
            "runtime-data": runtime,
            "tee-evidence": primary if self.version < "0.4" else both,
        }

    def open(self, jwe: dict[str, str]) -> bytes:
        """The plaintext of a response: ECDH-ES+A256KW, A256GCM, the encoded header as associated data."""
        header = json.loads(unb64(jwe["protected"]))
        epk = ec.EllipticCurvePublicNumbers(
            *(int.from_bytes(unb64(header["epk"][c]), "big") for c in "xy"), ec.SECP256R1()
        )
        algorithm = header["alg"].encode()
        info = len(algorithm).to_bytes(4, "big") + algorithm + bytes(8) + (256).to_bytes(4, "big")
        shared = self.key.exchange(ec.ECDH(), epk.public_key())
        wrapping = ConcatKDFHash(SHA256(), 32, info).derive(shared)
        cek = keywrap.aes_key_unwrap(wrapping, unb64(jwe["encrypted_key"]))
        sealed = unb64(jwe["ciphertext"]) + unb64(jwe["tag"])
        return AESGCM(cek).decrypt(unb64(jwe["iv"]), sealed, jwe["protected"].encode())

    # Over the wire

    def ask(self, running: RunningBroker, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """One request on a connection of its own, without a client certificate."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        headers = {} if self.cookie is None else {"Cookie": self.cookie}
        sock = socket.create_connection(("127.0.0.1", running.port), timeout=60)
        connection = http.client.HTTPConnection("kbs", timeout=60)
        connection.sock = context.wrap_socket(sock)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            answer = json.loads(response.read())
            if sent := response.headers.get("Set-Cookie"):
                self.cookie = sent.partition(";")[0]
            return response.status, answer
        finally:
            connection.close()

    def challenge(self, running: RunningBroker) -> str:
        status, answer = self.ask(running, "POST", "/kbs/v0/auth", self.request())
        assert status == 200, answer
        return str(answer["nonce"])

    def attest(self, running: RunningBroker, **changed: Any) -> tuple[int, Any]:
        nonce = self.challenge(running)
        return self.ask(running, "POST", "/kbs/v0/attest", self.attestation(nonce, **changed))

    def resource(self, running: RunningBroker, kind: str, tag: str) -> tuple[int, Any]:
        return self.ask(running, "GET", f"/kbs/v0/resource/default/{kind}/{tag}")


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
