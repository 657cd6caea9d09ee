"""A contract that some party never agreed to, or that is no longer in force, is presented as if it were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cloister.contracts import CONTRACT_TYPE, Contract, read_contract, read_job
from cloister.crypto import Envelope, SigningKey, sign_document
from cloister.errors import CloisterError, Denied, Malformed, Untrusted
from tests.broker_world import NOW, OUTPUT, World, nothing_granted, recipe, recipe_document

pytest_plugins = ["tests.broker_fixtures"]


def knock(world: World, contract: Contract, *, submitter: SigningKey | None = None) -> None:
    """Ask the hospital's broker for a challenge under ``contract``, with a job of the hospital's."""
    from cloister.contracts import job_envelope, parse_recipe

    key = submitter or world.hospital.broker.core.parties.signing
    job = read_job(
        job_envelope(contract, "hospital", parse_recipe(recipe()), OUTPUT, key, now=NOW, salt=bytes(16)), contract
    )
    workload = world.workload(contract=contract, job=job)
    world.hospital.broker.releases.challenge(workload.request())


def signed_by(world: World, fields: dict[str, Any], *names: str) -> Contract:
    """Signed directly with the parties' keys, past their brokers' own checks."""
    envelope = world.unsigned(fields)
    for name in names:
        envelope = envelope.signed_by(world.parties[name].broker.core.parties.signing)
    return read_contract(envelope)


@pytest.mark.parametrize("signers", [(), ("hospital",), ("lab",)])
def test_a_partys_signature_is_missing(world: World, signers: tuple[str, ...]) -> None:
    contract = signed_by(world, world.contract_fields(name="half"), *signers)
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        knock(world, contract)
    assert refused.value.code == "contract.unsigned"


def test_one_party_signs_twice(world: World) -> None:
    contract = signed_by(world, world.contract_fields(name="half"), "hospital")
    (signature,) = contract.envelope.signatures
    lab = world.lab.broker.core.parties.signing.public.hex()
    envelope = contract.envelope.with_signature(lab, signature[1])
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        knock(world, read_contract(envelope))
    assert refused.value.code == "contract.unsigned"


def test_a_field_is_changed_after_signing(world: World) -> None:
    document = {**world.contract.envelope.document(), "runs": 1000}
    payload = sign_document(CONTRACT_TYPE, document).payload
    forged = read_contract(Envelope(CONTRACT_TYPE, payload, world.contract.envelope.signatures))
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        knock(world, forged)
    assert refused.value.code == "contract.unsigned"


def test_a_contract_is_signed_as_something_else(world: World) -> None:
    """A signature over the same bytes with another type is a signature over another document."""
    fields = world.contract_fields(name="typed")
    plain = world.unsigned(fields)
    keys = [party.broker.core.parties.signing for party in world.parties.values()]
    other = sign_document("application/vnd.cloister.other+json", plain.document(), *keys)
    forged = read_contract(Envelope(CONTRACT_TYPE, plain.payload, other.signatures))
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        knock(world, forged)
    assert refused.value.code == "contract.unsigned"


def test_an_unpinned_party_is_slipped_in(world: World) -> None:
    """Mallory signs with her own key, and the document carries it: nobody here ever compared her fingerprint."""
    mallory = SigningKey.generate()
    document = world.unsigned(world.contract_fields(name="three")).document()
    keys = {**document["parties"]["lab"], "signing": mallory.public.hex()}
    document["parties"]["mallory"] = keys
    signers = [party.broker.core.parties.signing for party in world.parties.values()]
    contract = read_contract(sign_document(CONTRACT_TYPE, document, *signers, mallory))
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        knock(world, contract)
    assert refused.value.code == "contract.unpinned"


@pytest.mark.parametrize("role", ["signing", "status", "receipt", "tls"])
def test_a_partys_key_is_exchanged_in_the_document(world: World, role: str) -> None:
    thief = SigningKey.generate()
    document = world.unsigned(world.contract_fields(name="swapped")).document()
    document["parties"]["lab"] = {**document["parties"]["lab"], role: thief.public.hex()}
    signers = [party.broker.core.parties.signing for party in world.parties.values()]
    contract = read_contract(sign_document(CONTRACT_TYPE, document, *signers, thief))
    with nothing_granted(world.hospital), pytest.raises(Untrusted) as refused:
        knock(world, contract)
    assert refused.value.code == "contract.keys"


def test_a_superseded_serial(world: World) -> None:
    """The old contract allowed more; every party signed the new one, and the operator presents the old."""
    old = world.contract
    world.sign(world.contract_fields(serial=2, runs=1))
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        knock(world, old)
    assert refused.value.code == "contract.superseded"


def test_a_newer_serial_that_not_all_have_signed_supersedes_nothing(world: World) -> None:
    """Else one party could stop a contract by proposing another: that is what revocation is for."""
    world.hospital.broker.agreements.sign(world.unsigned(world.contract_fields(serial=2)))
    knock(world, world.contract)


def test_a_complete_contract_that_first_arrives_with_a_workload_supersedes(world: World) -> None:
    newer = signed_by(world, world.contract_fields(serial=2), "hospital", "lab")
    world.lab.broker.agreements.store(newer.envelope)
    world.hospital.broker.agreements.sign(newer.envelope)
    workload = world.workload(contract=newer, job=world.make_job(newer))
    workload.fetch(world.hospital, workload.attested(world.hospital), world.data.digest)
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        knock(world, world.contract)
    assert refused.value.code == "contract.superseded"


@pytest.mark.parametrize(("moment", "code"), [(NOW - 101, "contract.early"), (NOW + 10_000, "contract.expired")])
def test_a_contract_outside_its_time(world: World, moment: int, code: str) -> None:
    world.clock.now = moment
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        knock(world, world.contract)
    assert refused.value.code == code


def test_a_contract_in_which_this_party_owns_nothing(world: World) -> None:
    fields = world.contract_fields(name="foreign", outputs=[{"name": OUTPUT, "form": "adapter", "recipients": ["lab"]}])
    base = fields["assets"][1]
    twin = world.lab.seal(world.folder / "rows", "lab/rows", "dataset")
    data = {**base, "digest": twin.digest.hex(), "name": "lab/rows", "use": "data"}
    contract = world.sign({**fields, "assets": [data, base], "unbounded_memorization": ["lab"]})
    envelope = world.lab.broker.agreements.sign_job(contract.envelope, recipe_document(data="lab/rows"), OUTPUT)
    workload = world.workload(contract=contract, job=read_job(envelope, contract))
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        workload.attested(world.hospital)
    assert refused.value.code == "contract.owner"


Broken = Callable[[dict[str, Any]], None]


def set_field(name: str, value: Any) -> Broken:
    return lambda document: document.update({name: value})


@pytest.mark.parametrize(
    ("break_it", "code"),
    [
        (lambda d: d.update(surprise="ignored by older readers"), "form.unknown"),
        (lambda d: d.pop("runs"), "form.missing"),
        (set_field("runs", 0), "form.field"),
        (set_field("runs", True), "form.field"),
        (set_field("type", "contract/v2"), "form.field"),
        (set_field("expires", NOW - 200), "contract.expiry"),
        (set_field("unbounded_memorization", []), "contract.memorization"),
        (lambda d: d["assets"].append(d["assets"][0]), "contract.assets"),
        (lambda d: d["outputs"].append(d["outputs"][0]), "contract.outputs"),
        (lambda d: d["outputs"][0].update(form="weights"), "contract.form"),
        (lambda d: d["outputs"][0].update(recipients=["mallory"]), "contract.parties"),
        (lambda d: d["outputs"][0].update(recipients=[]), "contract.recipients"),
        (lambda d: d["assets"][0].update(owner="lab"), "contract.owner"),
        (lambda d: d["platform"].update(assurance="tpm"), "contract.witnesses"),
        (lambda d: d["platform"].update(pcrs={"16": "00" * 32}), "contract.pcr"),
        (lambda d: d["gates"][0].update(better_than_base_by="NaN"), "contract.margin"),
        (lambda d: d["gates"][0].update(better_than_base_by="much"), "contract.margin"),
        (lambda d: d["parties"]["lab"].update(signing=d["parties"]["lab"]["status"]), "party.keys"),
    ],
)
def test_every_party_signs_nonsense(world: World, break_it: Broken, code: str) -> None:
    """Also a fully signed document is refused when its form breaks the rules: signatures make nothing sensible."""
    document = world.unsigned(world.contract_fields()).document()
    break_it(document)
    signers = [party.broker.core.parties.signing for party in world.parties.values()]
    request = world.workload().request(contract=sign_document(CONTRACT_TYPE, document, *signers).to_bytes().decode())
    with nothing_granted(world.hospital), pytest.raises(Malformed) as refused:
        world.hospital.broker.releases.challenge(request)
    assert refused.value.code == code


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b'{"type":"contract/v1", "name":"x"}', "json.canonical"),
        (b'{"name":"x","name":"y"}', "json.duplicate"),
        (b'{"runs":1.0}', "json.float"),
        (b"[" * 40 + b"]" * 40, "json.depth"),
        (b"\xff", "json.syntax"),
        (b"[]", "form.object"),
    ],
)
def test_a_contract_with_two_spellings(world: World, payload: bytes, code: str) -> None:
    envelope = Envelope(CONTRACT_TYPE, payload, world.contract.envelope.signatures)
    request = world.workload().request(contract=envelope.to_bytes().decode())
    with nothing_granted(world.hospital), pytest.raises(CloisterError) as refused:
        world.hospital.broker.releases.challenge(request)
    assert (type(refused.value), refused.value.code) == (Malformed, code)
