"""A production broker and a node with a software TPM: the real protocol, at level none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.attestation.bootlog import encode_log, replay
from cloister.attestation.registry import verifiers
from cloister.attestation.tpm import BOOT_PCRS, Enrolment, TpmVerifier, begin, finish, roots
from cloister.errors import Denied, Untrusted
from cloister.sealed import check_dek
from tests.boot_logs import boot_log
from tests.broker_world import AGENT, Workload, World, nothing_granted
from tests.manufactured_tpm import authorities, manufacture, needs_tools, soon_after

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


def enrolled(world: World, folder: Path) -> Enrolment:
    """The node's TPM, enrolled by the owners under the local authority that swtpm's tools made."""
    pool = authorities(folder)
    request, now = world.attester.enrolment(), soon_after(folder)
    pending, challenge = begin(request, os.urandom(32), now=now, pool=pool, roots=[pool[1].key_fingerprint])
    return finish(pending, world.attester.prove(request, challenge), now=now)


@pytest.fixture
def manufactured(world: World, folder: Path) -> Iterator[Enrolment]:
    """A node that has booted, with a TPM that has endorsement certificates; the brokers know its enrolment."""
    from cloister.node.attester import TpmAttester
    from cloister.node.swtpm import SoftwareTpm
    from cloister.node.tpm import Tpm

    log, path = boot_log(), folder / "measurements"
    path.write_bytes(encode_log(log))
    with SoftwareTpm(manufacture(folder, "tpm")) as chip:
        tpm = Tpm(chip.tcti)
        for event in log.events:
            tpm.extend(event.index, event.digests["sha256"])
        tpm.close()
        with TpmAttester.hardware(chip.tcti, folder / "keys", AGENT, boot_log=path) as attester:
            world.attester = attester
            record = enrolled(world, folder)
            for party in world.parties.values():
                party.judges = verifiers(allow_insecure=False, production=True)
                party.judges["tpm"] = TpmVerifier({record.ak_name: record})
                party.restart()
                party.broker.core.knowledge.witnessed = True
            yield record


def strict(world: World) -> Workload:
    """Under a contract of level tpm that names PCR 0 to 7, as the boot log leads to them."""
    fields = world.contract_fields()["platform"]
    pcrs = {str(index): value.hex() for index, value in replay(boot_log(), "sha256").items() if index in BOOT_PCRS}
    platform = {**fields, "assurance": "tpm", "witness_quorum": 1, "pcrs": pcrs}
    contract = world.sign(world.contract_fields(serial=3, platform=platform))
    return world.workload(contract=contract, job=world.make_job(contract))


@needs_tools
def test_a_software_tpm_stays_at_level_none_whoever_enrolled_it(world: World, manufactured: Enrolment) -> None:
    workload = strict(world)
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        workload.attested(world.hospital)
    assert refused.value.code == "appraisal.level"


@needs_tools
def test_level_tpm_under_a_root_of_the_shipped_list(
    world: World, manufactured: Enrolment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same TPM, if its maker were one of the list: the whole path of a real chip, up to the witness that a contract
    of this level also needs, and that isn't here."""
    monkeypatch.setitem(roots.MANUFACTURERS, manufactured.manufacturer, "swtpm")
    monkeypatch.setitem(roots.ROOTS, manufactured.root, roots.Root("test", frozenset({manufactured.manufacturer})))
    workload = strict(world)
    cookie = workload.attested(world.hospital)
    assert cookie
    with pytest.raises(Untrusted) as refused:
        workload.fetch(world.hospital, cookie, world.data.digest)
    assert refused.value.code == "witness.quorum"
