"""The node's event log: how PCR 15 got its value, with only the asking sandbox's own entry opened.

Each event is a salted canonical JSON object; PCR 15 := SHA-256(PCR ‖ SHA-256(event)) in order, from 32 zero
bytes. The first event names the measured node agent, every other one a launched sandbox. Whoever gets the
log can replay all digests but read only the two opened events: the salt (16 random bytes) keeps the others,
which belong to other parties' jobs, from being guessed.

The list's ``kind`` words of closed events aren't measured; only opened events are believed, by their digest.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any, TypeAlias

from ..crypto import canonical_json, parse_canonical, random_bytes, sha256
from ..errors import Denied, Malformed, Misuse, Unavailable, Untrusted
from .models import MAX_ADDITIONAL, MAX_EVENTS

__all__ = ["PCR_START", "Journal", "OpenedLog", "event_digest", "extend_pcr", "open_log", "replay"]

PCR_START = bytes(32)
_AGENT = {"kind": 0, "salt": 32, "measurement": 64}
_LAUNCH = {"kind": 0, "salt": 32, "instance": 32, "measurement": 64, "contract": 64, "job": 64}
# What an agent may say beside that, each with what is true where it says nothing: an agent that doesn't know of GPUs
# hands out none, and one that doesn't keep others away promises nothing.
_LAUNCH_MORE = {"gpus": tuple(str(n) for n in range(1, 17)), "tenancy": ("exclusive",)}
_EVENT = {"digest", "kind"}
_HEX = re.compile(r"[0-9a-f]*")
_MAX_KINDS = 4
_Read: TypeAlias = tuple[list[str], tuple[bytes, ...], Any, Any, dict[str, Any]]
"""Kinds and digests of the listed events, the two opened ones and the devices, of which only the list is checked."""
# Possessive: no input makes it look back. Between braces neither a brace nor a backslash, so an object ends where it
# seems to.
_USUAL = re.compile(
    r'\{"cloister":\{"agent":(\{[^{}\\]*+\}),"events":\[\{"digest":"([0-9a-f]{64})","kind":"agent"\}'
    r'((?:,\{"digest":"[0-9a-f]{64}","kind":"launch"\})++)\],"launch":(\{[^{}\\]*+\})\}\}'
)
_BEFORE, _LISTED = len(',{"digest":"'), len(',{"digest":"') + 64 + len('","kind":"launch"}')


def event_digest(event: dict[str, str]) -> bytes:
    """SHA-256 of the event's canonical JSON, 32 bytes."""
    return sha256(canonical_json(event))


def extend_pcr(pcr: bytes, digest: bytes) -> bytes:
    """TPM 2.0 Library Part 1 §11.4.7: the new value of a SHA-256 PCR."""
    return sha256(pcr + digest)


def replay(digests: Iterable[bytes]) -> bytes:
    """The value that PCR 15 must have after exactly these events, in this order."""
    pcr = PCR_START
    for digest in digests:  # ``extend_pcr``, without a call for each: a node's log has hundreds
        pcr = hashlib.sha256(pcr + digest).digest()
    return pcr


@dataclass(frozen=True)
class OpenedLog:
    """A log whose opened events are in it. It is authentic only once ``replay(digests)`` equals a quoted PCR 15."""

    digests: tuple[bytes, ...]
    agent: dict[str, str]
    launch: dict[str, str]
    devices: dict[str, Any] = field(default_factory=dict)
    """What stands beside the log: evidence of further devices by kind, unread."""

    @property
    def gpus(self) -> int:
        """How many GPUs the agent handed to the sandbox."""
        return int(self.launch.get("gpus", "0"))

    @property
    def tenancy(self) -> str:
        """``exclusive`` where the agent lets nothing else run beside the sandbox, else ``shared``."""
        return self.launch.get("tenancy", "shared")


@lru_cache(maxsize=16)  # both the processor's verifier and ``composite`` ask; of a text of at most MAX_ADDITIONAL
def open_log(additional: str) -> OpenedLog:
    """Parse additional evidence strictly. Raises Malformed for its form, Untrusted if an opened event isn't in it."""
    usual = _read_usual(additional)
    if usual is None:
        usual = _read_any(additional)
    kinds, digests, agent_said, launch_said, devices = usual
    agent = _parse_event(agent_said, "agent", _AGENT)
    launch = _parse_event(launch_said, "launch", _LAUNCH, _LAUNCH_MORE)
    if kinds[0] != "agent" or "agent" in kinds[1:]:
        raise Untrusted("evidence.agent-first", "The event log does not begin with the node agent, and only there.")
    if len(set(digests)) != len(digests):
        raise Untrusted("evidence.event-twice", "The event log has the same event twice.")
    if event_digest(agent) != digests[0]:
        raise Untrusted("evidence.agent", "The opened agent event is not the first of the event log.")
    if event_digest(launch) not in digests[1:]:
        raise Untrusted("evidence.launch", "The opened launch event is not in the event log.")
    return OpenedLog(digests, agent, launch, devices)


def _read_usual(additional: str) -> _Read | None:
    """A log in the very bytes that ``Journal`` writes, read in one pass without making an object for each event. None
    for anything else, right or wrong: ``_read_any`` says what is the matter."""
    if len(additional) > MAX_ADDITIONAL:
        return None
    found = _USUAL.fullmatch(additional)
    if found is None:
        return None
    agent_said, first, listed, launch_said = found.groups()
    texts = [first, *(listed[n : n + 64] for n in range(_BEFORE, len(listed), _LISTED))]
    if len(texts) > MAX_EVENTS:
        return None
    try:
        # What stands between is canonical by its form, so with these two all of it is.
        agent, launch = parse_canonical(agent_said.encode()), parse_canonical(launch_said.encode())
    except (Malformed, UnicodeEncodeError):
        return None
    return ["agent", *["launch"] * (len(texts) - 1)], tuple(map(bytes.fromhex, texts)), agent, launch, {}


def _read_any(additional: str) -> _Read:
    body = parse_canonical(additional.encode(), limit=MAX_ADDITIONAL)
    if not isinstance(body, dict) or "cloister" not in body or len(body) > 1 + _MAX_KINDS:
        raise _bad()
    devices = {kind: value for kind, value in body.items() if kind != "cloister"}
    cloister = _fields(body["cloister"], {"events", "agent", "launch"})
    return *_parse_list(cloister["events"]), cloister["agent"], cloister["launch"], devices


def _bad() -> Malformed:
    return Malformed("evidence.events", "The event log of the evidence is not of the expected form.")


def _fields(value: Any, names: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != names:
        raise _bad()
    return value


def _parse_list(events: Any) -> tuple[list[str], tuple[bytes, ...]]:
    if not isinstance(events, list) or not 2 <= len(events) <= MAX_EVENTS:
        raise Malformed("evidence.event-count", f"The event log must have 2 to {MAX_EVENTS} events.")
    if not all(type(event) is dict and event.keys() == _EVENT for event in events):
        raise _bad()
    kinds, texts = [event["kind"] for event in events], [event["digest"] for event in events]
    if not all(kind in ("agent", "launch") for kind in kinds) or set(map(type, texts)) != {str}:
        raise _bad()
    # All at once: a node's log has hundreds of them.
    if set(map(len, texts)) != {64} or not _HEX.fullmatch("".join(texts)):
        raise _bad()
    return kinds, tuple(map(bytes.fromhex, texts))


def _parse_event(
    value: Any, kind: str, sizes: dict[str, int], more: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> dict[str, str]:
    said = {name for name in more if isinstance(value, dict) and name in value}
    event = _fields(value, set(sizes) | said)
    if event["kind"] != kind or any(event[name] not in more[name] for name in said):
        raise _bad()
    parsed = {name: kind if name == "kind" else _hex(event[name], size) for name, size in sizes.items()}
    return parsed | {name: event[name] for name in said}


def _hex(value: Any, digits: int) -> str:
    if not isinstance(value, str) or len(value) != digits or not _HEX.fullmatch(value):
        raise _bad()
    return value


class Journal:
    """The node's own copy of the log, with the opened event of every sandbox that is running.

    Not thread-safe: the attester that owns it holds a lock. ``prepare`` and ``commit`` are apart so that the
    hardware is extended in between; an event that the hardware refused is never listed.
    """

    def __init__(self, agent_measurement: bytes) -> None:
        self._agent = {"kind": "agent", "salt": random_bytes(16).hex(), "measurement": _exact(agent_measurement, 32)}
        self._digests = [event_digest(self._agent)]
        self._listed = _listed("agent", self._digests[0])  # the list's canonical JSON, so that it is written once
        self._running: dict[str, dict[str, str]] = {}
        self._seen: set[str] = set()

    @property
    def agent_digest(self) -> bytes:
        """What must be extended first, before anything is launched."""
        return self._digests[0]

    def prepare(
        self,
        instance: bytes,
        measurement: bytes,
        contract: bytes,
        job: bytes,
        *,
        gpus: int = 0,
        exclusive: bool = False,
    ) -> dict[str, str]:
        """The launch event for a new sandbox: ``gpus`` that it gets, ``exclusive`` if nothing else runs beside it.

        Raises Misuse for a wrong size, Denied for an instance id that was used before and where a sandbox would not be
        alone that must be, Unavailable when the log is full.
        """
        event = {
            "kind": "launch",
            "salt": random_bytes(16).hex(),
            "instance": _exact(instance, 16),
            "measurement": _exact(measurement, 32),
            "contract": _exact(contract, 32),
            "job": _exact(job, 32),
        }
        alone = any("tenancy" in running for running in self._running.values())
        if alone or (exclusive and self._running):
            raise Denied("attester.exclusive", "One of the sandboxes must be alone on this node; wait until it is.")
        if gpus:
            event["gpus"] = str(gpus)
        if exclusive:
            event["tenancy"] = "exclusive"
        if event["instance"] in self._seen:
            raise Denied("attester.instance-used", "This instance id was launched before; draw a new one.")
        if len(self._digests) >= MAX_EVENTS:
            raise Unavailable("attester.log-full", "The event log is full; drain this node and restart its agent.")
        return event

    def commit(self, event: dict[str, str]) -> None:
        """The hardware holds the event now."""
        digest = event_digest(event)
        self._digests.append(digest)
        self._listed += b"," + _listed("launch", digest)
        self._running[event["instance"]] = event
        self._seen.add(event["instance"])

    def retire(self, instance: bytes) -> None:
        """No more evidence for this sandbox."""
        self._running.pop(instance.hex(), None)

    def additional(self, instance: bytes) -> str:
        """The additional evidence for one running sandbox; Denied for any other."""
        launch = self._running.get(instance.hex())
        if launch is None:
            raise Denied("attester.instance", "No sandbox with this instance id is running on this node.")
        agent, opened = canonical_json(self._agent), canonical_json(launch)
        return (b'{"cloister":{"agent":%b,"events":[%b],"launch":%b}}' % (agent, self._listed, opened)).decode()


def _listed(kind: str, digest: bytes) -> bytes:
    return canonical_json({"digest": digest.hex(), "kind": kind})


def _exact(value: bytes, size: int) -> str:
    if not isinstance(value, bytes) or len(value) != size:
        raise Misuse("attester.size", f"A value for the event log must have exactly {size} bytes.")
    return value.hex()
