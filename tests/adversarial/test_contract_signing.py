"""Somebody wants this party's own signature on what it should not sign: its broker looks first."""

from __future__ import annotations

from typing import Any

import pytest

from cloister.contracts import CONTRACT_TYPE, Terms
from cloister.crypto import Envelope, SigningKey, sign_document
from cloister.errors import CloisterError, Denied, Untrusted
from tests.broker_world import NOW, OUTPUT, TERMS, World, nothing_granted, recipe, recipe_document

pytest_plugins = ["tests.broker_fixtures"]


def sign(world: World, envelope: Envelope) -> Envelope:
    return world.hospital.broker.agreements.sign(envelope)


def test_signing_is_logged_and_repeatable(world: World) -> None:
    envelope = world.unsigned(world.contract_fields(name="new"))
    signed = sign(world, envelope)
    with nothing_granted(world.hospital):
        assert sign(world, envelope) == signed
    facts = world.hospital.log()[-1]
    assert (facts.kind, facts.target, facts.details["stage"]) == ("contract.signed", envelope.digest.hex(), "signed")


@pytest.mark.parametrize("serial", [1])
def test_another_contract_with_a_serial_that_was_signed(world: World, serial: int) -> None:
    """Two contracts of one serial would let the operator choose between them."""
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        sign(world, world.unsigned(world.contract_fields(serial=serial, runs=1000)))
    assert refused.value.code == "contract.serial"


def test_a_contract_that_states_other_terms_than_the_asset_has(world: World) -> None:
    fields = world.contract_fields(serial=2)
    loose = Terms(("CC-BY-4.0",), "public", ("metrics", "adapter", "weights"))
    fields["assets"][0]["terms"] = loose.document()
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        sign(world, world.unsigned(fields))
    assert refused.value.code == "contract.terms"


def test_a_contract_over_an_old_version(world: World) -> None:
    old = world.contract_fields(serial=2)
    world.hospital.seal(world.folder / "v2", "hospital/queries", "dataset")
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        sign(world, world.unsigned(old))
    assert refused.value.code == "asset.old"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"digest": "00" * 32}, "asset.unknown"),
        ({"name": "hospital/else"}, "contract.asset"),
        ({"use": "base"}, "contract.asset"),
    ],
)
def test_a_contract_that_misnames_the_own_asset(world: World, changes: dict[str, Any], code: str) -> None:
    fields = world.contract_fields(serial=2)
    fields["assets"][0].update(changes)
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        sign(world, world.unsigned(fields))
    assert refused.value.code == code


def test_a_contract_with_exchanged_keys_of_the_other_party(world: World) -> None:
    document = world.unsigned(world.contract_fields(serial=2)).document()
    document["parties"]["lab"]["signing"] = SigningKey.generate().public.hex()
    with nothing_granted(world.hospital), pytest.raises(Untrusted) as refused:
        sign(world, sign_document(CONTRACT_TYPE, document))
    assert refused.value.code == "contract.keys"


def test_a_contract_with_an_unpinned_or_lost_party(world: World) -> None:
    document = world.unsigned(world.contract_fields(serial=2)).document()
    document["parties"]["mallory"] = {**document["parties"]["lab"], "tls": SigningKey.generate().public.hex()}
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        sign(world, sign_document(CONTRACT_TYPE, document))
    assert refused.value.code == "contract.unpinned"
    world.hospital.broker.core.parties.distrust("lab", None)
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        sign(world, world.unsigned(world.contract_fields(serial=2)))
    assert refused.value.code == "party.compromised"


def test_a_contract_that_has_ended(world: World) -> None:
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        sign(world, world.unsigned(world.contract_fields(serial=2, expires=NOW)))
    assert refused.value.code == "contract.expired"


def test_a_contract_between_others(world: World) -> None:
    fields = world.contract_fields(name="theirs", assets=[], outputs=[], unbounded_memorization=[])
    document = world.unsigned(fields).document()
    del document["parties"]["hospital"]
    envelope = sign_document(CONTRACT_TYPE, document)
    for attempt in (sign, lambda w, e: w.hospital.broker.agreements.store(e)):
        with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
            attempt(world, envelope)
        assert refused.value.code == "contract.foreign"


def test_a_half_signed_contract_is_stored_as_complete(world: World) -> None:
    envelope = sign(world, world.unsigned(world.contract_fields(serial=2)))
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        world.hospital.broker.agreements.store(envelope)
    assert refused.value.code == "contract.unsigned"


def test_a_statement_about_a_contract_that_was_never_signed(world: World) -> None:
    answer = world.hospital.broker.agreements.status(bytes(32))
    assert answer.statement is None
    assert answer.refusal is not None
    assert answer.refusal.code == "contract.unknown"


def test_a_statement_after_the_end_or_a_newer_serial(world: World) -> None:
    agreements, digest = world.hospital.broker.agreements, world.contract.digest
    assert agreements.status(digest).statement is not None
    newer = world.sign(world.contract_fields(serial=2))
    refusal = agreements.status(digest).refusal
    assert refusal is not None
    assert refusal.code == "contract.superseded"
    world.clock.now = newer.expires
    refusal = agreements.status(newer.digest).refusal
    assert refusal is not None
    assert refusal.code == "contract.expired"


def test_a_rotated_key_ends_the_contracts_that_name_the_old_one(world: World) -> None:
    card = world.hospital.broker.core.parties.rotate_signing()
    refusal = world.hospital.broker.agreements.status(world.contract.digest).refusal
    assert refusal is not None
    assert refusal.code == "contract.keys"
    world.lab.broker.core.parties.pin(card.envelope.to_bytes().decode(), None)
    again = world.sign(world.contract_fields(serial=2))
    assert world.hospital.broker.agreements.status(again.digest).statement is not None


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"epochs": 6}, "recipe.epochs"), ({"method": "full"}, "recipe.method"), ({"data": "lab/rows"}, "contract.asset")],
)
def test_a_job_that_the_contract_does_not_permit(world: World, changes: dict[str, Any], code: str) -> None:
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        world.make_job(**changes)
    assert refused.value.code == code


def test_a_job_for_an_output_that_is_not_named(world: World) -> None:
    with pytest.raises(Denied) as refused:
        world.hospital.broker.agreements.sign_job(world.contract.envelope, recipe_document(), "hospital/other")
    assert refused.value.code == "job.output"


def test_a_job_with_a_recipe_that_is_none(world: World) -> None:
    for broken in ({}, {"task": "classification"}, {**recipe_document(), "surprise": 1}, recipe()):
        with pytest.raises(CloisterError):
            world.hospital.broker.agreements.sign_job(world.contract.envelope, broken, OUTPUT)


def test_terms_of_the_toy_assets_are_what_the_contract_says(world: World) -> None:
    assert world.data.manifest.terms["terms"] == TERMS.document()
