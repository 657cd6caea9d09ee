"""A production broker and a node with a software TPM: the real protocol, at level none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.attestation import verifiers
from cloister.errors import Denied, Untrusted
from cloister.sealed import check_dek
from tests.broker_world import AGENT, Workload, World, nothing_granted

pytest_plugins = ["tests.broker_fixtures"]

pytest.importorskip("tpm2_pytss", reason="the TPM library is not installed")
pytestmark = pytest.mark.skipif(shutil.which("swtpm") is None, reason="swtpm is not installed")


@pytest.fixture
def attested(world: World, folder: Path) -> Iterator[Workload]:
    """A workload on a node with a TPM, under a contract that pins that TPM, before production brokers."""
    from cloister.node.attester import TpmAttester

    with TpmAttester.software(folder / "tpm", AGENT) as attester:
        world.attester = attester
        for party in world.parties.values():
            party.judges = verifiers(allow_insecure=False, production=True)
            party.restart()
        contract = world.sign(world.contract_fields(serial=2))
        yield world.workload(contract=contract, job=world.make_job(contract))


def test_keys_leases_and_the_level_in_the_log(world: World, attested: Workload) -> None:
    cookie = attested.attested(world.hospital)
    key, body = attested.open(attested.fetch(world.hospital, cookie, world.data.digest), world.data.digest)
    check_dek(world.data.manifest, key)
    assert body["lease"]["sequence"] == 0
    world.hospital.broker.leases.renew(attested.attested(world.hospital, "renew", 1))
    released = next(facts for facts in world.hospital.log() if facts.kind == "key.released")
    assert released.details["level"] == "none"
    assert released.details["attester"] == world.attester.attester_id


def test_a_quote_for_another_challenge(world: World, attested: Workload) -> None:
    releases = world.hospital.broker.releases
    cookie, challenge = releases.challenge(attested.request())
    stale = attested.attestation("n" * 88)["tee-evidence"]
    body = attested.attestation(challenge["nonce"], **{"tee-evidence": stale})
    with nothing_granted(world.hospital), pytest.raises(Untrusted) as refused:
        releases.attest(cookie, body)
    assert refused.value.code == "tpm.report"


def test_a_contract_that_asks_for_more_than_a_software_tpm(world: World, attested: Workload) -> None:
    workload = world.strict_workload(3)
    world.hospital.broker.core.knowledge.witnessed = True
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        workload.attested(world.hospital)
    assert refused.value.code == "appraisal.level"
