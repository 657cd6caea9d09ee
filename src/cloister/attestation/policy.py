"""An owner's appraisal policy: what it asks of hardware beyond what a contract names. Pure; one engine for all.

There is no global policy: each owner's broker holds its own, and applies it to every release and renewal. A policy can
only refuse. What the contract names (workload, agent, level, pinned devices) is checked besides, never instead.

A policy is one canonical JSON object, form ``appraisal-policy/v1`` (docs/spec/appraisal.md)::

    {"default": true, "least_level": "cpu-tee", "name": "two sites", "type": "appraisal-policy/v1",
     "platforms": {"snp": [{"about": "fact tcb.snp", "at_least": 22, "where": {"product": "genoa"}},
                           {"about": "identity", "one_of": ["…"]}]}}
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from ..crypto import canonical_json, parse_canonical, sha256
from ..errors import Denied, Malformed
from ..fields import Fields
from .models import LEVELS, Claims, Device, Fact, level_rank

__all__ = ["DEFAULT_POLICY", "AppraisalPolicy", "Finding", "PolicyDenied", "Rule", "built_in_rules", "read_policy"]

MAX_POLICY: Final = 128 * 1024
_MAX_PLATFORMS, _MAX_RULES, _MAX_VALUES, _MAX_WHERE = 16, 256, 4096, 4
_FOUND, _RULE = 200, 1024  # characters of a found value and of a rule in a finding, which goes to the owner's log

_TYPE = "appraisal-policy/v1"
_PLATFORM = re.compile(r"[a-z][a-z0-9-]{0,31}")
_ABOUT = re.compile(r"identity|(?:fact|measurement) [a-z0-9][a-zA-Z0-9._-]{0,63}")
_HEX = re.compile(r"(?:[0-9a-f]{2}){1,128}")
_TEXT = 256

Scalar: TypeAlias = "bool | int | str"


def _same(found: object, wanted: object) -> bool:
    """Equal and of one type: Python's True is 1, a policy's is not."""
    return type(found) is type(wanted) and found == wanted


def _number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# What a test says of a fact that is there. A fact that is missing passes ``absent`` only.
_TESTS: dict[str, Callable[[Any, Any], bool]] = {
    "is": _same,
    "at_least": lambda found, wanted: _number(found) and found >= wanted,
    "at_most": lambda found, wanted: _number(found) and found <= wanted,
    "one_of": lambda found, wanted: any(_same(found, value) for value in wanted),
    "subset_of": lambda found, wanted: isinstance(found, list) and set(found) <= set(wanted),
    "absent": lambda _found, _wanted: False,
}


@dataclass(frozen=True)
class Rule:
    """One sentence about every device of a platform. ``where``: only about devices that have these facts."""

    about: str
    test: str
    value: Scalar | tuple[Scalar, ...]
    where: tuple[tuple[str, Scalar], ...] = ()

    def words(self) -> str:
        """The rule as people read it, in one line. Whole, however long: this is what an owner consents to."""
        value = self.value if not isinstance(self.value, tuple) else list(self.value)
        where = "".join(f", where {name} is {_shown(wanted)}" for name, wanted in self.where)
        return f"{self.about}: {self.test} {_shown(value)}{where}"

    def check(self, device: Device) -> Finding | None:
        """What is wrong with the device, or None."""
        for name, wanted in self.where:
            if name not in device.facts:
                # Whether the rule is about this device can't be told; then it must not be passed over.
                return self._finding(device, f"no fact {name}")
            if not _same(device.facts[name], wanted):
                return None
        found = self._found(device)
        if found is None:
            return None if self.test == "absent" else self._finding(device, "nothing")
        if _TESTS[self.test](found, self.value):
            return None
        return self._finding(device, _shown(found))

    def _finding(self, device: Device, found: str) -> Finding:
        return Finding(device.name, device.tee, _cut(self.words(), _RULE), _cut(found, _FOUND))

    def _found(self, device: Device) -> Fact | None:
        kind, _, name = self.about.partition(" ")
        if kind == "identity":
            return device.identity or None
        return device.measurements.get(name) if kind == "measurement" else device.facts.get(name)

    def document(self) -> dict[str, Any]:
        value = list(self.value) if isinstance(self.value, tuple) else self.value
        return {"about": self.about, self.test: value, **({"where": dict(self.where)} if self.where else {})}


def _shown(value: object) -> str:
    return canonical_json(value).decode()


def _cut(text: str, limit: int) -> str:
    """What is cut says so."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


@dataclass(frozen=True)
class Finding:
    """Why a policy refuses: the device and its platform, the rule in words, and what was found instead."""

    device: str
    platform: str
    rule: str
    found: str


class PolicyDenied(Denied):
    """An owner's policy refuses. ``findings`` is for the owner's log: neither the message nor the form that crosses a
    socket tells anybody else what the owner's rules are."""

    def __init__(self, code: str, findings: tuple[Finding, ...]) -> None:
        super().__init__(code, "The owner's appraisal policy refuses this platform; the owner's log says why.")
        self.findings = findings

    def log_details(self) -> dict[str, str | int]:
        """For the entry in the owner's log: the first finding, and how many there are."""
        first = self.findings[0]
        return {
            "policy_device": f"{first.device} ({first.platform})",
            "policy_findings": len(self.findings),
            "policy_found": first.found,
            "policy_rule": first.rule,
        }


@dataclass(frozen=True)
class AppraisalPolicy:
    """A policy that was read. ``default``: the built-in rules hold besides, for what is above level none."""

    name: str
    default: bool
    least_level: str
    platforms: Mapping[str, tuple[Rule, ...]]

    def document(self) -> dict[str, Any]:
        return {
            "default": self.default,
            "least_level": self.least_level,
            "name": self.name,
            "platforms": _documents(self.platforms),
            "type": _TYPE,
        }

    @cached_property
    def digest(self) -> str:
        """SHA-256, hex: what the log and the result token name. It covers the built-in rules where those hold, so that
        a version with other ones is seen to judge by another policy."""
        whole = self.document() | ({"built_in": _documents(_BUILT_IN)} if self.default else {})
        return sha256(canonical_json(whole)).hex()

    def check(self, claims: Claims) -> None:
        """Return only if nothing speaks against the claims. Raises PolicyDenied ``policy.level``, ``policy.devices``,
        ``policy.platform``, ``policy.rule``."""
        if level_rank(claims.level) < level_rank(self.least_level):
            level = Finding("all", claims.tee, f"level: at_least {self.least_level}", claims.level)
            raise PolicyDenied("policy.level", (level,))
        proven = claims.level != "none"
        if proven and not claims.devices:
            # A verifier that names no device would pass every rule.
            raise PolicyDenied("policy.devices", (Finding("all", claims.tee, "at least one device", "none"),))
        # At level none there may be nothing to look at; the owner's own rules then find nothing, and refuse.
        devices = claims.devices or (Device("cpu0", claims.tee),)
        if unknown := tuple(self._unknown(devices, proven)):
            raise PolicyDenied("policy.platform", unknown)
        found = (rule.check(device) for device in devices for rule in self._rules(device, proven))
        if findings := tuple(finding for finding in found if finding is not None):
            raise PolicyDenied("policy.rule", findings)

    def _unknown(self, devices: tuple[Device, ...], proven: bool) -> Iterator[Finding]:
        for device in devices:
            built_in = self.default and (not proven or device.tee in _BUILT_IN)
            if device.tee not in self.platforms and not built_in:
                yield Finding(device.name, device.tee, "the policy has rules for the platform", "none")

    def _rules(self, device: Device, proven: bool) -> tuple[Rule, ...]:
        # At level none nothing is proven: whoever accepts that in a contract gets no false comfort from built-in rules.
        built_in = _BUILT_IN.get(device.tee, ()) if self.default and proven else ()
        return self.platforms.get(device.tee, ()) + built_in


def _documents(platforms: Mapping[str, tuple[Rule, ...]]) -> dict[str, Any]:
    return {name: [rule.document() for rule in rules] for name, rules in platforms.items()}


def read_policy(data: bytes) -> AppraisalPolicy:
    """From canonical JSON. Raises Malformed for any other bytes, and for a rule that could never hold or never fail."""
    f = Fields(parse_canonical(data, limit=MAX_POLICY), "appraisal policy")
    f.text("type", choices=(_TYPE,))
    policy = AppraisalPolicy(
        name=f.text("name", limit=200),
        default=f.boolean("default"),
        least_level=f.text("least_level", choices=LEVELS),
        platforms=f.mapping("platforms", _platform, limit=_MAX_PLATFORMS),
    )
    f.done()
    if not policy.name.isprintable():
        raise Malformed("policy.name", "The policy's name is not one line of printable characters.")
    return policy


def _platform(name: str, rules: Any) -> tuple[Rule, ...]:
    if not _PLATFORM.fullmatch(name):
        raise Malformed("policy.form", "A policy's platform is named by lower-case letters, digits and dashes.")
    return Fields({"rules": rules}, f"policy for {name}").items("rules", _rule, limit=_MAX_RULES)


def _rule(value: Any) -> Rule:
    f = Fields(value, "policy's rule")
    about = f.text("about", limit=96)
    tests = [test for test in _TESTS if test in value]
    if not _ABOUT.fullmatch(about) or len(tests) != 1:
        raise Malformed(
            "policy.form", "A rule is about 'identity', 'fact NAME' or 'measurement NAME', with one test: "
            + ", ".join(_TESTS) + ".",
        )  # fmt: skip
    where = () if "where" not in value else tuple(sorted(f.mapping("where", _where, limit=_MAX_WHERE).items()))
    test = tests[0]
    rule = Rule(about, test, _value(about, test, f.raw(test)), where)
    f.done()
    return rule


def _where(_: str, value: Any) -> Scalar:
    return _scalar(value)


def _scalar(value: Any) -> Scalar:
    if isinstance(value, bool | int) or (isinstance(value, str) and len(value) <= _TEXT):
        return value
    raise Malformed("policy.value", "A rule compares with text, whole numbers, true or false.")


def _value(about: str, test: str, value: Any) -> Scalar | tuple[Scalar, ...]:
    if about.partition(" ")[0] != "fact" and test not in ("one_of", "absent"):
        raise Malformed("policy.test", "Identities and measurements are compared with 'one_of' or 'absent' only.")
    if test == "absent" and value is not True:
        raise Malformed("policy.value", "The test 'absent' is written as \"absent\": true.")
    if test in ("at_least", "at_most") and not _number(value):
        raise Malformed("policy.value", "The tests 'at_least' and 'at_most' compare with a whole number.")
    if test not in ("one_of", "subset_of"):
        return _scalar(value)
    if not isinstance(value, list) or len(value) > _MAX_VALUES:
        raise Malformed("policy.value", f"The tests 'one_of' and 'subset_of' have a list of at most {_MAX_VALUES}.")
    values = tuple(_scalar(item) for item in value)
    hexes = about.partition(" ")[0] != "fact"
    if hexes and not all(isinstance(v, str) and _HEX.fullmatch(v) for v in values):
        raise Malformed("policy.value", "Identities and measurements are compared with lower-case hex.")
    if test == "subset_of" and not all(isinstance(v, str) for v in values):
        raise Malformed("policy.value", "The test 'subset_of' has a list of texts.")
    return values


def _is(name: str, value: Scalar) -> Rule:
    return Rule(f"fact {name}", "is", value)


_TCB = Rule("fact tcb_status", "one_of", ("UpToDate", "SWHardeningNeeded"))

# What every owner wants until it says otherwise. docs/spec/appraisal.md gives the reasons.
_BUILT_IN: Final[dict[str, tuple[Rule, ...]]] = {
    "ear": (Rule("fact status", "one_of", ("affirming", "warning")),),
    "nvidia": (_is("measurements_match", True), _is("confidential", True), _is("debug", False)),
    "sgx": (_is("debug", False), _TCB),
    "snp": (_is("debug", False),),
    # The host chooses this attribute, and no measurement covers it: without it the host can inject exceptions.
    "tdx": (_is("debug", False), _is("attributes.sept_ve_disable", True), _TCB),
    "tpm": (_is("secure_boot", True),),
}


def built_in_rules() -> Mapping[str, tuple[Rule, ...]]:
    """By platform; they hold above level none where a policy keeps them."""
    return MappingProxyType(_BUILT_IN)


DEFAULT_POLICY: Final = AppraisalPolicy(name="built in", default=True, least_level="none", platforms={})
"""The policy of an owner that has set none: the built-in rules."""
