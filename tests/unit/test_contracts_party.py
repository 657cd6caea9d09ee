"""Cards: what they say, what replaces them, and how one is declared lost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.contracts import (
    CARD_TYPE,
    Card,
    PartyKeys,
    check_compromise,
    compromise_statement,
    log_origin,
    make_card,
    read_card,
    replace_card,
)
from cloister.crypto import Envelope, SigningKey, sign_document
from cloister.errors import CloisterError, Denied, Malformed, Untrusted

NOW = 1_790_000_000
KEYS = {role: SigningKey(role.encode().ljust(32, b".")) for role in ("signing", "status", "receipt", "tls")}
NEW = SigningKey(b"new".ljust(32))
THIEF = SigningKey(b"thief".ljust(32))
PUBLIC = PartyKeys(*(KEYS[role].public for role in ("signing", "status", "receipt", "tls")), bytes(1216))


def card(serial: int = 1, *, name: str = "hospital", part_of: str | None = None, key: SigningKey | None = None,
         also: SigningKey | None = None) -> Card:  # fmt: skip
    signer = key or KEYS["signing"]
    keys = replace(PUBLIC, signing=signer.public)
    return make_card(name, keys, (signer, also) if also else (signer,), serial=serial, issued=NOW, part_of=part_of)


def test_a_card_says_who_and_is_read_back() -> None:
    made = card(part_of="clinic")
    read = read_card(Envelope.from_bytes(made.envelope.to_bytes()))
    assert read == made
    assert (read.kind, read.part_of, read.serial, read.keys) == ("team", "clinic", 1, PUBLIC)
    assert read.log_origin == log_origin("hospital") == "cloister.invalid/log/hospital"
    assert card().kind == "organization"
    assert len(read.fingerprint) == 39


def test_the_fingerprint_names_everything_on_the_card() -> None:
    assert len({card().fingerprint, card(2).fingerprint, card(name="lab").fingerprint, card(key=NEW).fingerprint}) == 4


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"kind": "team"}, "party.kind"),
        ({"part_of": "clinic"}, "party.kind"),
        ({"kind": "person"}, "form.field"),
        ({"serial": 0}, "form.field"),
        ({"name": "Hospital"}, "form.field"),
        ({"name": ""}, "form.field"),
        ({"part_of": "Not A Name", "kind": "team"}, "form.field"),
        ({"type": "party/v2"}, "form.field"),
        ({"surprise": 1}, "form.unknown"),
        ({"keys": {}}, "form.missing"),
        ({"keys": {**PUBLIC.document(), "extra": 1}}, "form.unknown"),
        ({"keys": {**PUBLIC.document(), "status": PUBLIC.signing.hex()}}, "party.keys"),
        ({"keys": {**PUBLIC.document(), "hpke": "AAAA"}}, "party.keys"),
        ({"keys": {**PUBLIC.document(), "tls": "00"}}, "form.field"),
    ],
)
def test_cards_of_another_form(changes: dict[str, Any], code: str) -> None:
    body = {**card().envelope.document(), **changes}
    with pytest.raises(Malformed) as refused:
        read_card(sign_document(CARD_TYPE, body, KEYS["signing"]))
    assert refused.value.code == code


def test_a_card_must_be_signed_by_the_key_that_it_carries() -> None:
    body = card().envelope.document()
    for envelope in (sign_document(CARD_TYPE, body), sign_document(CARD_TYPE, body, THIEF)):
        with pytest.raises(Untrusted) as refused:
            read_card(envelope)
        assert refused.value.code == "dsse.unsigned"
    with pytest.raises(Untrusted) as refused:
        read_card(sign_document("application/other", body, KEYS["signing"]))
    assert refused.value.code == "dsse.type"


def test_a_successor_is_signed_by_the_pinned_key() -> None:
    pinned = card()
    successor = card(2, key=NEW, also=KEYS["signing"])
    assert replace_card(pinned, successor) is successor
    assert replace_card(pinned, card()) is pinned


@pytest.mark.parametrize(
    ("offered", "code"),
    [
        (card(2, key=NEW), "party.rotation"),
        (card(2, key=NEW, also=THIEF), "party.rotation"),
        (card(2, name="lab"), "party.other"),
        (card(2, part_of="clinic"), "party.other"),
        (card(1, key=NEW, also=KEYS["signing"]), "party.rollback"),
    ],
)
def test_what_does_not_replace_a_pin(offered: Card, code: str) -> None:
    with pytest.raises(Untrusted) as refused:
        replace_card(card(), offered)
    assert refused.value.code == code


@pytest.mark.parametrize("role", ["signing", "status"])
def test_a_party_declares_its_keys_lost(role: str) -> None:
    check_compromise(compromise_statement(card(), KEYS[role], now=NOW), card())


@pytest.mark.parametrize(
    ("statement", "error", "code"),
    [
        (compromise_statement(card(), THIEF, now=NOW), Untrusted, "dsse.unsigned"),
        (compromise_statement(card(), KEYS["tls"], now=NOW), Untrusted, "dsse.unsigned"),
        (compromise_statement(card(2), KEYS["signing"], now=NOW), Denied, "party.compromise"),
        (compromise_statement(card(name="lab"), KEYS["signing"], now=NOW), Denied, "party.compromise"),
    ],
)
def test_a_statement_of_compromise_about_something_else(
    statement: Envelope, error: type[CloisterError], code: str
) -> None:
    with pytest.raises(error) as refused:
        check_compromise(statement, card())
    assert refused.value.code == code


@settings(max_examples=150, deadline=None)
@given(st.integers(min_value=0), st.integers(min_value=0, max_value=7))
def test_one_flipped_bit_anywhere_is_noticed(place: int, bit: int) -> None:
    made = card().envelope
    payload = bytearray(made.payload)
    payload[place % len(payload)] ^= 1 << bit
    with pytest.raises(CloisterError):
        read_card(Envelope(made.payload_type, bytes(payload), made.signatures))
