"""Every event that Cloister emits, validated against the OCSF schema itself."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cloister.audit import KINDS, encode_event, event, parse_event
from cloister.crypto import parse_canonical
from cloister.errors import Malformed, Misuse

NOW = 1_790_000_000


class Schema:
    """As much of an OCSF validator as our events need: attributes, requirements, types, enums, constraints."""

    def __init__(self, root: Path) -> None:
        dictionary = json.loads((root / "dictionary.json").read_text())
        self.version = json.loads((root / "version.json").read_text())["version"]
        self.attributes = dictionary["attributes"]
        self.types = dictionary["types"]["attributes"]
        self.categories = json.loads((root / "categories.json").read_text())["attributes"]
        self.objects = {o["name"]: o for o in map(_load, (root / "objects").glob("*.json")) if "name" in o}
        self.events = {e["name"]: e for e in map(_load, (root / "events").rglob("*.json")) if "name" in e}
        self.by_uid = {
            self.categories[self._category(e)]["uid"] * 1000 + e["uid"]: e
            for e in self.events.values()
            if "uid" in e and self._category(e) in self.categories
        }

    def _category(self, definition: dict[str, Any]) -> str:
        while "category" not in definition and "extends" in definition:
            definition = self.events[definition["extends"]]
        return str(definition.get("category", "other"))

    def _resolve(self, kinds: dict[str, Any], definition: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """(attributes, constraints), inherited ones included; profiles (``$include``) are not in use here."""
        parent = kinds.get(definition.get("extends", ""))
        attributes, constraints = self._resolve(kinds, parent) if parent else ({}, {})
        for name, own in definition["attributes"].items():
            if name != "$include":
                base = attributes.get(name, {})
                attributes[name] = {**base, **own, "enum": {**base.get("enum", {}), **own.get("enum", {})}}
        return attributes, {**constraints, **definition.get("constraints", {})}

    def check_event(self, body: dict[str, Any]) -> None:
        definition = self.by_uid[body["class_uid"]]
        category = self.categories[self._category(definition)]
        assert body["category_uid"] == category["uid"]
        assert body["class_name"] == definition["caption"]
        assert body["type_uid"] == body["class_uid"] * 100 + body["activity_id"]
        assert "profiles" not in body["metadata"]
        attributes, constraints = self._resolve(self.events, definition)
        # These two take their values from where the class stands, not from a list of their own.
        for name in ("class_uid", "category_uid"):
            attributes[name] = {**attributes[name], "enum": {}}
        self._check(body, attributes, constraints, definition["name"])

    def _check(self, body: dict[str, Any], attributes: dict[str, Any], constraints: dict[str, Any], at: str) -> None:
        required = {n for n, a in attributes.items() if a.get("requirement") == "required"}
        assert required <= set(body), f"{at} lacks {required - set(body)}"
        assert set(body) <= set(attributes), f"{at} has unknown {set(body) - set(attributes)}"
        assert set(constraints) <= {"at_least_one", "just_one"}
        if "at_least_one" in constraints:
            assert any(name in body for name in constraints["at_least_one"]), at
        if "just_one" in constraints:
            assert sum(name in body for name in constraints["just_one"]) == 1, at
        for name, item in body.items():
            self._check_attribute(body, name, item, attributes[name], f"{at}.{name}")

    def _check_attribute(self, body: dict[str, Any], name: str, item: Any, own: dict[str, Any], at: str) -> None:
        entry = {**self.attributes[name], **{k: v for k, v in own.items() if k != "enum"}}
        assert "@deprecated" not in entry, at
        enum = {**self.attributes[name].get("enum", {}), **own.get("enum", {})}
        items = item if entry.get("is_array") else [item]
        assert isinstance(items, list), at
        for each in items:
            self._check_value(entry["type"], each, at)
            if enum:
                assert str(each) in enum, f"{at}: {each} is not in the enum"
        sibling = entry.get("sibling")
        if enum and sibling in body and str(item) != "99":
            assert body[sibling] == enum[str(item)]["caption"], f"{at}: the label differs from the number"

    def _check_value(self, kind: str, item: Any, at: str) -> None:
        if kind == "object":  # free form, as ``unmapped``
            assert isinstance(item, dict), at
        elif kind in self.types:
            base = self.types[kind].get("type", kind)
            wanted = {"string_t": str, "integer_t": int, "long_t": int, "boolean_t": bool}[base]
            assert type(item) is wanted, at
            if "regex" in self.types[kind]:
                assert re.search(self.types[kind]["regex"], item), at
        else:
            attributes, constraints = self._resolve(self.objects, self.objects[kind])
            self._check(item, attributes, constraints, at)


def _load(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


@pytest.fixture(scope="module")
def schema(shared: Path) -> Schema:
    return Schema(shared / "vectors" / "ocsf")


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("outcome", ["success", "failure"])
def test_every_kind_is_a_valid_ocsf_event(schema: Schema, kind: str, outcome: Any) -> None:
    body = event(kind, actor="hospital", target="ab" * 32, outcome=outcome, details={"code": "x.y", "step": 3}, now=NOW)
    schema.check_event(body)
    assert body["metadata"]["version"] == schema.version
    assert body["time"] == NOW * 1000


def test_the_validator_itself_refuses(schema: Schema) -> None:
    good = event("output.unwrapped", actor="a", target="t", now=NOW)
    for change in (
        {"surprise": 1},
        {"severity_id": 77},
        {"severity": "High"},
        {"time": "now"},
        {"actor": {}},
        {"src_endpoint": {}},
        {"activity_id": 9, "type_uid": 600309},
    ):
        with pytest.raises(AssertionError):
            schema.check_event(good | change)
    with pytest.raises(AssertionError):
        schema.check_event({k: v for k, v in good.items() if k != "api"})


def test_the_kinds_that_others_rely_on() -> None:
    assert set(KINDS) == {
        "org.created", "party.pinned", "party.key_rotated", "party.compromised", "asset.sealed", "contract.signed",
        "contract.revoked", "attest.ok", "attest.refused", "key.released", "key.refused", "lease.renewed",
        "lease.refused", "checkpoint.recorded", "permit.issued", "permit.refused", "output.unwrapped",
        "broker.started", "state.recovered", "state.migrated",
        "asset.opened", "asset.retained", "asset.held", "asset.unheld", "budget.set",
        "asset.reencrypting", "asset.shredded", "asset.expired", "kek.rotation", "kek.rewrapped", "kek.destroyed",
        "kek.scheduled", "checkpoints.shredded", "vault.split", "vault.rekeyed", "vault.swept",
        "attester.enrolled", "attester.refused", "attester.removed",
        "policy.set", "measurement.approved", "measurement.revoked", "release.trusted", "release.known",
    }  # fmt: skip


def test_facts_come_back() -> None:
    body = event("key.refused", actor="bank", target="job", outcome="failure", details={"code": "a.b", "n": 1}, now=NOW)
    entry = encode_event(body)
    assert parse_canonical(entry) == body
    facts = parse_event(entry)
    assert (facts.kind, facts.actor, facts.target, facts.outcome) == ("key.refused", "bank", "job", "failure")
    assert (dict(facts.details), facts.time) == ({"code": "a.b", "n": 1}, NOW)
    assert body["status_code"] == "a.b"
    assert body["severity_id"] == 3


def test_a_leaf_cannot_be_guessed() -> None:
    one, two = (encode_event(event("attest.ok", actor="a", target="t", now=NOW)) for _ in range(2))
    assert one != two
    salt = parse_canonical(one)["unmapped"]["salt"]
    assert len(bytes.fromhex(salt)) == 16


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"kind": "no.such"}, "event.kind"),
        ({"outcome": "maybe"}, "event.outcome"),
        ({"now": 1.5}, "event.time"),
        ({"now": NOW * 1000}, "event.time"),  # milliseconds by mistake
        ({"now": -1}, "event.time"),
        ({"actor": ""}, "event.who"),
        ({"target": ""}, "event.who"),
        ({"actor": 5}, "event.details"),
        ({"details": {"x": 1.5}}, "event.details"),
        ({"details": {"x": True}}, "event.details"),
        ({"details": {"x": "y" * 8193}}, "event.details"),
        ({"details": {str(i): 1 for i in range(65)}}, "event.details"),
    ],
)
def test_misuse_is_refused(change: dict[str, Any], code: str) -> None:
    arguments: dict[str, Any] = {"kind": "attest.ok", "actor": "a", "target": "t", "now": NOW} | change
    with pytest.raises(Misuse) as caught:
        event(arguments.pop("kind"), **arguments)
    assert caught.value.code == code


def test_an_event_that_fits_no_entry_is_refused() -> None:
    body = event("attest.ok", actor="a", target="t", details={str(i): "x" * 8000 for i in range(9)}, now=NOW)
    with pytest.raises(Misuse, match="too long for a log entry"):
        encode_event(body)


@pytest.mark.parametrize(
    "change",
    [
        {"unmapped": 5},
        {"unmapped": []},
        {"unmapped": {"kind": "attest.ok"}},
        {"time": NOW * 1000 + 1},
        {"time": "x"},
        {"status_id": 2},
        {"metadata": {"event_code": "key.released"}},
        {"metadata": None},
    ],
)
def test_what_is_not_our_event_is_malformed(change: dict[str, Any]) -> None:
    body = event("attest.ok", actor="a", target="t", now=NOW)
    with pytest.raises(Malformed, match="not a Cloister audit event"):
        parse_event(encode_event(body | change))


def test_facts_of_the_wrong_form_are_malformed() -> None:
    body = event("attest.ok", actor="a", target="t", now=NOW)
    for name, wrong in (("salt", "00"), ("salt", "zz"), ("details", []), ("outcome", []), ("extra", 1), ("actor", 1)):
        changed = body | {"unmapped": body["unmapped"] | {name: wrong}}
        with pytest.raises(Malformed):
            parse_event(encode_event(changed))
    with pytest.raises(Malformed):
        parse_event(b"[]")
    with pytest.raises(Malformed):
        parse_event(b"not json")
