"""``contract.yaml``: the form that people write, checked and turned into a contract's fields. Pure."""

from __future__ import annotations

import datetime
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..contracts.recipe import read_yaml
from ..errors import Malformed, Misuse

__all__ = ["Draft", "read_draft"]

_KEYS = (
    "name", "parties", "assets", "purpose", "recipes", "runs", "outputs", "gates", "unbounded_memorization",
    "telemetry", "lease_seconds", "assurance", "regions", "expires", "platform", "trustees", "general",
)  # fmt: skip
_OPTIONAL: dict[str, Any] = {
    "gates": [],
    "unbounded_memorization": [],
    "telemetry": [],
    "lease_seconds": "30",
    "regions": [],
    "platform": "this",
    "trustees": {},
    "general": [],
}
_RECIPES = ("tasks", "methods", "max_epochs", "privacy")
_PRIVACY = ("max_epsilon", "max_delta", "unit")
_OUTPUT = ("name", "form", "recipients")
_GATE = ("metric", "better_than_base_by")
_PLATFORM = ("measurements", "agents", "attesters", "pcrs", "witness_quorum", "tenancy", "devices", "stock_guests")
_TRUSTEE = ("address", "tls_pin", "repository", "unbound")
_DAYS = re.compile(r"([1-9][0-9]{0,4})d")


@dataclass(frozen=True)
class Draft:
    """What the file says. ``platform`` is None for "this": the values that the node claims are filled in. ``general``:
    datasets of general text, beside the ``assets``."""

    name: str
    parties: tuple[str, ...]
    assets: tuple[str, ...]
    general: tuple[str, ...]
    fields: dict[str, Any]
    platform: dict[str, Any] | None
    assurance: str
    regions: tuple[str, ...]

    def platform_document(self, claim: Mapping[str, Any] | None) -> dict[str, Any]:
        """The contract's platform; raises Misuse when "this" node has not said what it is."""
        least = 0 if self.assurance == "none" else 1
        common = {"assurance": self.assurance, "regions": list(self.regions)}
        if self.platform is not None:
            return {**common, "pcrs": {}, "witness_quorum": least, **self.platform}
        if claim is None:
            raise Misuse(
                "contract.platform", "The node has not reported what it is yet; wait for it, or name a platform."
            )
        named = {f"{what}s": [str(claim[what])] for what in ("measurement", "agent", "attester")}
        return {**common, **named, "pcrs": {}, "witness_quorum": least}


def read_draft(text: str | bytes, *, now: int) -> Draft:
    """Parse ``contract.yaml``. Raises Misuse with the nearest valid key, Malformed for what isn't plain YAML."""
    try:
        given = read_yaml(text)
    except Malformed as error:
        message = error.message.replace("A recipe", "A contract file").replace("recipe", "contract file")
        raise Malformed(error.code.replace("recipe", "contract"), message) from None
    _known(given, _KEYS, "contract file")
    found = {**_OPTIONAL, **{k: v for k, v in given.items() if v is not None}}
    for key in _KEYS:
        if key not in found and key != "assurance":
            raise Misuse("contract.missing", f"The contract file lacks '{key}'; add it.", key=key)
    platform = found["platform"]
    fields: dict[str, Any] = {
        "expires": _expires(found["expires"], now),
        "gates": [_entry(g, _GATE, "gates") for g in _list(found["gates"], "gates")],
        "lease_seconds": _integer(found["lease_seconds"], "lease_seconds"),
        "name": _text(found["name"], "name"),
        "not_before": now,
        "outputs": [_output(o) for o in _list(found["outputs"], "outputs")],
        "purpose": _text(found["purpose"], "purpose"),
        "recipes": _recipes(found["recipes"]),
        "runs": _integer(found["runs"], "runs"),
        "telemetry": list(_texts(found["telemetry"], "telemetry")),
        "unbounded_memorization": list(_texts(found["unbounded_memorization"], "unbounded_memorization")),
    }
    if found["trustees"]:
        fields["trustees"] = _trustees(found["trustees"])
    return Draft(
        name=_text(found["name"], "name"),
        parties=_texts(found["parties"], "parties"),
        assets=_texts(found["assets"], "assets"),
        general=_texts(found["general"], "general"),
        fields=fields,
        platform=None if platform == "this" else _platform(platform),
        assurance=_text(found.get("assurance", "none"), "assurance"),
        regions=_texts(found["regions"], "regions"),
    )


def _known(given: Mapping[str, Any], valid: tuple[str, ...], what: str) -> None:
    for key in given:
        if key not in valid:
            near = difflib.get_close_matches(key[:64], valid, n=1, cutoff=0.0)[0]
            shown = key if re.fullmatch(r"[\w.-]{1,40}", key) else "(not a plain name)"
            raise Misuse(
                "contract.key", f"The {what} has no key '{shown}'; the nearest valid key is '{near}'.", key=shown
            )


def _bad(key: str, expected: str) -> Misuse:
    return Misuse("contract.value", f"The contract file's '{key}' must be {expected}.", key=key)


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str) or not value:
        raise _bad(key, "plain text")
    return value


def _integer(value: Any, key: str) -> int:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9]{1,9}", value):
        raise _bad(key, "a whole number")
    return int(value)


def _boolean(value: Any, key: str) -> bool:
    if value not in ("true", "false"):
        raise _bad(key, "true or false")
    return bool(value == "true")


def _list(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list):
        raise _bad(key, "a list")
    return value


def _texts(value: Any, key: str) -> tuple[str, ...]:
    return tuple(_text(item, key) for item in _list(value, key))


def _entry(value: Any, keys: tuple[str, ...], what: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise _bad(what, "a list of entries with " + " and ".join(keys))
    _known(value, keys, f"contract file's {what} entry")
    return {key: _text(value.get(key), f"{what}.{key}") for key in keys}


def _output(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _bad("outputs", "a list of entries with name, form and recipients")
    _known(value, _OUTPUT, "contract file's outputs entry")
    recipients = list(_texts(value.get("recipients"), "outputs.recipients"))
    return {k: _text(value.get(k), f"outputs.{k}") for k in ("name", "form")} | {"recipients": recipients}


def _recipes(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _bad("recipes", "a mapping of tasks, methods and max_epochs")
    _known(value, _RECIPES, "contract file's recipes")
    lists = {key: list(_texts(value.get(key), f"recipes.{key}")) for key in ("tasks", "methods")}
    out = {**lists, "max_epochs": _integer(value.get("max_epochs"), "recipes.max_epochs")}
    if value.get("privacy") is None:
        return out
    privacy = value["privacy"]
    if not isinstance(privacy, dict):
        raise _bad("recipes.privacy", "a mapping of max_epsilon, max_delta and unit")
    _known(privacy, _PRIVACY, "contract file's recipes.privacy")
    return {**out, "privacy": {key: _text(privacy.get(key), f"recipes.privacy.{key}") for key in _PRIVACY}}


def _platform(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _bad("platform", "'this' or a mapping of measurements, agents and attesters")
    _known(value, _PLATFORM, "contract file's platform")
    out: dict[str, Any] = {k: list(_texts(value.get(k), f"platform.{k}")) for k in _PLATFORM[:3]}
    if value.get("pcrs") is not None:
        if not isinstance(value["pcrs"], dict):
            raise _bad("platform.pcrs", "a mapping of PCR numbers to digests")
        out["pcrs"] = {k: _text(v, "platform.pcrs") for k, v in value["pcrs"].items()}
    if value.get("witness_quorum") is not None:
        out["witness_quorum"] = _integer(value["witness_quorum"], "platform.witness_quorum")
    if value.get("tenancy") is not None:
        out["tenancy"] = _text(value["tenancy"], "platform.tenancy")
    if value.get("devices") is not None:
        if not isinstance(value["devices"], dict):
            raise _bad("platform.devices", "a mapping of platforms to lists of device ids")
        out["devices"] = {k: list(_texts(v, "platform.devices")) for k, v in value["devices"].items()}
    if value.get("stock_guests") is not None and _boolean(value["stock_guests"], "platform.stock_guests"):
        out["stock_guests"] = True  # where it is false, a contract leaves it out
    return out


def _trustees(value: Any) -> dict[str, Any]:
    """Parties whose keys come from a stock key broker. The contract's own reader checks what an entry has to say."""
    if not isinstance(value, dict):
        raise _bad("trustees", "a mapping of parties to address, tls_pin, repository and unbound")
    out = {}
    for party, entry in value.items():
        if not isinstance(entry, dict):
            raise _bad("trustees", "a mapping of parties to address, tls_pin, repository and unbound")
        _known(entry, _TRUSTEE, "contract file's trustees entry")
        texts = {key: _text(entry.get(key), f"trustees.{key}") for key in _TRUSTEE[:-1]}
        out[party] = {**texts, "unbound": _boolean(entry.get("unbound"), "trustees.unbound")}
    return out


def _expires(value: Any, now: int) -> int:
    """A day (its first second, UTC) or a number of days from now."""
    text = _text(value, "expires")
    if days := _DAYS.fullmatch(text):
        return now + int(days[1]) * 86_400
    try:
        day = datetime.date.fromisoformat(text)
    except ValueError:
        raise _bad("expires", "a day such as 2027-11-20, or a time from now such as 90d") from None
    return int(datetime.datetime(day.year, day.month, day.day, tzinfo=datetime.UTC).timestamp())
