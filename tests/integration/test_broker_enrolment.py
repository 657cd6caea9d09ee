"""An owner enrols the TPM of a node: real swtpm with endorsement certificates, real broker, logged; one try each."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.attestation.tpm import Challenge, EnrolmentRequest
from cloister.broker.enrolling import Enrolments
from cloister.errors import Denied, Unavailable, Untrusted
from tests.broker_world import World
from tests.manufactured_tpm import authorities, manufacture, needs_tools, soon_after

pytest.importorskip("tpm2_pytss", reason="the TPM library is not installed")
pytestmark = needs_tools
pytest_plugins = ["tests.broker_fixtures"]

from cloister.node.attester import TpmAttester  # noqa: E402


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("factory")
    manufacture(folder, "tpm")
    return folder


def enrolments(world: World, factory: Path) -> Enrolments:
    pool = authorities(factory)
    ledger = world.hospital.broker.core.ledger
    return Enrolments(ledger, lambda: soon_after(factory), pool=pool, roots=[pool[1].key_fingerprint])


def test_enrolled_listed_removed_and_all_of_it_logged(world: World, factory: Path) -> None:
    service = enrolments(world, factory)
    with TpmAttester.software(factory / "tpm", b"a" * 32) as node:
        request = node.enrolment()
        begun = service.begin(request.to_wire())
        proof = node.prove(request, Challenge.from_wire(begun["challenge"]))
    record = service.finish(begun["id"], proof)
    assert record.level == "none", "a software TPM, whoever enrols it"
    assert dict(service.keys) == {record.ak_name: record}
    assert [entry["level"] for entry in service.listing()] == ["none"]
    # It survives a restart, because it is state that the log vouches for.
    world.hospital.restart()
    service = enrolments(world, factory)
    assert dict(service.keys) == {record.ak_name: record}
    assert service.remove(record.ak_name) == record
    assert not service.keys
    with pytest.raises(Denied) as caught:
        service.remove(record.ak_name)
    assert caught.value.code == "enrolment.absent"
    kinds = [entry.kind for entry in world.hospital.log() if entry.kind.startswith("attester.")]
    assert kinds == ["attester.enrolled", "attester.removed"]


def test_a_proof_is_tried_once(world: World, factory: Path) -> None:
    service = enrolments(world, factory)
    with TpmAttester.software(factory / "tpm", b"a" * 32) as node:
        request = node.enrolment()
        begun = service.begin(request.to_wire())
        proof = node.prove(request, Challenge.from_wire(begun["challenge"]))
    with pytest.raises(Untrusted) as wrong:
        service.finish(begun["id"], bytes(32))
    assert wrong.value.code == "enrolment.proof"
    with pytest.raises(Denied) as caught:
        service.finish(begun["id"], proof)
    assert caught.value.code == "enrolment.unknown"
    assert not service.keys
    refused = world.hospital.log()[-1]
    assert (refused.kind, refused.details["code"]) == ("attester.refused", "enrolment.proof")


def test_open_challenges_are_few(world: World, factory: Path) -> None:
    service = enrolments(world, factory)
    with TpmAttester.software(factory / "tpm", b"a" * 32) as node:
        wire = EnrolmentRequest.from_wire(node.enrolment().to_wire()).to_wire()
    for _ in range(16):
        service.begin(wire)
    with pytest.raises(Unavailable) as caught:
        service.begin(wire)
    assert caught.value.code == "enrolment.full"


def test_a_software_tpm_is_not_enrolled_under_the_shipped_roots(world: World, factory: Path) -> None:
    service = Enrolments(world.hospital.broker.core.ledger, lambda: soon_after(factory))
    with TpmAttester.software(factory / "tpm", b"a" * 32) as node, pytest.raises(Untrusted) as caught:
        service.begin(node.enrolment().to_wire())
    assert caught.value.code.startswith(("tpm.", "x509."))
