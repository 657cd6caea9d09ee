"""DSSE v1 envelopes: one payload, many Ed25519 signatures.

Source: the Dead Simple Signing Envelope specification, v1.0. The ``keyid`` is only a hint (the public
key's hex); who counts as a signer is decided by the verifier's own list of keys, never by the envelope.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from ..errors import Malformed, Untrusted
from .canonical import MAX_DOCUMENT, canonical_json, parse_canonical, parse_json
from .framing import sha256
from .memory import once_held
from .signatures import Signer, verify_ed25519

__all__ = ["Envelope", "pae", "sign_document"]

_MAX_SIGNATURES = 64
_MAX_KEYID = 128  # ours are an Ed25519 key in hex


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: the bytes that are really signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


@dataclass(frozen=True)
class Envelope:
    """A payload of a type, and signatures over both. ``digest`` names the document without its signatures."""

    payload_type: str
    payload: bytes
    signatures: tuple[tuple[str, bytes], ...] = field(default=())

    @cached_property  # of bytes that never change
    def digest(self) -> bytes:
        """SHA-256 of the payload, 32 bytes."""
        return sha256(self.payload)

    def document(self) -> Any:
        """The payload, parsed; raises Malformed unless it is canonical JSON."""
        return parse_canonical(self.payload)

    def signed_by(self, key: Signer) -> Envelope:
        """The same document with one more signature (or the same, if this key signed already). Whatever else stands
        under its key id is left out: a reader who looks there first must find what this key signed."""
        keyid, signature = key.public.hex(), key.sign(pae(self.payload_type, self.payload))
        if [s for k, s in self.signatures if k == keyid] == [signature]:
            return self
        others = tuple(one for one in self.signatures if one[0] != keyid)
        return Envelope(self.payload_type, self.payload, (*others, (keyid, signature)))

    def with_signature(self, keyid: str, signature: bytes) -> Envelope:
        return Envelope(self.payload_type, self.payload, (*self.signatures, (keyid, signature)))

    def verify(self, payload_type: str, keys: Iterable[bytes]) -> list[bytes]:
        """Which of ``keys`` signed, in the order given. Raises Untrusted if none did or the type differs."""
        if self.payload_type != payload_type:
            raise Untrusted("dsse.type", f"The envelope is not of type {payload_type}.")
        message = pae(self.payload_type, self.payload)
        found = [key for key in keys if self._has_valid(key, message)]
        if not found:
            raise Untrusted("dsse.unsigned", "The document carries no valid signature by an expected key.")
        return found

    def verify_sole(self, payload_type: str, keys: Iterable[bytes]) -> bytes:
        """The one of ``keys`` that signed, for documents that one party signs. Raises Malformed for any other number of
        signatures than one, and for a long key id, which nobody signed: whoever sends such a document must not choose
        how many are verified, nor what is kept with it. Else as ``verify``."""
        if len(self.signatures) != 1 or len(self.signatures[0][0]) > _MAX_KEYID:
            raise Malformed("dsse.signatures", "A document that one party signs carries exactly one signature.")
        return self.verify(payload_type, keys)[0]

    def _has_valid(self, key: bytes, message: bytes) -> bool:
        digest = sha256(message)
        for _, signature in self.signatures:
            try:
                once_held(("ed25519", key, digest, signature), partial(verify_ed25519, key, message, signature))
            except Untrusted:
                continue  # another signer's signature; only a valid one counts
            return True
        return False

    def to_bytes(self) -> bytes:
        return self._encoded

    @cached_property  # a contract goes out with every session, and into every comparison
    def _encoded(self) -> bytes:
        body = {
            "payload": base64.b64encode(self.payload).decode(),
            "payloadType": self.payload_type,
            "signatures": [{"keyid": k, "sig": base64.b64encode(s).decode()} for k, s in self.signatures],
        }
        return canonical_json(body)

    @classmethod
    def from_bytes(cls, data: bytes, *, limit: int = 2 * MAX_DOCUMENT) -> Envelope:
        """Parse strictly; raises Malformed."""
        body = parse_json(data, limit=limit)
        try:
            if set(body) != {"payload", "payloadType", "signatures"} or len(body["signatures"]) > _MAX_SIGNATURES:
                raise ValueError
            signatures = tuple(
                (_text(s["keyid"]), base64.b64decode(s["sig"], validate=True)) for s in body["signatures"]
            )
            payload = base64.b64decode(body["payload"], validate=True)
            return cls(_text(body["payloadType"]), payload, signatures)
        except (KeyError, TypeError, ValueError, binascii.Error):
            raise Malformed("dsse.form", "The file is not a DSSE envelope.") from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def sign_document(payload_type: str, document: Any, *keys: Signer) -> Envelope:
    """Canonicalize ``document`` and sign it with each key."""
    envelope = Envelope(payload_type, canonical_json(document))
    for key in keys:
        envelope = envelope.signed_by(key)
    return envelope
