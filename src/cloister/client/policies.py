"""An owner's appraisal policy: set it, look at it, and try one on evidence that was appraised before."""

from __future__ import annotations

from typing import Any

from ..attestation import LEVELS, Claims
from ..attestation.models import MAX_DEVICES, Device
from ..attestation.policy import AppraisalPolicy, PolicyDenied, built_in_rules, read_policy
from ..crypto import canonical_json, parse_canonical, parse_json, unb64url
from ..errors import Malformed
from ..fields import Fields
from .supervisor import Home

__all__ = ["check_policy", "describe_policy", "explain_policy", "set_policy", "show_policy"]

_LIMIT = 1 << 20


def _policy(text: bytes) -> AppraisalPolicy:
    """From a file that a person wrote: any layout of JSON; what it says is as strict as ever."""
    return read_policy(canonical_json(parse_json(text, limit=_LIMIT)))


def describe_policy(policy: AppraisalPolicy) -> list[tuple[str, str]]:
    """(platform, rule in words) rows; those that are built in say so."""
    rows = [("name", policy.name), ("level", f"at least {policy.least_level}")]
    for platform, rules in sorted(policy.platforms.items()):
        rows += [(platform, rule.words()) for rule in rules] or [(platform, "anything")]
    if policy.default:
        rows += [(p, f"{rule.words()} (built in)") for p, rules in sorted(built_in_rules().items()) for rule in rules]
    return rows


def explain_policy(text: bytes) -> dict[str, Any]:
    """A policy file in words, before it is set. Raises Malformed."""
    policy = _policy(text)
    return {"digest": policy.digest, "policy": policy.document(), "rules": _rows(policy)}


def set_policy(home: Home, party: str, text: bytes) -> dict[str, Any]:
    """Make this the party's policy; its broker applies it to every release and renewal from now on."""
    policy = _policy(text)
    answer = home.agent(party).set_policy(canonical_json(policy.document()).decode())
    return {**answer, "party": party, "rules": _rows(policy)}


def show_policy(home: Home, party: str) -> dict[str, Any]:
    answer = home.agent(party).policy()
    policy = read_policy(canonical_json(answer["policy"]))
    return {**answer, "party": party, "rules": _rows(policy)}


def _rows(policy: AppraisalPolicy) -> list[dict[str, str]]:
    return [{"about": about, "rule": rule} for about, rule in describe_policy(policy)]


def check_policy(text: bytes, evidence: bytes) -> dict[str, Any]:
    """What a policy says about evidence that a broker appraised: an attestation result token, or
    ``{"level", "tee", "devices": [...]}`` as tools print it. Raises Malformed for anything else.

    A trial: whether the token's signature holds is not looked at, because nothing is given out for it.
    """
    policy, claims = _policy(text), _claims(evidence)
    findings: list[dict[str, str]] = []
    code = None
    try:
        policy.check(claims)
    except PolicyDenied as refusal:
        code = refusal.code
        findings = [dict(vars(finding)) for finding in refusal.findings]
    return {
        "accepted": code is None,
        "code": code,
        "devices": [device.name for device in claims.devices],
        "digest": policy.digest,
        "findings": findings,
        "level": claims.level,
    }


def _claims(evidence: bytes) -> Claims:
    data = evidence.strip()
    if not data.startswith(b"{"):
        return _from_token(data)
    f = Fields(parse_json(data, limit=_LIMIT), "evidence")
    level, tee = f.text("level", choices=LEVELS), f.text("tee", limit=32)
    devices = f.items("devices", _device, limit=MAX_DEVICES)
    return _made(level, tee, devices)


def _from_token(token: bytes) -> Claims:
    parts = token.split(b".")
    try:
        body = parse_canonical(unb64url(parts[1].decode("ascii")), limit=_LIMIT) if len(parts) == 3 else None
    except UnicodeDecodeError:
        body = None
    modules = Fields(body, "token").raw("submods") if isinstance(body, dict) else None
    if not isinstance(modules, dict) or not 0 < len(modules) <= MAX_DEVICES + 1:
        raise Malformed("policy.evidence", "The evidence is neither an attestation result token nor a JSON object.")
    devices, level, tee = [], "none", "unknown"
    for name, module in modules.items():
        said = Fields(module, "submodule").raw("ear.veraison.annotated-evidence")
        if name == "cpu0":
            f = Fields(said, "appraised evidence")
            level, tee = f.text("level", choices=LEVELS), f.text("tee", limit=32)
            said = f.raw("device", optional=True)
        if said is not None:
            devices.append(_device(said))
    return _made(level, tee, tuple(devices))


def _made(level: Any, tee: str, devices: tuple[Device, ...]) -> Claims:
    return Claims(tee, level, "", "", "", "", "", "", devices=devices)


def _device(value: Any) -> Device:
    f = Fields(value, "device")
    device = Device(
        name=f.text("name", limit=64),
        tee=f.text("tee", limit=32),
        identity=f.text("identity", limit=256),
        measurements=f.mapping("measurements", _measurement, limit=256),
        facts=f.mapping("facts", _fact, limit=1024),
        hardware=f.text("hardware"),
        notes=f.texts("notes"),
    )
    f.done()
    return device


def _measurement(name: str, value: Any) -> str:
    return Fields({"v": value}, f"measurement {name[:64]}").text("v", limit=256)


def _fact(_: str, value: Any) -> bool | int | str | list[str]:
    if isinstance(value, bool | int | str):
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    raise Malformed("policy.evidence", "A fact is neither text, a number, true or false, nor a list of texts.")
