"""General text is somebody's asset: its key goes only to a run whose contract, recipe and job all name it as that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloister.contracts import JOB_TYPE, Contract, Job, Terms, check_output, parse_recipe, read_job
from cloister.crypto import sign_document
from cloister.errors import CloisterError, Denied, Malformed
from cloister.sealed import Sealed
from tests.broker_party import insecure_judges
from tests.broker_world import NOW, OUTPUT, TERMS, Party, World, nothing_granted, recipe

pytest_plugins = ["tests.broker_fixtures"]

GENERAL = "lab/prose"
NARROW = replace(TERMS, licences=("CC-BY-4.0",), sensitivity="restricted", keep_until=NOW + 5000)


@pytest.fixture
def prose(world: World) -> Sealed:
    return world.lab.seal(world.folder / "prose", GENERAL, "dataset", terms=NARROW)


def entry(sealed: Sealed, terms: Terms = NARROW, **changes: Any) -> dict[str, Any]:
    name = sealed.manifest.name
    fields = {"digest": sealed.digest.hex(), "name": name, "owner": name.partition("/")[0], "use": "general"}
    return {**fields, "terms": terms.document(), **changes}


def fields(world: World, *more: dict[str, Any], **changes: Any) -> dict[str, Any]:
    usual = world.contract_fields(serial=2, unbounded_memorization=["hospital", "lab"])
    return {**usual, "assets": [*usual["assets"], *more], **changes}


@pytest.fixture
def contract(world: World, prose: Sealed) -> Contract:
    return world.sign(fields(world, entry(prose)))


def forged(world: World, contract: Contract, named: dict[str, Any], **changes: Any) -> Job:
    """A job that its submitter signed past its own broker's checks."""
    by_name = {asset.name: asset.digest for asset in contract.assets}
    wanted = parse_recipe(recipe(**named))
    body = {
        "base": by_name[wanted.base].hex(), "contract": contract.digest.hex(), "created": NOW,
        "data": by_name[wanted.data].hex(), "output": OUTPUT, "recipe": wanted.to_document(), "salt": "00" * 16,
        "submitter": "hospital", "type": "job/v1", **changes,
    }  # fmt: skip
    return read_job(sign_document(JOB_TYPE, body, world.hospital.broker.core.parties.signing), contract)


def refused(world: World, contract: Contract, job: Job) -> str:
    workload = world.workload(contract=contract, job=job)
    codes = []
    for party in (world.hospital, world.lab):
        with nothing_granted(party), pytest.raises(Denied) as caught:
            workload.attested(party)
        codes.append(caught.value.code)
    assert codes[0] == codes[1]
    return codes[0]


def test_a_run_that_all_named_it_for_gets_its_key(world: World, contract: Contract, prose: Sealed) -> None:
    job = world.make_job(contract, general=GENERAL)
    assert job.assets == (world.data.digest, world.base.digest, prose.digest)
    workload = world.workload(contract=contract, job=job)
    key, _ = workload.open(workload.fetch(world.lab, workload.attested(world.lab), prose.digest), prose.digest)
    assert len(key) == 32
    assert world.lab.log()[-1].details["resource"] == prose.digest.hex()


def test_a_job_without_it_is_the_document_that_it_was(world: World, contract: Contract) -> None:
    job = world.make_job(contract)
    assert "general" not in job.envelope.document()
    assert "general" not in job.recipe.to_document()
    assert job.assets == (world.data.digest, world.base.digest)


def test_a_job_that_does_not_name_it_gets_no_key_of_it(world: World, contract: Contract, prose: Sealed) -> None:
    workload = world.workload(contract=contract, job=world.make_job(contract))
    cookie = workload.attested(world.lab)
    with nothing_granted(world.lab), pytest.raises(Denied) as caught:
        workload.fetch(world.lab, cookie, prose.digest)
    assert caught.value.code == "job.asset"


def test_a_job_names_one_that_its_recipe_does_not(world: World, contract: Contract, prose: Sealed) -> None:
    assert refused(world, contract, forged(world, contract, {}, general=prose.digest.hex())) == "job.assets"


def test_a_recipe_names_one_that_its_job_does_not(world: World, contract: Contract) -> None:
    assert refused(world, contract, forged(world, contract, {"general": GENERAL})) == "job.assets"


def test_a_job_s_digest_is_of_another_asset_than_the_recipe_s_name(world: World, contract: Contract) -> None:
    job = forged(world, contract, {"general": GENERAL}, general=world.data.digest.hex())
    assert refused(world, contract, job) == "job.assets"


def test_a_job_names_one_that_the_contract_does_not(world: World, prose: Sealed) -> None:
    job = forged(world, world.contract, {"general": GENERAL}, general=prose.digest.hex())
    assert refused(world, world.contract, job) == "contract.asset"


@pytest.mark.parametrize(
    ("named", "digests"),
    [
        ({"data": GENERAL}, {}),  # general text as rows
        ({"general": "hospital/queries"}, {"general": "data"}),  # rows as general text
        ({"general": "lab/minilm"}, {"general": "base"}),
        ({"base": GENERAL}, {}),
    ],
)
def test_an_asset_is_used_for_something_else(
    world: World, contract: Contract, named: dict[str, str], digests: dict[str, str]
) -> None:
    more = {key: getattr(world, which).digest.hex() for key, which in digests.items()}
    assert refused(world, contract, forged(world, contract, named, **more)) == "job.use"


@pytest.mark.parametrize("value", [None, "", "00", "00" * 31, "00" * 33, 7, ["00" * 32]])
def test_a_job_s_general_text_is_nothing_or_a_digest(world: World, contract: Contract, value: Any) -> None:
    with pytest.raises(CloisterError) as caught:
        forged(world, contract, {"general": GENERAL}, general=value)
    assert isinstance(caught.value, Malformed)


def test_the_own_broker_signs_no_such_job(world: World, contract: Contract) -> None:
    for named, code in (({"data": GENERAL}, "job.use"), ({"general": "lab/minilm"}, "job.use"),
                        ({"general": "lab/other"}, "contract.asset")):  # fmt: skip
        with pytest.raises(Denied) as caught:
            world.make_job(contract, **named)
        assert caught.value.code == code


def test_a_model_is_no_general_text(world: World) -> None:
    model = world.lab.seal(world.folder / "other", "lab/other", "model")
    with nothing_granted(world.lab), pytest.raises(Denied) as caught:
        world.sign(fields(world, entry(model, TERMS)))
    assert caught.value.code == "contract.asset"


def test_one_dataset_is_not_both(world: World) -> None:
    with pytest.raises(Malformed) as caught:
        world.sign(fields(world, entry(world.data, TERMS)))
    assert caught.value.code == "contract.assets"


def test_its_owner_accepts_knowingly_that_a_model_may_contain_it(world: World, prose: Sealed) -> None:
    with pytest.raises(Malformed) as caught:
        world.sign(fields(world, entry(prose), unbounded_memorization=["hospital"]))
    assert caught.value.code == "contract.memorization"


def test_shredding_it_ends_the_run(world: World, contract: Contract, prose: Sealed) -> None:
    workload = world.workload(contract=contract, job=world.make_job(contract, general=GENERAL))
    cookie = workload.attested(world.lab)
    world.lab.broker.lifecycle.shredder.shred(GENERAL, None, "a mistake")
    with nothing_granted(world.lab), pytest.raises(Denied) as caught:
        workload.fetch(world.lab, cookie, world.base.digest)
    assert caught.value.code == "asset.shredded"


def test_what_a_run_used_it_with_is_kept_while_it_is_held(world: World, contract: Contract, prose: Sealed) -> None:
    """Without the base's key no run goes on from its checkpoint, and the owner has to keep what this run was."""
    workload = world.workload(contract=contract, job=world.make_job(contract, general=GENERAL)).run()
    workload.fetch(world.lab, workload.attested(world.lab), prose.digest)
    world.lab.broker.lifecycle.retention.hold(GENERAL, "litigation 7")
    with pytest.raises(Denied) as caught:
        world.lab.broker.lifecycle.shredder.shred("lab/minilm", None, "a mistake")
    assert caught.value.code == "asset.held"


def test_an_output_has_it_as_parent_and_its_terms(world: World, contract: Contract, folder: Path) -> None:
    joined = Terms.intersect([TERMS, TERMS, NARROW])
    assert joined != Terms.intersect([TERMS, TERMS])
    job = world.make_job(contract, general=GENERAL)
    workload = world.workload(contract=contract, job=job).run()
    parents = tuple(sorted(job.assets))
    made = {
        "forgets it": workload.output(folder / "a", terms=joined.document()),
        "has looser terms": workload.output(folder / "b", identity={"parents": parents}),
        "is right": workload.output(folder / "c", identity={"parents": parents}, terms=joined.document()),
    }
    codes = {}
    for name, sealed in made.items():
        try:
            check_output(sealed.manifest, contract, job, workload.instance)
            world.lab.broker.permits.permit(sealed.envelope)
            codes[name] = "permitted"
        except Denied as no:
            codes[name] = no.code
    assert codes == {"forgets it": "output.parents", "has looser terms": "output.terms", "is right": "permitted"}


class _Library(World):
    """With a third party, which owns nothing but general text."""

    def open(self) -> World:
        super().open()
        self.parties["library"] = Party("library", self.folder / "library", self.clock, insecure_judges())
        for one in self.parties.values():
            for other in self.parties.values():
                if other is not one:
                    card = other.broker.card
                    one.broker.core.parties.pin(card.envelope.to_bytes().decode(), card.fingerprint)
        return self


def test_a_third_party_s_text_is_its_own_brokers_to_release(folder: Path) -> None:
    world = _Library(folder / "w").build()
    try:
        library = world.parties["library"]
        prose = library.seal(folder / "prose", "library/prose", "dataset", terms=NARROW)
        contract = world.sign(fields(world, entry(prose), unbounded_memorization=["hospital", "library"]))
        assert contract.brokers() == ("hospital", "lab", "library")
        workload = world.workload(contract=contract, job=world.make_job(contract, general="library/prose"))
        cookie = workload.attested(library)
        key, _ = workload.open(workload.fetch(library, cookie, prose.digest), prose.digest)
        assert len(key) == 32
        for party, digest in ((library, world.data.digest), (world.hospital, prose.digest)):
            session = cookie if party is library else workload.attested(party)
            with nothing_granted(party), pytest.raises(Denied) as caught:
                workload.fetch(party, session, digest)
            assert caught.value.code == "asset.owner"
        # It alone ends every run of the contract, also one that doesn't use its text.
        library.broker.agreements.revoke(contract.digest, "enough")
        other = world.workload(contract=contract, job=world.make_job(contract))
        with pytest.raises(Denied) as caught:
            other.attested(world.hospital)
        assert caught.value.code == "status.missing"
    finally:
        world.close()
