"""One party's approvals are made large, many, or old again, so that the other owner can neither revoke nor run."""

from __future__ import annotations

import pytest

from cloister.broker.state import Change
from cloister.contracts.releases import APPROVAL_TYPE
from cloister.crypto import Envelope, SigningKey, sign_document
from cloister.errors import CloisterError, Denied, Malformed, Unavailable
from tests.broker_world import MEASUREMENT, World, nothing_granted

pytest_plugins = ["tests.broker_fixtures"]


def approval(world: World, number: int, *, issued: int | None = None, release: int | None = None) -> Envelope:
    """As the lab can sign as many as it likes: of releases that nobody else ever saw."""
    body = {
        "agents": [],
        "contract": world.contract.digest.hex(),
        "issued": number if issued is None else issued,
        "measurements": [f"{number:064x}"],
        "party": "lab",
        "release": f"{number if release is None else release:064x}",
        "type": "approval/v1",
        "version": "1",
    }
    return sign_document(APPROVAL_TYPE, body, world.lab.broker.core.parties.signing)


def padded(envelope: Envelope, size: int = 200_000) -> Envelope:
    """The same with what no signature covers: a long key id, and somebody else's signature."""
    named = Envelope(envelope.payload_type, envelope.payload, tuple(("k" * size, s) for _, s in envelope.signatures))
    return named.signed_by(SigningKey.generate())


def accept(world: World, envelope: Envelope) -> None:
    world.hospital.broker.measurements.accept(world.contract.envelope, envelope)


def held(world: World) -> tuple[Envelope, ...]:
    return world.hospital.broker.measurements.approvals(world.contract.digest)


def refusal(world: World, envelope: Envelope) -> CloisterError:
    with nothing_granted(world.hospital), pytest.raises(CloisterError) as caught:
        accept(world, envelope)
    return caught.value


def works(world: World) -> None:
    """Runs, the list, the peers' round, and revoking."""
    world.workload().run()
    world.hospital.broker.measurements.learn()
    (listed,) = world.hospital.broker.measurements.listing()["contracts"]
    assert "damaged" not in listed
    world.hospital.broker.measurements.revoke("ab" * 32, "a hole")
    assert "ab" * 32 in world.hospital.broker.measurements.listing()["revoked"]


def test_approvals_with_long_key_ids_and_other_signatures(world: World) -> None:
    for number in range(30):
        accept(world, padded(approval(world, number)))
    key = world.contract.parties["lab"].signing.hex()
    assert [[name for name, _ in one.signatures] for one in held(world)] == [[key]] * 30
    assert [one.to_bytes() for one in held(world)] == [approval(world, number).to_bytes() for number in range(30)]
    works(world)
    world.hospital.restart()
    works_again = world.hospital.broker.measurements.revoke("cd" * 32, "another")
    assert works_again["leases_cut"] == 0


def test_a_signature_for_which_others_make_no_room(world: World) -> None:
    envelope = approval(world, 1)
    (good,) = envelope.signatures
    crowd = tuple(("x", bytes([number]) * 64) for number in range(63))
    accept(world, Envelope(envelope.payload_type, envelope.payload, (*crowd, good)))
    assert held(world) == (envelope,)


def test_the_same_approval_in_other_wrappings(world: World) -> None:
    accept(world, approval(world, 1))
    with nothing_granted(world.hospital):
        for size in (0, 1, 1000):
            accept(world, padded(approval(world, 1), size))
        accept(world, approval(world, 1, issued=5))  # nor said once more
    assert held(world) == (approval(world, 1),)


def test_an_approval_that_is_larger_than_any(world: World) -> None:
    body = {**approval(world, 1).document(), "version": "v" * 20_000}
    envelope = sign_document(APPROVAL_TYPE, body, world.lab.broker.core.parties.signing)
    error = refusal(world, envelope)
    assert isinstance(error, Malformed)
    assert error.code == "approval.size"


def test_one_release_approved_in_ever_other_words(world: World) -> None:
    for number in range(10):
        accept(world, approval(world, number, release=7))
    assert held(world) == (approval(world, 9, release=7),)
    assert refusal(world, approval(world, 3, release=7)).code == "approval.old"
    assert refusal(world, approval(world, 77, issued=9, release=7)).code == "approval.old"  # as new is not newer


def test_old_approvals_take_the_place_of_newer_ones(world: World) -> None:
    for number in range(100, 140):
        accept(world, approval(world, number))
    kept = held(world)
    assert sorted(one.document()["issued"] for one in kept) == list(range(108, 140))
    for number in (5, 100, 107):
        error = refusal(world, approval(world, number))
        assert isinstance(error, Denied)
        assert error.code == "approval.old"
    assert held(world) == kept


def test_large_approvals_use_up_their_own_partys_share(world: World) -> None:
    for number in range(8):
        body = {**approval(world, number).document(), "agents": [f"{one:064x}" for one in range(64)]}
        body["measurements"] = [f"{one:064x}" for one in range(64)]
        accept(world, sign_document(APPROVAL_TYPE, body, world.lab.broker.core.parties.signing))
    assert [one.document()["issued"] for one in held(world)] == [4, 5, 6, 7]
    assert sum(len(one.to_bytes()) for one in held(world)) <= 56 * 1024
    works(world)


def test_a_log_is_filled_with_approvals(world: World) -> None:
    before = len(world.hospital.log())
    for number in range(64):
        accept(world, approval(world, number))
    with pytest.raises(Unavailable) as caught:
        accept(world, approval(world, 64))
    assert caught.value.code == "rate.approvals"
    assert len(world.hospital.log()) - before <= 64
    works(world)


def test_what_is_held_cannot_be_read(world: World) -> None:
    """Revoking takes this owner alone: whatever lies under a contract, its runs are cut and the others' go on."""
    other = world.sign(world.contract_fields(name="other"))
    mine, others = world.workload().run(), world.workload(contract=other, job=world.make_job(other)).run()
    ledger, name = world.hospital.broker.core.ledger, f"approvals:{world.contract.digest.hex()}"
    with ledger.turn():
        row = {"name": name, "value": "[" + '"k"' * 1_500_000}
        ledger.commit("measurement.approved", target="x", details={}, changes=[Change("facts", row)])
    measurements = world.hospital.broker.measurements
    assert measurements.revoke("ab" * 32, "a hole")["leases_cut"] == 1
    with nothing_granted(world.hospital), pytest.raises(CloisterError):
        mine.attested(world.hospital, "renew", 1)
    world.hospital.broker.leases.renew(others.attested(world.hospital, "renew", 1))
    listed = {one["contract"]: one.get("damaged", False) for one in measurements.listing()["contracts"]}
    assert listed == {world.contract.digest.hex(): True, other.digest.hex(): False}
    measurements.learn()
    assert measurements.revoke(MEASUREMENT.hex(), "a hole")["leases_cut"] == 1


def test_one_approval_that_does_not_hold_among_those_that_a_peer_shows(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, unread = approval(world, 1), Envelope(APPROVAL_TYPE, b"{}").signed_by(SigningKey.generate())
    texts = [one.to_bytes().decode() for one in (unread, good)]
    hospital = world.hospital.broker
    monkeypatch.setattr(hospital.core.peers, "get", lambda *_: {"approvals": texts})
    hospital.measurements._ask(world.lab.broker.card, world.contract)
    assert held(world) == (good,)


def test_others_approvals_come_after_our_own_for_a_peer(world: World) -> None:
    for number in range(3):
        accept(world, approval(world, number))
    for number in (10, 12, 11):
        body = {**approval(world, number).document(), "party": "hospital"}
        own = sign_document(APPROVAL_TYPE, body, world.hospital.broker.core.parties.signing)
        world.lab.broker.measurements.accept(world.contract.envelope, own)
    for number in range(3):
        accept(world, approval(world, number))
    shown = [Envelope.from_bytes(one.encode()).document() for one in world.lab.broker.measurements.shown(b"\0" * 32)]
    assert shown == []
    theirs = world.lab.broker.measurements.shown(world.contract.digest)
    assert [Envelope.from_bytes(one.encode()).document()["issued"] for one in theirs] == [12, 11, 10]
