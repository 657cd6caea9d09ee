"""Evidence, claims and reference values (RFC 9334 words), with strict reading from the wire."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias, get_args

from ..crypto import canonical_json, frame, sha256
from ..errors import Malformed

__all__ = [
    "LEVELS",
    "MAX_ADDITIONAL",
    "MAX_DEVICES",
    "MAX_EVENTS",
    "MAX_EVIDENCE",
    "Claims",
    "Device",
    "Evidence",
    "Fact",
    "Level",
    "ReferenceValues",
    "guest_digest",
    "level_rank",
]

MAX_ADDITIONAL: Final = 160 * 1024
"""Bytes of additional evidence: the event log, and what several GPUs say with their certificates."""
MAX_EVIDENCE: Final = 192 * 1024
"""Bytes of one piece of evidence, primary and additional together."""
MAX_EVENTS: Final = 512
"""Events in one log: as many as fit, with everything else, into 64 KiB and one line of the node's socket."""
MAX_DEVICES: Final = 32
_MAX_VALUES: Final = 4096
"""Values in primary evidence, at any depth, and names of members. Real ones have a few dozen; each takes time."""
_MAX_MARKS: Final = 16 * 1024
"""Commas and opening brackets in additional evidence: it can't have more values than that and one. A full event log has
about 1,600, a GPU a dozen."""
_MAX_REFERENCES: Final = 1000
_MAX_PCRS: Final = 24

Fact: TypeAlias = "bool | int | str | list[str]"
Level = Literal["none", "tpm", "cpu-tee", "gpu-tee"]
LEVELS: Final[tuple[Level, ...]] = get_args(Level)
"""Assurance levels, weakest first (DESIGN §2)."""

_HEX32 = re.compile(r"[0-9a-f]{64}")
_TEE = re.compile(r"[a-z][a-z0-9-]{0,31}")
_PCR = re.compile(r"0|[1-9]|1[0-9]|2[0-3]")


def level_rank(level: str) -> int:
    """The place of ``level`` in the order; Malformed for a word that is no level."""
    for rank, known in enumerate(LEVELS):
        if level == known:
            return rank
    raise Malformed("level.unknown", "An assurance level is one of none, tpm, cpu-tee, gpu-tee.")


@dataclass(frozen=True)
class Evidence:
    """What an attester sent: ``tee`` names the verifier, ``primary`` is its signed part, ``additional`` a JSON text
    that the signed part covers. Nothing in it is true before a verifier has returned claims."""

    tee: str
    primary: dict[str, Any]
    additional: str

    def __post_init__(self) -> None:
        if not isinstance(self.tee, str) or not _TEE.fullmatch(self.tee):
            raise Malformed("evidence.tee", "The evidence does not name a platform.")
        if not isinstance(self.primary, dict) or not isinstance(self.additional, str):
            raise Malformed("evidence.form", "The evidence is not an object with primary and additional evidence.")
        if not _is_small(self.primary) or sum(map(self.additional.count, ",[{")) > _MAX_MARKS:
            raise Malformed("evidence.size", "The evidence is made of more values than any platform's is.")
        if len(self.additional) > MAX_ADDITIONAL or len(_encoded(self.primary, self.additional)) > MAX_EVIDENCE:
            raise Malformed("evidence.size", f"The evidence is longer than {MAX_EVIDENCE} bytes.")

    @classmethod
    def from_wire(cls, body: object) -> Evidence:
        """From ``{"tee", "primary_evidence", "additional_evidence"}``; Malformed for anything else or too much."""
        if not isinstance(body, dict) or set(body) != {"tee", "primary_evidence", "additional_evidence"}:
            raise Malformed("evidence.form", "The evidence is not an object with primary and additional evidence.")
        return cls(body["tee"], body["primary_evidence"], body["additional_evidence"])

    def to_wire(self) -> dict[str, Any]:
        """The inverse of ``from_wire``."""
        return {"tee": self.tee, "primary_evidence": self.primary, "additional_evidence": self.additional}


def _is_small(primary: dict[str, Any]) -> bool:
    """Whether it is worth encoding at all. Looks at no more than what it allows, and recurses nowhere."""
    values = characters = 0
    waiting: list[Any] = [primary]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            characters += len(value)
        elif isinstance(value, dict | list | tuple):
            values += len(value) * (1 + isinstance(value, dict))
            if values > _MAX_VALUES:
                return False
            waiting += [*value, *value.values()] if isinstance(value, dict) else value
        if characters > MAX_EVIDENCE:
            return False
    return True


def _encoded(primary: dict[str, Any], additional: str) -> bytes:
    """Both parts as bytes; canonical JSON also refuses floats, lone surrogates and endless nesting."""
    try:
        return canonical_json(primary) + additional.encode()
    except UnicodeEncodeError:
        raise Malformed("json.text", "Text with a lone surrogate can't be encoded; use valid Unicode.") from None


def guest_digest(tee: str, measurements: Mapping[str, str]) -> str:
    """One digest over what a TEE measured when a guest was launched: the ``agent`` of its claims, hex.

    ``measurements``: hex by name, for SNP ``launch``, for TDX ``mrtd`` and ``rtmr0`` to ``rtmr2``. Names are sorted
    and framed with the values, so no other set of measurements has the same digest.
    """
    parts: list[str | bytes] = [tee]
    for name in sorted(measurements):
        parts += [name, bytes.fromhex(measurements[name])]
    return sha256(frame("cloister/guest/v1", *parts)).hex()


@dataclass(frozen=True)
class Device:
    """One attested piece of hardware: a submodule of the result, and what owners' appraisal policies look at.

    ``name``: cpu0, tpm0, gpu0, nvswitch0 … ``tee``: its platform. ``identity``: lower-case hex that names this very
    piece for good, empty where it has no such name. ``measurements``: hex by name. ``facts``: flat, dotted names; only
    what a signature proved stands there. ``hardware`` and ``notes`` are for people.
    """

    name: str
    tee: str
    identity: str = ""
    measurements: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Fact] = field(default_factory=dict)
    hardware: str = ""
    notes: tuple[str, ...] = ()

    def to_wire(self) -> dict[str, Any]:
        """As a JSON object, for tokens and the log."""
        return {
            "facts": dict(self.facts),
            "hardware": self.hardware,
            "identity": self.identity,
            "measurements": dict(self.measurements),
            "name": self.name,
            "notes": list(self.notes),
            "tee": self.tee,
        }


@dataclass(frozen=True)
class Claims:
    """What a verifier found to be authentic. Digests are lower-case hex; ``pcrs`` maps "0" … to hex.

    ``level`` is what the evidence really supports, ``hardware`` and ``notes`` say it in words for people. ``gpus`` and
    ``tenancy`` are the measured agent's word for the launch.
    """

    tee: str
    level: Level
    attester: str
    measurement: str
    agent: str
    instance: str
    contract: str
    job: str
    pcrs: dict[str, str] = field(default_factory=dict)
    hardware: str = ""
    notes: tuple[str, ...] = ()
    devices: tuple[Device, ...] = ()
    gpus: int = 0
    tenancy: str = "shared"

    def to_wire(self) -> dict[str, Any]:
        """As a JSON object, for tokens and the log; the devices stand in submodules of their own."""
        return {
            "agent": self.agent,
            "attester": self.attester,
            "contract": self.contract,
            "gpus": self.gpus,
            "hardware": self.hardware,
            "instance": self.instance,
            "job": self.job,
            "level": self.level,
            "measurement": self.measurement,
            "notes": list(self.notes),
            "pcrs": dict(self.pcrs),
            "tee": self.tee,
            "tenancy": self.tenancy,
        }


@dataclass(frozen=True)
class ReferenceValues:
    """What a contract accepts: digests of workloads, node agents and attesters, PCR values, the least level.

    An empty set accepts nothing (``appraise`` denies). Raises Malformed for values that aren't digests.
    """

    measurements: frozenset[str]
    agents: frozenset[str]
    attesters: frozenset[str]
    pcrs: dict[str, str]
    least_level: str

    def __post_init__(self) -> None:
        level_rank(self.least_level)
        for values in (self.measurements, self.agents, self.attesters):
            if len(values) > _MAX_REFERENCES or not all(_is_digest(v) for v in values):
                raise Malformed("reference.digest", "A reference value is not 64 lower-case hex digits.")
        if len(self.pcrs) > _MAX_PCRS or not all(_is_pcr(k) and _is_digest(v) for k, v in self.pcrs.items()):
            raise Malformed("reference.pcr", "A PCR reference must map a number from 0 to 23 to 64 hex digits.")

    @classmethod
    def from_wire(cls, body: object) -> ReferenceValues:
        """From a JSON object with exactly the names of the fields; lists must not repeat a value."""
        if not isinstance(body, dict) or set(body) != {"measurements", "agents", "attesters", "pcrs", "least_level"}:
            raise Malformed("reference.form", "The reference values don't have exactly the fields that are expected.")
        if not isinstance(body["pcrs"], dict) or not isinstance(body["least_level"], str):
            raise Malformed("reference.form", "The reference values have a field of the wrong type.")
        sets = [_digest_set(body[name]) for name in ("measurements", "agents", "attesters")]
        return cls(sets[0], sets[1], sets[2], dict(body["pcrs"]), body["least_level"])

    def to_wire(self) -> dict[str, Any]:
        """As a JSON object, sets sorted: its canonical bytes name these values."""
        return {
            "agents": sorted(self.agents),
            "attesters": sorted(self.attesters),
            "least_level": self.least_level,
            "measurements": sorted(self.measurements),
            "pcrs": dict(self.pcrs),
        }


def _digest_set(values: object) -> frozenset[str]:
    if not isinstance(values, list) or len(values) > _MAX_REFERENCES or not all(_is_digest(v) for v in values):
        raise Malformed("reference.digest", "A reference value is not 64 lower-case hex digits.")
    if len(set(values)) != len(values):
        raise Malformed("reference.duplicate", "A list of reference values names one value twice.")
    return frozenset(values)


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and _HEX32.fullmatch(value) is not None


def _is_pcr(value: object) -> bool:
    return isinstance(value, str) and _PCR.fullmatch(value) is not None
