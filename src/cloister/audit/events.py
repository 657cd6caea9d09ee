"""What is logged: OCSF events (schema 1.9.0-dev) that a SIEM can read, with Cloister's facts under ``unmapped``.

``unmapped`` holds ``kind``, ``actor``, ``target``, ``outcome``, ``details`` (text and integers) and ``salt``: 16
random bytes, so that nobody who sees a leaf hash in a proof can guess the entry by trying likely ones.
An entry's bytes are the event in canonical JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, cast

from .. import __version__
from ..crypto import canonical_json, parse_canonical, random_bytes
from ..errors import Malformed, Misuse
from .limits import LIMITS
from .ocsf import KINDS, OCSF_VERSION

__all__ = ["Facts", "Outcome", "encode_event", "event", "parse_event"]

Outcome = Literal["success", "failure"]

_OUTCOMES = {"success": (1, "Success"), "failure": (2, "Failure")}
_SEVERITIES = {1: "Informational", 2: "Low", 3: "Medium", 4: "High", 5: "Critical"}
_FACTS = {"actor", "details", "kind", "outcome", "salt", "target"}
_MAX_DETAILS = 64
_MAX_TEXT = 8192
_NOT_SECONDS = 100_000_000_000  # the year 5138: a larger number is milliseconds by mistake


def event(
    kind: str,
    *,
    actor: str,
    target: str,
    outcome: Outcome = "success",
    details: Mapping[str, str | int] = MappingProxyType({}),
    now: int,
    salt: bytes | None = None,
) -> dict[str, Any]:
    """An OCSF event of one of ``KINDS``; ``now`` is POSIX seconds.

    ``actor`` is the party or process that acted, ``target`` what it acted on (a party, a digest, a job). A detail
    named ``code`` (the reason of a refusal) also becomes OCSF's status_code. Never put data, keys or passphrases in
    details. Raises Misuse for an unknown kind or outcome and for what isn't bounded text or an integer.
    """
    shape = KINDS.get(kind)
    if shape is None:
        raise Misuse("event.kind", "There is no audit event of that kind; add it to the table of kinds first.")
    _check(actor, target, outcome, details, now)
    number, label = _OUTCOMES[outcome]
    severity = max(shape.severity, 3) if outcome == "failure" else shape.severity
    body: dict[str, Any] = {
        "activity_id": shape.activity,
        "activity_name": shape.activity_name,
        "category_uid": shape.class_uid // 1000,
        "class_name": shape.class_name,
        "class_uid": shape.class_uid,
        "message": f"{kind}: {label.lower()}",
        "metadata": {
            "event_code": kind,
            "log_name": "cloister-audit",
            "product": {"name": "Cloister", "vendor_name": "Cloister", "version": __version__},
            "version": OCSF_VERSION,
        },
        "severity": _SEVERITIES[severity],
        "severity_id": severity,
        "status": label,
        "status_id": number,
        "time": now * 1000,
        "type_uid": shape.class_uid * 100 + shape.activity,
        "unmapped": {
            "actor": actor,
            "details": dict(details),
            "kind": kind,
            "outcome": outcome,
            "salt": (random_bytes(16) if salt is None else salt).hex(),
            "target": target,
        },
    }
    if "code" in details:
        body["status_code"] = str(details["code"])
    return body | shape.objects(actor, target)


def _check(actor: str, target: str, outcome: str, details: Mapping[str, str | int], now: int) -> None:
    if outcome not in _OUTCOMES:
        raise Misuse("event.outcome", "An audit event's outcome is either success or failure.")
    if type(now) is not int or not 0 <= now < _NOT_SECONDS:
        raise Misuse("event.time", "An audit event's time is given in whole POSIX seconds.")
    if not actor or not target:
        raise Misuse("event.who", "An audit event names who acted and on what.")
    texts = [actor, target, *details, *(v for v in details.values() if isinstance(v, str))]
    if not all(isinstance(text, str) for text in texts):
        raise Misuse("event.details", "An audit event's names and details are text.")
    values_fit = all(type(v) in (str, int) for v in details.values())
    if not values_fit or len(details) > _MAX_DETAILS or any(len(text) > _MAX_TEXT for text in texts):
        raise Misuse("event.details", "An audit event's details are at most 64 short texts or integers.")


def encode_event(body: Mapping[str, Any]) -> bytes:
    """The entry to append: canonical JSON. Raises Misuse if it is too long for a log entry."""
    entry = canonical_json(dict(body))
    if len(entry) > LIMITS.entry:
        raise Misuse("event.size", "An audit event is too long for a log entry; log a digest instead.")
    return entry


@dataclass(frozen=True)
class Facts:
    """Cloister's own view of a logged event; ``time`` is POSIX seconds."""

    kind: str
    actor: str
    target: str
    outcome: Outcome
    details: Mapping[str, str | int]
    time: int


def parse_event(entry: bytes) -> Facts:
    """The facts of an entry that ``encode_event(event(…))`` made; Malformed for anything else.

    Only what every version writes is required, so logs of older versions stay readable: the facts, and that the
    OCSF part tells the same kind, outcome and time.
    """
    body = parse_canonical(entry, limit=LIMITS.entry)
    try:
        facts = body["unmapped"]
        kind, actor, target, outcome = (facts[name] for name in ("kind", "actor", "target", "outcome"))
        details, salt, time = facts["details"], facts["salt"], body["time"] // 1000
        _check(actor, target, outcome, details, time)
        agree = (body["metadata"]["event_code"], body["status_id"]) == (kind, _OUTCOMES[outcome][0])
        whole = set(facts) == _FACTS and len(bytes.fromhex(salt)) == 16 and time * 1000 == body["time"]
    except (AttributeError, KeyError, TypeError, ValueError, Misuse):
        agree = whole = False
    if not (agree and whole):
        raise Malformed("event.form", "A log entry is not a Cloister audit event.")
    return Facts(kind, actor, target, cast(Outcome, outcome), MappingProxyType(dict(details)), time)
