"""The party's own card, its pins and its assets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cloister.contracts import Card, make_card, replace_card
from cloister.crypto import Envelope, SigningKey, random_bytes
from cloister.errors import CloisterError, Denied, Malformed, Misuse, Untrusted
from cloister.sealed import Manifest, dek_commitment
from tests.broker_world import NOW, World, nothing_granted

pytest_plugins = ["tests.broker_fixtures"]


def text(card: Card) -> str:
    return card.envelope.to_bytes().decode()


def stranger(name: str = "mallory", serial: int = 1, key: SigningKey | None = None) -> tuple[Card, SigningKey]:
    signing = key or SigningKey(name.encode().ljust(32, b"s"))
    others = [SigningKey(name.encode().ljust(32, filler)).public for filler in (b"1", b"2", b"3")]
    from cloister.contracts import PartyKeys

    keys = PartyKeys(signing.public, *others, bytes(1216))
    return make_card(name, keys, (signing,), serial=serial, issued=NOW), signing


def test_a_first_pin_needs_the_compared_fingerprint(calm: World) -> None:
    card, _ = stranger()
    parties = calm.hospital.broker.core.parties
    for fingerprint in (None, "", "0000", stranger("other")[0].fingerprint):
        with nothing_granted(calm.hospital), pytest.raises(Denied) as refused:
            parties.pin(text(card), fingerprint)
        assert refused.value.code == "pin.fingerprint"
    assert "mallory" not in parties.pinned()


def test_pins_follow_signed_successors_only(world: World) -> None:
    parties = world.hospital.broker.core.parties
    card, old = stranger()
    parties.pin(text(card), card.fingerprint)
    with nothing_granted(world.hospital):
        assert parties.pin(text(card), None) == card
    new = SigningKey.generate()
    keys = replace(card.keys, signing=new.public)
    successor = make_card("mallory", keys, (new, old), serial=2, issued=NOW)
    thief = SigningKey.generate()
    unsigned = make_card("mallory", replace(card.keys, signing=thief.public), (thief,), serial=3, issued=NOW)
    parties.pin(text(successor), None)
    assert parties.pinned()["mallory"] == successor
    for offered, code in ((unsigned, "party.rotation"), (card, "party.rollback")):
        # Not even with a compared fingerprint: whoever still has the pinned key can sign the next card with it.
        with nothing_granted(world.hospital), pytest.raises(Untrusted) as refused:
            parties.pin(text(offered), offered.fingerprint)
        assert refused.value.code == code


def test_after_a_compromise_only_a_new_key_with_a_compared_fingerprint_helps(world: World) -> None:
    parties = world.hospital.broker.core.parties
    card, old = stranger()
    parties.pin(text(card), card.fingerprint)
    parties.distrust("mallory", None)
    assert parties.compromised() == {"mallory"}
    new = SigningKey.generate()
    successor = make_card("mallory", replace(card.keys, signing=new.public), (new, old), serial=2, issued=NOW)
    for offered, fingerprint, code in (
        (successor, None, "pin.fingerprint"),
        (card, card.fingerprint, "pin.compromised"),
    ):
        with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
            parties.pin(text(offered), fingerprint)
        assert refused.value.code == code
    parties.pin(text(successor), successor.fingerprint)
    assert parties.compromised() == frozenset()


def test_the_own_card_is_not_pinned_and_strangers_are_not_distrusted(calm: World) -> None:
    parties = calm.hospital.broker.core.parties
    with pytest.raises(Misuse) as refused:
        parties.pin(text(parties.card), parties.card.fingerprint)
    assert refused.value.code == "pin.self"
    with pytest.raises(Misuse) as refused:
        parties.distrust("nobody", None)
    assert refused.value.code == "pin.absent"


def test_a_statement_of_compromise_is_checked(world: World) -> None:
    parties = world.hospital.broker.core.parties
    statement = world.lab.broker.core.parties.declare_compromised()
    unsigned = Envelope(statement.payload_type, statement.payload, ())
    with nothing_granted(world.hospital), pytest.raises(Untrusted):
        parties.distrust("lab", unsigned.to_bytes().decode())
    parties.distrust("lab", statement.to_bytes().decode())
    assert parties.compromised() == {"lab"}


def test_rotating_the_signing_key_survives_a_restart(world: World) -> None:
    parties = world.hospital.broker.core.parties
    old = parties.card
    card = parties.rotate_signing()
    assert replace_card(old, card) == card
    assert (card.serial, card.keys.signing != old.keys.signing) == (2, True)
    assert replace(card.keys, signing=old.keys.signing) == old.keys
    broker = world.hospital.restart()
    assert broker.card == card
    assert broker.core.parties.signing.public == card.keys.signing
    assert broker.core.parties.rotate_signing().serial == 3


def test_a_rotation_that_stopped_half_way_is_tried_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = world.hospital.broker.core.ledger
    before = world.hospital.broker.card

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(ledger.state, "intend", broken)
    with pytest.raises(RuntimeError):
        world.hospital.broker.core.parties.rotate_signing()
    monkeypatch.undo()
    assert world.hospital.broker.card == before
    assert world.hospital.restart().core.parties.rotate_signing().serial == 2


def payload(world: World, dek: bytes, **changes: object) -> bytes:
    """A manifest for the next version, with some fields changed."""
    manifest = world.data.manifest
    fields = {
        name: getattr(manifest, name)
        for name in ("owner", "asset_id", "name", "asset_class", "created", "files", "terms", "contract", "parents")
    }
    fields |= {"version": 2, "previous": world.data.digest, **changes}
    commit = dek_commitment(dek, fields["asset_id"], fields["version"])
    return Manifest(**fields, job=None, dek_commit=commit).to_payload()


def test_the_next_version_is_taken_over_once(world: World) -> None:
    dek, assets = random_bytes(32), world.hospital.broker.core.assets
    document = payload(world, dek)
    envelope = assets.seal(document, dek)
    envelope.verify("application/vnd.cloister.manifest+json", [world.hospital.broker.card.keys.signing])
    with nothing_granted(world.hospital):
        assert assets.seal(document, dek) == envelope
    assert assets.unwrap_secret_dek(envelope.digest) == dek
    row = world.hospital.tables()["assets"][-1]
    assert dek.hex() not in str(world.hospital.tables()) + str(world.hospital.log())
    assert row["name"] == "hospital/queries"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"version": 3}, "asset.version"),
        ({"version": 1, "previous": None}, "asset.version"),
        ({"previous": b"\x01" * 32}, "asset.version"),
        ({"asset_id": b"\x01" * 16}, "asset.id"),
        ({"name": "hospital/new", "version": 1, "previous": None}, "asset.id"),
        ({"owner": "lab", "name": "lab/queries"}, "asset.owner"),
        ({"asset_class": "artifact"}, "asset.class"),
        ({"contract": b"\x01" * 32}, "asset.class"),
    ],
)
def test_a_version_that_is_not_the_next(calm: World, changes: dict[str, object], code: str) -> None:
    dek = random_bytes(32)
    with nothing_granted(calm.hospital), pytest.raises(Denied) as refused:
        calm.hospital.broker.core.assets.seal(payload(calm, dek, **changes), dek)
    assert refused.value.code == code


def test_a_data_key_that_the_manifest_does_not_commit_to(calm: World) -> None:
    document = payload(calm, random_bytes(32))
    for dek, error in ((random_bytes(32), Untrusted), (b"short", Misuse)):
        with nothing_granted(calm.hospital), pytest.raises(error):
            calm.hospital.broker.core.assets.seal(document, dek)


def test_names_of_assets_to_come(calm: World) -> None:
    assets = calm.hospital.broker.core.assets
    fresh = assets.next("hospital/new")
    assert (fresh["version"], fresh["previous"], len(fresh["asset_id"])) == (1, None, 32)
    with pytest.raises(Denied) as refused:
        assets.next("lab/new")
    assert refused.value.code == "asset.owner"
    with pytest.raises(Malformed):
        assets.next("no-slash")
    with pytest.raises(CloisterError) as unknown:
        assets.unwrap_secret_dek(bytes(32))
    assert unknown.value.code == "asset.unknown"


def test_rotating_the_kek_wraps_anew_and_destroys_the_old(world: World) -> None:
    assets, vault = world.hospital.broker.core.assets, world.hospital.broker.core.keys.vault
    dek = assets.unwrap_secret_dek(world.data.digest)
    old = world.hospital.tables()["assets"][0]["wrapped"]
    assert world.hospital.broker.lifecycle.rotation.rotate() == 2
    assert vault.epochs() == (2,)
    assert world.hospital.tables()["assets"][0]["wrapped"] != old
    world.hospital.restart()
    assert world.hospital.broker.core.assets.unwrap_secret_dek(world.data.digest) == dek
