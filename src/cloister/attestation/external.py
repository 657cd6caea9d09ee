"""Another verifier's word: EAR tokens from an attestation service that the owner pinned. Pure.

Evidence of ``tee`` "ear" is ``{"token": JWT}``. What counts of it is what the pin says: whose signature, with which
algorithm and profile, which statuses, where in a token measurements stand, and the highest level that this verifier's
word reaches here. The launch log is our node agent's, as with any platform: it stands in the additional evidence,
which the report covers, and the token must be about this report.

Sources: draft-ietf-rats-ear (the token), RFC 9711 (EAT), Veraison's and Trustee's tokens. Those write the same claims
as ``ear.status`` or ``ear_status``; either is read, never both.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ..crypto import b64url, canonical_json, frame, parse_json, sha256
from ..crypto.jws import JWS_ALGORITHMS, JwsKey, verify_jws
from ..errors import Denied, Malformed, Misuse, Untrusted
from ..fields import Fields
from .events import OpenedLog, open_log
from .models import LEVELS, Claims, Device, Evidence, Fact, Level, guest_digest

__all__ = ["BINDINGS", "ExternalVerifier", "PinnedVerifier"]

BINDINGS: Final = ("eat_nonce", "runtime_data")
"""How a token says which report it is about: EAT's nonce is the report, or claims of the submodule hash to it."""

_MAX_TOKEN = 128 * 1024
_MAX_AGE = 3600
_MAX_PINS = 8  # each may have to check a signature
_MAX_POINTERS = 32
_LEEWAY = 60  # seconds that the verifier's clock may be ahead
_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
_SUBMODULE = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_HEX = re.compile(r"(?:[0-9a-f]{2}){16,64}")
_MAX_SUBMODULES = 33


@dataclass(frozen=True)
class PinnedVerifier:
    """What an owner knows of an external verifier, and how far it trusts it.

    ``name`` is for people; ``tee`` the platform it appraises; ``level`` the most that its word reaches. ``warnings``:
    whether the status "warning" counts, too. ``binding``: one of BINDINGS; with runtime_data, ``bound_at`` points to
    the claims. ``measurements`` maps our names to pointers, ``identity`` points to the machine's id, ``required`` maps
    pointers to the value that must stand there. Pointers are RFC 6901, inside the ``submodule`` of the CPU. Hex only.
    """

    name: str
    key: JwsKey
    profile: str
    tee: str
    level: Level
    binding: str
    measurements: dict[str, str]
    bound_at: str = ""
    identity: str = ""
    required: dict[str, bool | int | str] = field(default_factory=dict)
    warnings: bool = False
    submodule: str = "cpu0"
    most_seconds: int = 300

    def __post_init__(self) -> None:
        if self.key.algorithm not in JWS_ALGORITHMS or self.level not in LEVELS or self.binding not in BINDINGS:
            raise Misuse("ear.pin", "A pinned verifier's algorithm, level or binding is unknown.")
        if not _NAME.fullmatch(self.name) or not _SUBMODULE.fullmatch(self.submodule) or not self.profile:
            raise Misuse("ear.pin", "A pinned verifier needs a name, a profile and a submodule.")
        if not self.measurements:
            raise Misuse("ear.pin", "A pinned verifier must say where a token has its measurements.")
        if (self.binding == "runtime_data") != bool(self.bound_at) or not 0 < self.most_seconds <= _MAX_AGE:
            raise Misuse("ear.pin", "A pinned verifier's binding or lifetime is not complete.")

    @classmethod
    def from_wire(cls, body: object) -> PinnedVerifier:
        """From the owner's own file. Raises Malformed or Misuse."""
        f = Fields(body, "pinned verifier")
        algorithm = f.text("algorithm", choices=JWS_ALGORITHMS)
        level = f.text("level", choices=LEVELS)
        pin = cls(
            name=f.text("name", limit=63),
            key=JwsKey.from_jwk(f.raw("key"), algorithm),
            profile=f.text("profile", limit=256),
            tee=f.text("tee", limit=32),
            level=next(known for known in LEVELS if known == level),
            binding=f.text("binding", choices=BINDINGS),
            measurements=f.mapping("measurements", _pointer, limit=_MAX_POINTERS),
            bound_at=f.optional_text("bound_at", limit=512) or "",
            identity=f.optional_text("identity", limit=512) or "",
            required=f.mapping("required", _required, limit=_MAX_POINTERS),
            warnings=f.boolean("warnings"),
            submodule=f.text("submodule", limit=32),
            most_seconds=f.integer("most_seconds", low=1, high=_MAX_AGE),
        )
        f.done()
        return pin


def _pointer(_: str, value: Any) -> str:
    if not isinstance(value, str) or not value.startswith("/") or len(value) > 512:
        raise Malformed("ear.pointer", "A place in a token is written as a JSON pointer that begins with a slash.")
    return value


def _required(key: str, value: Any) -> bool | int | str:
    _pointer("", key)
    if not isinstance(value, bool | int | str):
        raise Malformed("ear.required", "What a token must say is true, false, a whole number or a text.")
    return value


class ExternalVerifier:
    """Verifier for evidence of ``tee`` "ear", under the owner's pins. Without a pin it accepts nothing."""

    tee = "ear"

    def __init__(self, pins: Sequence[PinnedVerifier]) -> None:
        if len(pins) > _MAX_PINS:
            raise Misuse("ear.pin", f"At most {_MAX_PINS} verifiers are pinned at a time.")
        self._pins = tuple(pins)

    def verify(self, evidence: Evidence, report: bytes, *, now: int) -> Claims:
        """See ``ports.Verifier``. Raises Malformed, Untrusted, or Denied("ear.status") for a result that is too bad."""
        if evidence.tee != self.tee:
            raise Untrusted("ear.tee", "The evidence is not another verifier's token.")
        token = Fields(evidence.primary, "evidence").text("token", limit=_MAX_TOKEN)
        if set(evidence.primary) != {"token"}:
            raise Malformed("evidence.form", "Evidence from another verifier is a token and nothing else.")
        # 1. Signed by a verifier that is pinned. The pin brings key and algorithm.
        pin, payload = self._signed(token)
        body = parse_json(payload, limit=_MAX_TOKEN)
        # 2. An attestation result of the pinned profile, in its time.
        _check_result(body, pin, now)
        submodules = body.get("submods")
        if not isinstance(submodules, dict) or not 0 < len(submodules) <= _MAX_SUBMODULES:
            raise Malformed("ear.form", "The token carries no submodules, or too many.")
        cpu = submodules.get(pin.submodule)
        if not isinstance(cpu, dict):
            raise Untrusted("ear.submodule", "The token has no result about the machine that the pin names.")
        # 3. About this very report: nonce, response key and launch log.
        _check_binding(body, cpu, pin, report)
        # 4. Every part of the machine is well enough, not just the first.
        devices = [_device(name, part, pin) for name, part in sorted(submodules.items())]
        # 5. What the owner wants to be said in it.
        for place, value in pin.required.items():
            found = _at(cpu, place)
            if type(found) is not type(value) or found != value:
                raise Denied("ear.required", "The token does not say what the pinned verifier's tokens must say.")
        return _claims(cpu, pin, open_log(evidence.additional), devices)

    def _signed(self, token: str) -> tuple[PinnedVerifier, bytes]:
        refusal: Malformed | Untrusted = Untrusted("ear.pin", "No verifier is pinned here whose token this could be.")
        for pin in self._pins:
            try:
                return pin, verify_jws(token, pin.key, limit=_MAX_TOKEN)
            except (Malformed, Untrusted) as other:
                refusal = other
        raise refusal


def _check_result(body: Any, pin: PinnedVerifier, now: int) -> None:
    if not isinstance(body, dict) or body.get("eat_profile") != pin.profile:
        raise Untrusted("ear.profile", "The token is not an attestation result of the profile that is pinned.")
    issued, expires = _seconds(body.get("iat")), _seconds(body.get("exp"))
    early = "nbf" in body and _seconds(body["nbf"]) > now + _LEEWAY
    if early or issued > now + _LEEWAY or now >= expires or expires - issued > pin.most_seconds:
        raise Untrusted("ear.time", "The token is not in its time, or lives longer than the pin allows.")


def _seconds(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise Malformed("ear.form", "The token lacks its times.")
    return value


def _check_binding(body: dict[str, Any], cpu: dict[str, Any], pin: PinnedVerifier, report: bytes) -> None:
    if pin.binding == "eat_nonce":
        bound = body.get("eat_nonce") in (b64url(report), [b64url(report)])  # RFC 9711 §4.1: one, or a list
    else:
        # The very object whose canonical form is hashed into the report: nonce, response key, additional evidence.
        claims = _at(cpu, pin.bound_at)
        bound = isinstance(claims, dict) and sha256(canonical_json(claims)) == report
    if not bound:
        raise Untrusted("ear.binding", "The token is about another attestation than this one.")


def _device(name: str, part: Any, pin: PinnedVerifier) -> Device:
    if not isinstance(part, dict) or not _SUBMODULE.fullmatch(name):
        raise Malformed("ear.form", "A submodule of the token is not a result.")
    status, vector = _either(part, "status"), _either(part, "trustworthiness_vector")
    if status not in (("affirming", "warning") if pin.warnings else ("affirming",)):
        raise Denied("ear.status", "The other verifier's result about a part of the machine is not good enough here.")
    if vector is not None:
        _check_vector(vector, str(status))
    facts: dict[str, Fact] = {"status": str(status), "verifier": pin.name}
    identity = _identity(part, pin) if name == pin.submodule else ""
    measurements = _measurements(part, pin) if name == pin.submodule else {}
    return Device(name, "ear", identity, measurements, facts, hardware=f"as appraised by {pin.name}")


def _either(part: dict[str, Any], claim: str) -> Any:
    """One claim, in whichever of the two spellings the verifier writes."""
    dotted, scored = f"ear.{claim.replace('_', '-')}", f"ear_{claim}"
    if dotted in part and scored in part:
        raise Malformed("ear.form", "A submodule says the same in two spellings.")
    return part.get(dotted, part.get(scored))


def _check_vector(vector: Any, status: str) -> None:
    """draft-ietf-rats-ear: a status may be worse than its worst claim, and never better."""
    values: list[Any] = list(vector.values()) if isinstance(vector, dict) else [None]
    if not all(isinstance(v, int) and not isinstance(v, bool) and -128 <= v <= 127 for v in values):
        raise Malformed("ear.form", "A trustworthiness vector of the token is not one.")
    bad = 32 if status == "affirming" else 96
    if any(v >= bad or v < 0 for v in values):
        raise Untrusted("ear.vector", "A submodule's status is better than its own trustworthiness claims.")


def _at(value: Any, pointer: str) -> Any:
    """RFC 6901, through objects only. None where there is nothing."""
    for part in pointer.split("/")[1:]:
        if not isinstance(value, dict):
            return None
        value = value.get(part.replace("~1", "/").replace("~0", "~"))
    return value


def _measurements(cpu: dict[str, Any], pin: PinnedVerifier) -> dict[str, str]:
    return {name: _hex(_at(cpu, place)) for name, place in pin.measurements.items()}


def _identity(cpu: dict[str, Any], pin: PinnedVerifier) -> str:
    return _hex(_at(cpu, pin.identity)) if pin.identity else ""


def _hex(value: Any) -> str:
    if not isinstance(value, str) or not _HEX.fullmatch(value):
        raise Untrusted("ear.claim", "A value that the pin points to is not there, or is no digest in lower-case hex.")
    return value


def _claims(cpu: dict[str, Any], pin: PinnedVerifier, log: OpenedLog, devices: list[Device]) -> Claims:
    measured, identity = _measurements(cpu, pin), _identity(cpu, pin)
    gpus = sum(device.name.startswith("gpu") for device in devices)
    if pin.level == "gpu-tee" and (gpus == 0 or gpus != log.gpus):
        raise Untrusted("ear.gpus", "The token is about another number of GPUs than the sandbox was given.")
    return Claims(
        tee=ExternalVerifier.tee,
        level=pin.level,
        # Whose word it is belongs to the name: the same machine under another verifier is another attester.
        attester=sha256(frame("cloister/ear-attester/v1", pin.key.fingerprint, pin.tee, identity)).hex(),
        measurement=log.launch["measurement"],
        agent=guest_digest(pin.tee, measured),
        instance=log.launch["instance"],
        contract=log.launch["contract"],
        job=log.launch["job"],
        hardware=f"{pin.tee}, as appraised by {pin.name}",
        notes=(f"This broker did not see the hardware's evidence; it rests on the word of {pin.name}.",),
        devices=tuple(devices),
        gpus=log.gpus,
        tenancy=log.tenancy,
    )
