"""What a sandbox may ask of the node agent: parsing and limits. Pure, but for the clock of the rate limit.

One line of JSON, at most 64 KiB: ``connect``, ``evidence``, ``stock-evidence`` or ``telemetry``. The asker is untrusted
here: a workload under attack must not be able to carry more out than the schema of telemetry holds.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..crypto import parse_json
from ..errors import Denied, Malformed

__all__ = [
    "Connect",
    "EvidenceRequest",
    "RateLimit",
    "SocketLimits",
    "StockEvidenceRequest",
    "Telemetry",
    "parse_request",
]

_PARTY = re.compile(r"[a-z][a-z0-9-]{0,62}")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_./-]{0,63}")
_DECIMAL = re.compile(r"-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,12})?|nan")
_KIND = re.compile(r"[a-z]{1,16}")
_JWK_FIELD = re.compile(r"[A-Za-z0-9_-]{1,16}")
_HASH = re.compile(r"sha(?:256|384|512)")
_MAX_NONCE, _MAX_STOCK_NONCE, _MAX_JWK_FIELDS, _MAX_JWK_VALUE = 1024, 4096, 16, 4096
_MAX_STEP, _MAX_VALUES = 2**40, 32
_MAX_MESSAGE, _MAX_DETAILS, _MAX_DETAIL = 512, 16, 256


@dataclass(frozen=True)
class SocketLimits:
    """Bounds of one sandbox's socket. Rates are per minute, with a burst of the same size."""

    line_bytes: int = 64 * 1024
    connections: int = 32
    line_seconds: float = 10.0
    connect_seconds: float = 10.0
    idle_seconds: float = 900.0
    telemetry_per_minute: int = 240
    evidence_per_minute: int = 120


@dataclass(frozen=True)
class Connect:
    party: str


@dataclass(frozen=True)
class EvidenceRequest:
    nonce: str
    tee_pubkey: dict[str, str]


@dataclass(frozen=True)
class StockEvidenceRequest:
    """Evidence for a stock attestation service, which selected ``algorithm``: about this guest, not about a sandbox."""

    nonce: str
    tee_pubkey: dict[str, str]
    algorithm: str


@dataclass(frozen=True)
class Telemetry:
    event: dict[str, Any]


class RateLimit:
    """A token bucket: ``per_minute`` events a minute, that many at once at most. ``clock`` returns seconds."""

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self._size, self._clock = float(per_minute), clock
        self._tokens, self._last = float(per_minute), clock()

    def take(self, what: str) -> None:
        """Count one event; raises Denied if there were too many."""
        now = self._clock()
        self._tokens = min(self._size, self._tokens + (now - self._last) * self._size / 60)
        self._last = now
        if self._tokens < 1:
            raise Denied("node.rate", f"The sandbox sends too much {what}; send it less often.")
        self._tokens -= 1


def _bad(what: str) -> Malformed:
    return Malformed("node.request", f"The request to the node agent has {what}; see the node-socket protocol.")


def _text(value: object, pattern: re.Pattern[str], what: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise _bad(what)
    return value


def _fields(body: dict[str, Any], *names: str) -> None:
    if set(body) != set(names):
        raise _bad("missing or unknown fields")


def parse_request(line: bytes, limits: SocketLimits) -> Connect | EvidenceRequest | StockEvidenceRequest | Telemetry:
    """The request in one line (without its end). Raises Malformed for anything that the protocol doesn't have."""
    body = parse_json(line, limit=limits.line_bytes)
    if not isinstance(body, dict):
        raise _bad("no JSON object")
    operation = body.get("op")
    if operation == "connect":
        _fields(body, "op", "party")
        return Connect(_text(body["party"], _PARTY, "no valid name of a party"))
    if operation == "evidence":
        _fields(body, "op", "nonce", "tee-pubkey")
        return EvidenceRequest(_nonce(body["nonce"]), _jwk(body["tee-pubkey"]))
    if operation == "stock-evidence":
        _fields(body, "op", "nonce", "tee-pubkey", "hash")
        algorithm = _text(body["hash"], _HASH, "no hash of the KBS protocol")
        return StockEvidenceRequest(_nonce(body["nonce"], _MAX_STOCK_NONCE), _jwk(body["tee-pubkey"]), algorithm)
    if operation == "telemetry":
        _fields(body, "op", "event")
        return Telemetry(_event(body["event"]))
    raise _bad("an unknown operation")


def _nonce(value: object, limit: int = _MAX_NONCE) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= limit or not value.isascii():
        raise _bad("no valid nonce")
    return value


def _jwk(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not 0 < len(value) <= _MAX_JWK_FIELDS:
        raise _bad("no valid public key")
    for name, item in value.items():
        if not _JWK_FIELD.fullmatch(name) or not isinstance(item, str) or len(item) > _MAX_JWK_VALUE:
            raise _bad("no valid public key")
    return value


def _count(value: object, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_STEP:
        raise _bad(what)


def _wire_error(error: object) -> None:
    """How a run failed: an error in the form of ``CloisterError.to_wire``, and no longer than those are."""
    if not isinstance(error, dict):
        raise _bad("no valid error")
    _fields(error, "kind", "code", "message", "details")
    _text(error["kind"], _KIND, "no valid kind of error")
    _text(error["code"], _NAME, "no valid error code")
    message, details = error["message"], error["details"]
    if not isinstance(message, str) or len(message) > _MAX_MESSAGE:
        raise _bad("no valid message")
    if not isinstance(details, dict) or len(details) > _MAX_DETAILS:
        raise _bad("no valid details")
    for name, item in details.items():
        _text(name, _NAME, "a bad name of a detail")
        if not isinstance(item, str | int) or len(str(item)) > _MAX_DETAIL:
            raise _bad("a bad detail")


def _event(event: object) -> dict[str, Any]:
    if not isinstance(event, dict):
        raise _bad("no telemetry event")
    if event.get("kind") == "state":
        _fields(event, "kind", "code", *(["error"] if "error" in event else []))
        _text(event["code"], _NAME, "no valid state code")
        if "error" in event:
            _wire_error(event["error"])
        return event
    if event.get("kind") != "progress":
        raise _bad("an unknown kind of telemetry")
    _fields(event, "kind", "stage", "step", "total", "values")
    _text(event["stage"], _NAME, "no valid stage")
    _count(event["step"], "no valid step")
    _count(event["total"], "no valid total")
    values = event["values"]
    if not isinstance(values, dict) or len(values) > _MAX_VALUES:
        raise _bad("no valid values")
    for name, number in values.items():
        _text(name, _NAME, "a bad name of a value")
        _text(number, _DECIMAL, "a value that is not a decimal number")
    return event
