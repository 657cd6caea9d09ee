"""A confidential VM of Azure's made of Python: paravisor, vTPM, and the processor under it. Right unless told
otherwise."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from cloister.attestation import Evidence
from cloister.attestation.collateral import Staleness
from cloister.attestation.tpm import parser
from cloister.attestation.tpm.azure import AzureSnpVerifier, AzureTdxVerifier
from tests import snp_forge, tdx_forge
from tests.adversarial.evidence_forge import Log

ALL = (parser.PcrSelection(parser.ALG_SHA256, b"\xff\xff\xff"),)
TYPES = {"snp": 2, "tdx": 4}


@functools.cache
def rsa_key(which: str) -> rsa.RSAPrivateKey:
    del which
    return rsa.generate_private_key(65537, 2048)


def b64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode()


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def jwk(key: rsa.RSAPrivateKey, **changed: Any) -> dict[str, Any]:
    n = key.public_key().public_numbers().n.to_bytes(256, "big")
    body = {"kid": "HCLAkPub", "key_ops": ["sign"], "kty": "RSA", "e": "AQAB", "n": b64url(n).rstrip("=")}
    return body | changed


class AzureForge:
    """``kind``: snp or tdx. ``evidence`` changes what it is told to, and signs the rest so that it fits."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.cpu: Any = snp_forge.Forge() if kind == "snp" else tdx_forge.Forge()
        self.now = snp_forge.NOW if kind == "snp" else tdx_forge.NOW
        self.ak = rsa_key("ak")

    def verifier(self) -> Any:
        made = AzureSnpVerifier if self.kind == "snp" else AzureTdxVerifier
        return made(self.cpu.collateral(), Staleness(), roots=self.cpu.roots)

    def runtime(self, **changed: Any) -> bytes:
        body = {
            "keys": [jwk(self.ak), jwk(rsa_key("ek"), kid="HCLEkPub", key_ops=["encrypt"])],
            "vm-configuration": {"console-enabled": True, "secure-boot": True, "vmUniqueId": "A"},
            "user-data": "00" * 64,
        }
        return json.dumps(body | changed, separators=(",", ":")).encode()

    def hardware(self, runtime: bytes, **changed: Any) -> bytes:
        """SNP: the report. TDX: the quote."""
        said = {"report_data": sha256(runtime) + bytes(32)} | changed
        return self.cpu.report(**said) if self.kind == "snp" else self.cpu.quote(self.cpu.td(**said))

    def hcl(self, runtime: bytes, hardware: bytes, **changed: Any) -> bytes:
        parts = {
            "magic": b"HCLA",
            "type": TYPES[self.kind],
            "hash": 1,
            "size": len(runtime),
            "rest": bytes(200),
        } | changed
        inside = hardware if self.kind == "snp" else b"td report".ljust(1184, b"\0")
        head = parts["magic"] + b"\1\0\0\0" + bytes(24) + inside
        numbers = (len(runtime) + 20, 1, parts["type"], parts["hash"], parts["size"])
        return head + b"".join(n.to_bytes(4, "little") for n in numbers) + runtime + parts["rest"]

    def quote(self, nonce: bytes, pcrs: list[bytes], **changed: Any) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "qualified_signer": b"\0\x0b" + bytes(32), "extra_data": nonce, "clock": 1, "reset_count": 1,
            "restart_count": 0, "safe": True, "firmware": 1, "selections": ALL, "pcr_digest": sha256(b"".join(pcrs)),
        }  # fmt: skip
        message = parser.Attest(**(fields | changed)).encode()
        signature = self.ak.sign(message, padding.PKCS1v15(), hashes.SHA256())
        return {"message": message.hex(), "signature": signature.hex(), "pcrs": [p.hex() for p in pcrs]}

    def body(
        self,
        nonce: bytes,
        *,
        runtime: bytes | None = None,
        hardware: dict[str, Any] | None = None,
        hcl: dict[str, Any] | None = None,
        quote: dict[str, Any] | None = None,
        pcr15: bytes = b"\x0f" * 32,
        **changed: Any,
    ) -> dict[str, Any]:
        """Trustee's JSON. Each option changes one layer; ``changed`` the outermost."""
        text = self.runtime() if runtime is None else runtime
        vouched = self.hardware(text, **(hardware or {}))
        pcrs = [bytes([i]) * 32 for i in range(24)]
        pcrs[15] = pcr15
        last = self.cpu.leaf().der if self.kind == "snp" else vouched
        body = {
            "version": 1,
            "hcl_report": b64url(self.hcl(text, vouched, **(hcl or {}))),
            "tpm_quote": self.quote(nonce, pcrs, **(quote or {})),
            "vcek" if self.kind == "snp" else "td_quote": b64url(last),
        }
        return body | changed

    def evidence(self, log: Log, report: bytes, **options: Any) -> Evidence:
        body = self.body(report, **({"pcr15": log.pcr()} | options))
        return Evidence(f"az-{self.kind}-vtpm", body, log.text())


def spki(key: rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
