"""Enrolment: how an owner learns, once, that an attestation key lives in a TPM that a manufacturer made.

Two messages each way, as pure functions; who carries them, and where records are kept, is others' business::

    node    request = EnrolmentRequest(...)                        its certificate, both public areas
    owner   pending, challenge = begin(request, random32, now=…)   certificate chain, then a protected secret
    node    proof = answer(request, secret that its TPM activated)
    owner   record = finish(pending, proof)                        the record that TpmVerifier reads

The secret itself doesn't travel back: the proof is an HMAC under it, over the request.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ...crypto import canonical_json, constant_time_equal, frame, sha256
from ...crypto.kdf import hmac_sha256
from ...crypto.x509 import Certificate, Crl, read_certificate
from ...errors import Malformed, Misuse, Untrusted
from ...fields import Fields
from ..models import Level
from . import parser
from .credential import Credential, protect
from .ek import EndorsementKey, parse_endorsement
from .ek_certificate import EkCertificate, maker_name, read_ek_certificate, shipped, verify_ek
from .parser import PublicArea, parse_public

__all__ = ["Challenge", "Enrolment", "EnrolmentRequest", "Pending", "answer", "begin", "check_ak", "finish"]

LIFETIME: Final = 300
"""Seconds that a challenge may be answered: a TPM needs one."""
_LABEL: Final = "cloister/tpm-enrolment/v1"
_TYPE: Final = "tpm-enrolment/v1"
_SECRET: Final = 32
_MAX_CERTIFICATE: Final = 16 * 1024
_MAX_CHAIN: Final = 8
_AK_MUST: Final = (
    parser.FIXED_TPM | parser.FIXED_PARENT | parser.SENSITIVE_DATA_ORIGIN | parser.RESTRICTED | parser.SIGN
)


def check_ak(ak: PublicArea) -> None:
    """Return if this is a key that signs only what its TPM made, and was made there; Untrusted if not."""
    if ak.attributes & _AK_MUST != _AK_MUST or ak.attributes & parser.DECRYPT:
        raise Untrusted(
            "tpm.ak-attributes", "The attestation key is not a restricted signing key that was made in its TPM."
        )
    if ak.scheme == parser.ALG_NULL or ak.symmetric_bits:
        raise Untrusted("tpm.ak-scheme", "The attestation key does not have one fixed signature scheme.")


@dataclass(frozen=True)
class EnrolmentRequest:
    """What a node sends first. ``ek_chain``: certificates above the endorsement certificate's, if the node has them."""

    ak_public: bytes
    ek_public: bytes
    ek_certificate: bytes
    ek_chain: tuple[bytes, ...] = ()

    @classmethod
    def from_wire(cls, body: object) -> EnrolmentRequest:
        """From a JSON object; Malformed for any other form or size."""
        fields = Fields(body, "enrolment request")
        fields.integer("version", low=1, high=1)
        found = cls(
            fields.base64("ak_public", limit=4096),
            fields.base64("ek_public", limit=4096),
            fields.base64("ek_certificate", limit=2 * _MAX_CERTIFICATE),
            fields.items("ek_chain", _certificate_text, limit=_MAX_CHAIN),
        )
        fields.done()
        return found

    def to_wire(self) -> dict[str, Any]:
        """The inverse of ``from_wire``."""
        return {
            "ak_public": _text(self.ak_public),
            "ek_certificate": _text(self.ek_certificate),
            "ek_chain": [_text(c) for c in self.ek_chain],
            "ek_public": _text(self.ek_public),
            "version": 1,
        }

    def digest(self) -> bytes:
        """32 bytes that name this request."""
        return sha256(frame(_LABEL, canonical_json(self.to_wire())))


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _certificate_text(value: Any) -> bytes:
    return Fields({"certificate": value}, "enrolment request").base64("certificate", limit=2 * _MAX_CERTIFICATE)


@dataclass(frozen=True)
class Challenge:
    """What the owner answers: for TPM2_ActivateCredential."""

    credential: Credential

    @classmethod
    def from_wire(cls, body: object) -> Challenge:
        """From a JSON object; Malformed for any other form or size."""
        fields = Fields(body, "enrolment challenge")
        fields.integer("version", low=1, high=1)
        found = cls(Credential(fields.base64("identity", limit=1024), fields.base64("secret", limit=2048)))
        fields.done()
        return found

    def to_wire(self) -> dict[str, Any]:
        """The inverse of ``from_wire``."""
        return {"identity": _text(self.credential.identity), "secret": _text(self.credential.secret), "version": 1}


@dataclass(frozen=True)
class Enrolment:
    """What the owner keeps and signs. ``ak_name``: the key's Name, 68 hex digits. ``ek``: SHA-256 of the endorsement
    key's SubjectPublicKeyInfo, which names the TPM for good. ``certificate``: SHA-256 of the certificate. ``root``:
    SHA-256 of the root's SubjectPublicKeyInfo. ``enrolled``: POSIX seconds."""

    ak_name: str
    ek: str
    certificate: str
    manufacturer: str
    model: str
    version: str
    root: str
    enrolled: int

    @property
    def level(self) -> Level:
        """Computed, never stored: ``tpm`` under a shipped root for that root's own maker, else ``none``."""
        return "tpm" if shipped(self.root, self.manufacturer) else "none"

    @property
    def hardware(self) -> str:
        """For people."""
        return f"TPM 2.0 by {maker_name(self.manufacturer)}, model {self.model}, version {self.version}"

    @classmethod
    def from_wire(cls, body: object) -> Enrolment:
        """From a JSON object. A level in it is for people: Malformed ``enrolment.level`` where it isn't what
        follows."""
        fields = Fields(body, "enrolment")
        fields.text("type", choices=(_TYPE,))
        found = cls(
            fields.hex("ak_name", 34).hex(),
            fields.hex("ek", 32).hex(),
            fields.hex("certificate", 32).hex(),
            fields.hex("manufacturer", 4).hex(),
            fields.text("model", limit=128),
            fields.text("version", limit=128),
            fields.hex("root", 32).hex(),
            fields.integer("enrolled"),
        )
        if fields.text("level", limit=16) != found.level:
            raise Malformed("enrolment.level", "An enrolment says another level than its root and maker give.")
        fields.done()
        return found

    def to_wire(self) -> dict[str, Any]:
        """As a JSON object: its canonical bytes are what an owner signs."""
        return {
            "ak_name": self.ak_name,
            "certificate": self.certificate,
            "ek": self.ek,
            "enrolled": self.enrolled,
            "level": self.level,
            "manufacturer": self.manufacturer,
            "model": self.model,
            "root": self.root,
            "type": _TYPE,
            "version": self.version,
        }


@dataclass(frozen=True)
class Pending:
    """The owner's own state between the two answers; one use. ``expires``: POSIX seconds."""

    record: Enrolment
    expires: int
    proof: bytes = field(repr=False)


def begin(
    request: EnrolmentRequest,
    random32: bytes,
    *,
    now: int,
    pool: Sequence[Certificate] = (),
    roots: Collection[str] = (),
    crls: Sequence[Crl] = (),
) -> tuple[Pending, Challenge]:
    """Check everything that certificates can show, and protect a fresh secret for the rest.

    ``random32``: 32 fresh bytes, the secret; the caller brings it, so that this stays pure but for the encryption's own
    randomness. ``pool``: certificates that the owner has beside those of the request. ``roots``, ``crls``: see
    ``verify_ek``. Raises Malformed and Untrusted as the parsers and ``verify_ek`` do, Misuse for another secret size.
    """
    if len(random32) != _SECRET:
        raise Misuse("enrolment.secret", "An enrolment's secret has exactly 32 bytes.")
    ak, key, ek = _read(request)
    # 1. The key is one whose signatures mean something; its name covers that.
    check_ak(ak)
    # 2. The certificate is an endorsement key's, for this key, under a root.
    above = [*(read_certificate(c) for c in request.ek_chain), *pool]
    root = verify_ek(ek, key, above, now=now, roots=roots, crls=crls)
    # 3. Whether both keys are in one TPM is what the secret will show.
    record = Enrolment(
        ak_name=ak.name().hex(),
        ek=ek.certificate.key_fingerprint,
        certificate=ek.certificate.fingerprint,
        manufacturer=ek.manufacturer,
        model=ek.model,
        version=ek.version,
        root=root,
        enrolled=now,
    )
    challenge = Challenge(protect(key, ak.name(), random32))
    return Pending(record, now + LIFETIME, answer(request, random32)), challenge


def _read(request: EnrolmentRequest) -> tuple[PublicArea, EndorsementKey, EkCertificate]:
    ak = parse_public(request.ak_public)
    return ak, parse_endorsement(request.ek_public), read_ek_certificate(request.ek_certificate)


def answer(request: EnrolmentRequest, secret: bytes) -> bytes:
    """The node's proof (32 bytes) that its TPM gave the secret, for this request and no other."""
    return hmac_sha256(secret, request.digest())


def finish(pending: Pending, proof: bytes, *, now: int) -> Enrolment:
    """The record, if the proof is right and in time. A caller drops ``pending`` whatever comes of it: one try.

    Raises Untrusted ``enrolment.proof`` for a wrong proof, ``enrolment.late`` after its time.
    """
    if now > pending.expires:
        raise Untrusted("enrolment.late", "The enrolment's challenge was answered too late; begin again.")
    if not constant_time_equal(proof, pending.proof):
        raise Untrusted("enrolment.proof", "The keys shown are not in one TPM, or the answer is for another request.")
    return pending.record
