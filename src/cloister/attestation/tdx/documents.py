"""Documents that Intel signs as JSON: TCB info and enclave identities. Here: whose they are, and from when to when.

The signature is over the very bytes of the inner object as the service sent them, and that JSON is Intel's, not
canonical. So the bytes are cut out of the answer, verified, and only then read; nothing is ever written anew.
Source: Intel, "SGX and TDX Provisioning Certification Service" API, version 4.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from ...crypto import parse_json, verify_hardware_signature
from ...crypto.signatures import raw_ecdsa
from ...crypto.x509 import Certificate, check_usage, read_certificates, verify_chain
from ...errors import Malformed, Untrusted
from ...fields import Fields
from ..collateral import Staleness

__all__ = [
    "LEEWAY",
    "MAX_DOCUMENT",
    "Answer",
    "check_time",
    "hex_field",
    "read_signed",
    "signer_of",
    "split_answer",
    "time_field",
]

MAX_DOCUMENT: Final = 128 * 1024
"""Bytes of one answer of the service; the largest real ones have about 30 KiB."""
LEEWAY: Final = 12 * 3600
"""Seconds that collateral may seem to come from the future. A broker's clock that is behind would otherwise refuse what
was just fetched. It costs nothing: whoever can set a clock back can also bring collateral of that time."""

_SIGNER: Final = "Intel SGX TCB Signing"
_SIGNATURE = re.compile(r"[0-9a-fA-F]{128}")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_SPACE: Final = " \t\r\n"
_CODE: Final = "tdx.document"


@dataclass(frozen=True)
class Answer:
    """The service's answer, taken apart. ``body``: the signed object's bytes as sent; ``signature``: r ‖ s (64)."""

    body: bytes
    signature: bytes


def split_answer(data: bytes, name: str) -> Answer:
    """Cut ``{"<name>": {…}, "signature": "…"}`` into what is signed and its signature. Raises Malformed.

    The whole is parsed strictly first (no duplicate names, bounded depth), so that a name has one place only.
    """
    whole = parse_json(data, limit=MAX_DOCUMENT)
    if not isinstance(whole, dict) or set(whole) != {name, "signature"} or not isinstance(whole[name], dict):
        raise Malformed(_CODE, f"An answer of Intel's service is not an object with {name} and a signature.")
    signature = whole["signature"]
    if not isinstance(signature, str) or not _SIGNATURE.fullmatch(signature):
        raise Malformed(_CODE, "A signature of Intel's service is not 64 bytes in hex.")
    start, end = _span(data.decode(), name)
    return Answer(data.decode()[start:end].encode(), bytes.fromhex(signature))


def _span(text: str, name: str) -> tuple[int, int]:
    """Where the value of ``name`` begins and ends in the object ``text``, which was parsed before."""
    decoder = json.JSONDecoder()
    at = _skip(text, 0) + 1  # the brace
    while True:
        key, at = decoder.raw_decode(text, _skip(text, at))
        start = _skip(text, _skip(text, at) + 1)  # past the colon
        _, end = decoder.raw_decode(text, start)
        if key == name:
            return start, end
        at = _skip(text, end) + 1  # past the comma: the name is known to be there


def _skip(text: str, at: int) -> int:
    while text[at] in _SPACE:
        at += 1
    return at


def signer_of(chain_pem: bytes, *, now: int, roots: Collection[str]) -> tuple[Certificate, Certificate]:
    """The certificate that speaks about TCBs, and the root above it, verified. Raises Malformed, Untrusted."""
    chain = read_certificates(chain_pem, limit=4)
    if len(chain) != 2:
        raise Malformed(_CODE, "A document's issuer chain is not exactly the signer's certificate and the root's.")
    verify_chain(chain, roots=roots, now=now)
    if chain[0].subject_attributes.get("CN") != _SIGNER:
        # The root also signs authorities that sign processors' keys; only this certificate may speak about TCBs.
        raise Untrusted("tdx.signer", "A document of Intel's service is signed by a certificate for something else.")
    check_usage(chain[0], "digital_signature", "x509.usage", "A signer of Intel's documents may not sign any.")
    return chain[0], chain[1]


def read_signed(answer: Answer, signer: Certificate) -> dict[str, Any]:
    """The signed object, once it is shown that ``signer`` signed it. Raises Malformed, Untrusted."""
    try:
        verify_hardware_signature(signer.spki, answer.body, raw_ecdsa(answer.signature))
    except Untrusted:
        raise Untrusted("tdx.document-signature", "A document of Intel's service was changed after signing.") from None
    body: dict[str, Any] = parse_json(answer.body, limit=MAX_DOCUMENT)  # an object: split_answer saw to it
    return body


def check_time(what: str, *, begins: int, ends: int, now: int, staleness: Staleness) -> None:
    """Return if collateral that is good from ``begins`` to ``ends`` may be used at ``now``. Raises Untrusted
    ``collateral.future``, ``collateral.stale``. When it was obtained doesn't matter: all of Intel's states its end."""
    staleness.check(what, begins=begins - LEEWAY, ends=ends, obtained=begins - LEEWAY, now=now)


def time_field(fields: Fields, key: str) -> int:
    """A time such as 2025-06-19T10:56:11Z, in POSIX seconds."""
    text = fields.text(key, limit=32)
    if not _TIME.fullmatch(text):
        raise Malformed(_CODE, "A document of Intel's service has a time that can't be read.")
    try:
        return int(datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp())
    except ValueError:
        raise Malformed(_CODE, "A document of Intel's service has a time that can't be read.") from None


def hex_field(fields: Fields, key: str, size: int) -> bytes:
    """``size`` bytes in hex; Intel writes both cases."""
    text = fields.text(key, limit=2 * size)
    if not re.fullmatch(f"[0-9a-fA-F]{{{2 * size}}}", text):
        raise Malformed(_CODE, "A document of Intel's service has a field that is not hex of its size.")
    return bytes.fromhex(text)
