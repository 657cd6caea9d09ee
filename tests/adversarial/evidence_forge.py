"""A TPM made of Python: what an attacker with a software TPM of their own design can send.

``Forge`` makes evidence that is right in every respect unless told otherwise, so each attack changes one thing.
"""

import base64
import hashlib
import os
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from cloister.attestation import Evidence, make_nonce, report_data
from cloister.attestation.events import event_digest, replay
from cloister.attestation.tpm import parser
from cloister.crypto import JweKey, canonical_json

AK_ATTRIBUTES = 0x00050072  # restricted, sign, sensitiveDataOrigin, userWithAuth, fixedParent, fixedTPM
EK_ATTRIBUTES = 0x000300B2
SELECTION = (parser.PcrSelection(parser.ALG_SHA256, b"\xff\x80\x00"),)
QUOTED = (0, 1, 2, 3, 4, 5, 6, 7, 15)
INSTANCE, MEASUREMENT, CONTRACT, JOB, AGENT = b"i" * 16, b"m" * 32, b"c" * 32, b"j" * 32, b"a" * 32


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def launch_event(**changed: str) -> dict[str, str]:
    event = {
        "kind": "launch",
        "salt": os.urandom(16).hex(),
        "instance": INSTANCE.hex(),
        "measurement": MEASUREMENT.hex(),
        "contract": CONTRACT.hex(),
        "job": JOB.hex(),
    }
    return event | changed


class Log:
    """An event log that any part of can be changed before it is sent."""

    def __init__(self, *launches: dict[str, str]) -> None:
        self.agent = {"kind": "agent", "salt": os.urandom(16).hex(), "measurement": AGENT.hex()}
        self.launches = list(launches) or [launch_event(instance="00" * 16), launch_event()]
        self.events = [{"digest": event_digest(self.agent).hex(), "kind": "agent"}]
        self.events += [{"digest": event_digest(e).hex(), "kind": "launch"} for e in self.launches]
        self.opened = self.launches[-1]

    def pcr(self) -> bytes:
        return replay(bytes.fromhex(e["digest"]) for e in self.events)

    def text(self) -> str:
        body = {"cloister": {"agent": self.agent, "events": self.events, "launch": self.opened}}
        return canonical_json(body).decode()


class Forge:
    """``evidence`` signs whatever it is told to; the defaults make good evidence."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.ek = self.public(ec.generate_private_key(ec.SECP256R1()), EK_ATTRIBUTES, parser.ALG_NULL, 128)
        self.ak = self.public(self.key, AK_ATTRIBUTES, parser.ALG_ECDSA, 0)
        self.nonce = make_nonce(sha256(b"ctx"), os.urandom(32))
        self.tee_pubkey: dict[str, Any] = dict(JweKey().public_jwk)

    @staticmethod
    def public(key: ec.EllipticCurvePrivateKey, attributes: int, scheme: int, symmetric: int) -> parser.PublicArea:
        point = key.public_key().public_numbers()
        unique = (point.x.to_bytes(32, "big"), point.y.to_bytes(32, "big"))
        return parser.PublicArea(parser.ALG_ECC, attributes, b"", symmetric, scheme, 0, unique)

    def report(self, additional: str) -> bytes:
        return report_data(self.nonce, self.tee_pubkey, additional)

    def signer(self) -> bytes:
        endorsement = b"\x00\x0b" + sha256((0x4000000B).to_bytes(4, "big") + self.ek.name())
        return b"\x00\x0b" + sha256(endorsement + self.ak.name())

    def sign(self, message: bytes) -> bytes:
        r, s = decode_dss_signature(self.key.sign(message, ec.ECDSA(hashes.SHA256())))
        return parser.Signature(parser.ALG_ECDSA, (r.to_bytes(32, "big"), s.to_bytes(32, "big"))).encode()

    def evidence(
        self,
        log: Log,
        *,
        quoted_log: Log | None = None,
        pcrs: dict[str, str] | None = None,
        quote: dict[str, Any] | None = None,
        primary: dict[str, Any] | None = None,
    ) -> Evidence:
        """Evidence about ``log``. ``quoted_log``: what really stands in PCR 15; ``quote`` and ``primary``: changes."""
        values = {str(i): bytes([i]).hex() * 32 for i in QUOTED} | {"15": (quoted_log or log).pcr().hex()}
        values |= pcrs or {}
        text = log.text()
        fields: dict[str, Any] = {
            "qualified_signer": self.signer(),
            "extra_data": self.report(text),
            "clock": 1,
            "reset_count": 1,
            "restart_count": 0,
            "safe": True,
            "firmware": 1,
            "selections": SELECTION,
            "pcr_digest": sha256(b"".join(bytes.fromhex(values[str(i)]) for i in QUOTED)),
        }
        message = parser.Attest(**(fields | (quote or {}))).encode()
        body = {
            "quote": b64(message),
            "signature": b64(self.sign(message)),
            "ak_public": b64(self.ak.encode()),
            "ek_public": b64(self.ek.encode()),
            "pcrs": values,
        }
        return Evidence("tpm", body | (primary or {}), text)
