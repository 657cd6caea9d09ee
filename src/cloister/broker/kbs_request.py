"""Reading KBS's messages: Request and Attestation in every version that is spoken, and resource paths. Pure.

The versions differ in the Attestation, and this is all that differs on the wire for keys that we accept:

- 0.1.1 and 0.2: ``{"tee-pubkey", "tee-evidence"}``; the nonce is the session's
- 0.3: ``{"init-data"?, "runtime-data": {"nonce", "tee-pubkey"}, "tee-evidence"}``
- 0.4: the same, and ``tee-evidence`` is ``{"primary_evidence", "additional_evidence"}``, the latter in the report, too
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..attestation import Evidence, device_data, report_data
from ..attestation.models import MAX_ADDITIONAL
from ..contracts import Contract, read_contract, read_job
from ..crypto import Envelope, frame, sha256
from ..crypto.hpke import check_hpke_public
from ..crypto.jwe import check_jwk
from ..errors import Denied, Malformed
from ..fields import Fields
from .config import Limits
from .decision import Request, Resource
from .init_data import InitData

__all__ = ["Attestation", "Knock", "Version", "read_attestation", "read_knock", "resource_named", "sent_nonce"]

Version = tuple[int, int, int]

_SHARE_TAGS = ("checkpoint",)
_FIRST: Version = (0, 1, 1)
_LAST_LINE = (0, 4)
_RUNTIME_DATA = (0, 3)  # from here on the nonce travels with the key
_COMPOSITE = (0, 4)  # from here on evidence has two parts
_HASHES = ("sha256", "sha384", "sha512")
_MAX_STATEMENT = 4096  # they have about 500


@dataclass(frozen=True)
class Knock:
    """A KBS Request: what is asked for, and in which version of the protocol the answer will come. ``request`` is None
    for a stock guest, which says nothing of contract and job; ``hashes`` are what it offers."""

    request: Request | None
    version: Version
    tee: str
    hashes: tuple[str, ...]


@dataclass(frozen=True)
class Attestation:
    """A KBS Attestation. ``nonce`` is None where the version has none in the message; ``additional`` is text."""

    version: Version
    nonce: str | None
    tee_pubkey: dict[str, Any]
    primary: Any
    additional: str
    init_data: InitData | None

    def evidence(self, tee: str) -> Evidence:
        return Evidence(tee, self.primary, self.additional)

    def report(self, nonce: str) -> bytes:
        """What the platform must have signed (32 bytes). Before 0.4 there is no additional evidence in it."""
        if self.version[:2] < _COMPOSITE:
            return device_data(nonce, self.tee_pubkey)
        return report_data(nonce, self.tee_pubkey, self.additional)


def read_knock(body: Any, limits: Limits) -> Knock:
    """A KBS Request, with Cloister's extra parameters or without. Raises Malformed, or Denied for another protocol
    version and for hash algorithms without SHA-256."""
    f = Fields(body, "request")
    version = _version(f.text("version", limit=32))
    tee = f.text("tee", limit=32)
    ours, hashes = _extra(f.raw("extra-params", optional=True), tee)
    f.done()
    return Knock(None if ours is None else _request(ours, tee, limits), version, tee, hashes)


def _request(ours: Any, tee: str, limits: Limits) -> Request:
    c = Fields(ours, "request's cloister parameters")
    contract = _contract(c.text("contract", limit=limits.body))
    statements = c.items("statements", _envelope, limit=limits.statements)
    request = Request(
        purpose=c.text("purpose", choices=("release", "renew", "resume")),
        tee=tee,
        contract=contract,
        job=read_job(Envelope.from_bytes(c.text("job", limit=limits.body).encode()), contract),
        instance=c.hex("instance", 16),
        hpke=_hpke(c.base64("hpke")),
        signing=c.hex("signing", 32),
        sequence=c.integer("sequence"),
        statements=statements,
    )
    c.done()
    return request


def _hpke(public: bytes) -> bytes:
    """A key that is no use must not be found out when the log has its entry already. Raises Malformed."""
    check_hpke_public(public)
    return public


@lru_cache(maxsize=32)
def _contract(text: str) -> Contract:
    """Every run under a contract sends the same text. What is read of it is frozen, and no more trusted for it."""
    return read_contract(Envelope.from_bytes(text.encode()))


def _version(text: str) -> Version:
    parts = text.split(".")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) < 4 for part in parts):
        raise Malformed("kbs.version", "The protocol version is not three numbers.")
    version = (int(parts[0]), int(parts[1]), int(parts[2]))
    if version < _FIRST or version[:2] > _LAST_LINE:
        raise Denied("kbs.version", "This broker speaks the KBS protocol from 0.1.1 to 0.4.x.")
    return version


def _extra(value: Any, tee: str) -> tuple[Any, tuple[str, ...]]:
    """Our own parameters out of ``extra-params``, and the hash algorithms. A stock guest may send empty text."""
    f = Fields({} if value in ("", None) else value, "request's extra-params")
    hashes = f.items("supported-hash-algorithms", _hash, limit=len(_HASHES), optional=True)
    if hashes and "sha256" not in hashes:
        raise Denied("kbs.hash", "This broker binds evidence with SHA-256, which the guest does not offer.")
    metadata = f.raw("tee-metadata", optional=True)
    if metadata is not None:
        primary = Fields(metadata, "request's tee-metadata").child("primary_tee")
        if primary.text("tee", limit=32) != tee:
            raise Malformed("kbs.tee", "The request names two different primary platforms.")
    if f.raw("attestation-policy-selector", optional=True) is not None:
        raise Denied("kbs.policy-selector", "This broker has no selectable policies: the contract says what is enough.")
    ours = f.raw("cloister", optional=True)
    f.done()
    return ours, hashes


def _hash(value: Any) -> str:
    if not isinstance(value, str) or value.lower() not in _HASHES:  # KBS compares them without case
        raise Malformed("kbs.hash", "A hash algorithm of the request is unknown.")
    return value.lower()


def _envelope(value: Any) -> Envelope:
    if not isinstance(value, str):
        raise Malformed("request.statement", "A status statement is not the text of an envelope.")
    if len(value) > _MAX_STATEMENT:
        raise Malformed("request.statement", f"A status statement has at most {_MAX_STATEMENT} bytes.")
    return Envelope.from_bytes(value.encode())


def sent_nonce(body: Any) -> str | None:
    """The nonce that an Attestation names; None in the form of the first versions. Raises Malformed."""
    f = Fields(body, "attestation")
    if f.raw("tee-pubkey", optional=True) is not None and f.raw("runtime-data", optional=True) is None:
        return None
    return f.child("runtime-data").text("nonce", limit=256)


def read_attestation(body: Any, version: Version) -> Attestation:
    """A KBS Attestation in the form of ``version``. Raises Malformed; also for a key that nothing could be encrypted
    to, which is better refused before anything is decided."""
    f = Fields(body, "attestation")
    init_data = None
    if version[:2] < _RUNTIME_DATA:
        nonce, tee_pubkey = None, f.raw("tee-pubkey")
    else:
        sent = f.raw("init-data", optional=True)
        init_data = None if sent is None else InitData.read(sent)
        runtime = f.child("runtime-data")
        nonce, tee_pubkey = runtime.text("nonce", limit=256), runtime.raw("tee-pubkey")
        runtime.done()
    primary, additional = f.raw("tee-evidence"), ""
    if version[:2] >= _COMPOSITE:
        evidence = f.child("tee-evidence")
        primary = evidence.raw("primary_evidence")
        additional = evidence.text("additional_evidence", limit=MAX_ADDITIONAL)
        evidence.done()
    f.done()
    check_jwk(tee_pubkey)
    return Attestation(version, nonce, dict(tee_pubkey), primary, additional, init_data)


def resource_named(kind: str, tag: str) -> Resource:
    """What a resource path names; Denied("resource.unknown") for what this broker never has."""
    if kind == "asset-key":
        try:
            return Resource(kind, tag, Fields({"tag": tag}, "resource").hex("tag", 32))
        except Malformed:
            raise Denied("resource.unknown", "There is no such resource.") from None
    if kind == "state-share" and tag in _SHARE_TAGS:
        return Resource(kind, tag, sha256(frame("cloister/state-share/v1", tag)))
    raise Denied("resource.unknown", "There is no such resource.")
