"""A workload that the contract does not name is let in by less than every party's word: one party's approval, one in
another's name, of another contract, another release, a release of somebody else's, an older one."""

from __future__ import annotations

from typing import Any

import pytest

from cloister.attestation import verify_token
from cloister.contracts import Contract
from cloister.contracts.releases import approval_envelope, approved_releases, read_release, release_envelope
from cloister.crypto import Envelope, SigningKey
from cloister.errors import CloisterError, Denied, Malformed, Misuse, Untrusted
from tests.broker_world import AGENT, MEASUREMENT, Party, Workload, World, introduce, nothing_granted, serving

pytest_plugins = ["tests.broker_fixtures"]

KEY = SigningKey(b"release".ljust(32, b"."))
NEW, NEWER = b"\x11" * 32, b"\x22" * 32


def release(number: int = 1, *, key: SigningKey = KEY, previous: Envelope | None = None, **changes: Any) -> Envelope:
    fields: dict[str, Any] = {
        "version": f"1.{number}",
        "measurements": [NEW.hex()],
        "agents": [],
        "notes": "",
        "fixes": [],
        "vulnerable": [],
        "now": 1_790_000_000,
        **changes,
    }
    return release_envelope(number=number, previous=None if previous is None else previous.digest, key=key, **fields)


FIRST = release()
SECOND = release(2, previous=FIRST, measurements=[NEWER.hex()], vulnerable=[NEW.hex()], fixes=["a hole"])


def text(envelope: Envelope) -> str:
    return envelope.to_bytes().decode()


@pytest.fixture
def trusting(world: World) -> World:
    for party in world.parties.values():
        party.broker.measurements.trust(KEY.public)
    return world


def approve(party: Party, contract: Contract, envelope: Envelope = FIRST) -> None:
    party.broker.measurements.approve(text(envelope), [contract.digest])


def exchange(world: World, contract: Contract | None = None) -> None:
    """Each broker gets what the other holds, as over the wire."""
    contract = contract or world.contract
    for party, other in ((world.hospital, world.lab), (world.lab, world.hospital)):
        for envelope in other.broker.measurements.approvals(contract.digest):
            party.broker.measurements.accept(contract.envelope, envelope)


def refused(party: Party, workload: Workload, code: str = "appraisal.measurement") -> None:
    with nothing_granted(party), pytest.raises(Denied) as caught:
        workload.attested(party)
    assert caught.value.code == code


def test_every_partys_approval_lets_a_release_in(trusting: World) -> None:
    for party in trusting.parties.values():
        approve(party, trusting.contract)
    exchange(trusting)
    trusting.workload(measurement=NEW).run()
    trusting.workload(job=trusting.make_job()).run()  # what the contract names stays
    assert [f.details["party"] for f in trusting.hospital.log() if f.kind == "measurement.approved"] == [
        "hospital",
        "lab",
    ]


def test_the_owners_result_carries_the_approvals(trusting: World) -> None:
    """So that whoever gets the output can check offline why this workload was let in."""
    for party in trusting.parties.values():
        approve(party, trusting.contract)
        approve(party, trusting.contract, SECOND)
    exchange(trusting)
    for measured, count in ((MEASUREMENT, 0), (NEW, 2)):
        workload = trusting.workload(measurement=measured)
        cookie, challenge = trusting.hospital.broker.releases.challenge(workload.request())
        token = trusting.hospital.broker.releases.attest(cookie, workload.attestation(challenge["nonce"]))
        body = verify_token(token, trusting.contract.parties["hospital"].receipt, now=trusting.clock())
        held = [Envelope.from_bytes(one.encode()) for one in body.get("cloister.approvals", [])]
        assert len(held) == count
        assert [one.measurements for one in approved_releases(trusting.contract, held)] == [(NEW.hex(),)] * (count // 2)


def test_one_partys_approval_alone(trusting: World) -> None:
    approve(trusting.hospital, trusting.contract)
    exchange(trusting)
    for party in trusting.parties.values():
        refused(party, trusting.workload(measurement=NEW))


def test_a_partys_approval_in_anothers_name(trusting: World) -> None:
    approve(trusting.hospital, trusting.contract)
    key = trusting.hospital.broker.core.parties.signing
    forged = approval_envelope(trusting.contract.digest, "lab", read_release(FIRST, KEY.public), key, now=0)
    with nothing_granted(trusting.hospital), pytest.raises(Untrusted):
        trusting.hospital.broker.measurements.accept(trusting.contract.envelope, forged)
    refused(trusting.hospital, trusting.workload(measurement=NEW))


def test_an_approval_of_another_contract(trusting: World) -> None:
    other = trusting.sign(trusting.contract_fields(name="other"))
    for party in trusting.parties.values():
        approve(party, other)
    exchange(trusting, other)
    for party in trusting.parties.values():
        refused(party, trusting.workload(measurement=NEW))
    for envelope in trusting.lab.broker.measurements.approvals(other.digest):
        with nothing_granted(trusting.hospital), pytest.raises(Untrusted) as caught:
            trusting.hospital.broker.measurements.accept(trusting.contract.envelope, envelope)
        assert caught.value.code == "approval.other"


def test_the_parties_approved_different_releases(trusting: World) -> None:
    approve(trusting.hospital, trusting.contract, FIRST)
    approve(trusting.lab, trusting.contract, FIRST)
    approve(trusting.lab, trusting.contract, SECOND)
    exchange(trusting)
    refused(trusting.hospital, trusting.workload(measurement=NEWER))


def test_an_approval_that_says_more_than_the_release_of_its_name(trusting: World) -> None:
    """One party lets its own broker call other measurements by the digest that all approved."""
    approve(trusting.hospital, trusting.contract)
    approve(trusting.lab, trusting.contract)
    genuine = read_release(FIRST, KEY.public)
    wider = type(genuine)(**{**vars(genuine), "measurements": (NEW.hex(), NEWER.hex())})
    key = trusting.lab.broker.core.parties.signing
    forged = approval_envelope(trusting.contract.digest, "lab", wider, key, now=0)
    trusting.hospital.broker.measurements.accept(trusting.contract.envelope, forged)
    refused(trusting.hospital, trusting.workload(measurement=NEWER))
    refused(trusting.hospital, trusting.workload(measurement=NEW))  # the parties said different things


def test_an_agent_that_came_with_another_release(trusting: World) -> None:
    other_agent = release(measurements=[NEW.hex()], agents=["33" * 32])
    for party in trusting.parties.values():
        approve(party, trusting.contract, other_agent)
    exchange(trusting)
    assert AGENT.hex() != "33" * 32
    trusting.workload(measurement=NEW).run()  # the contract's agent still counts


def learned(world: World, envelope: Envelope) -> CloisterError:
    with nothing_granted(world.hospital), pytest.raises(CloisterError) as caught:
        approve(world.hospital, world.contract, envelope)
    return caught.value


def test_a_release_by_another_key(trusting: World) -> None:
    assert isinstance(learned(trusting, release(key=SigningKey.generate())), Untrusted)


def test_a_release_while_no_key_is_pinned(world: World) -> None:
    assert learned(world, FIRST).code == "release.untrusted"


def test_a_contract_passed_off_as_a_release(trusting: World) -> None:
    assert learned(trusting, trusting.contract.envelope).code == "dsse.type"


def test_a_rollback_to_an_older_release(trusting: World) -> None:
    approve(trusting.hospital, trusting.contract, FIRST)
    approve(trusting.hospital, trusting.contract, SECOND)
    error = learned(trusting, FIRST)
    assert isinstance(error, Denied)
    assert error.code == "release.rollback"
    trusting.hospital.restart()
    assert learned(trusting, FIRST).code == "release.rollback"


def test_a_release_whose_predecessor_was_withheld(trusting: World) -> None:
    approve(trusting.hospital, trusting.contract, FIRST)
    third = release(3, previous=SECOND)
    assert learned(trusting, third).code == "release.gap"


def test_two_releases_of_one_number(trusting: World) -> None:
    approve(trusting.hospital, trusting.contract, FIRST)
    assert learned(trusting, release(measurements=[NEWER.hex()])).code == "release.fork"
    elsewhere = release(version="0.9")
    assert learned(trusting, release(2, previous=elsewhere)).code == "release.fork"


def test_a_release_without_a_predecessor_that_is_not_the_first() -> None:
    with pytest.raises(Malformed):
        release(2)
    with pytest.raises(Malformed):
        release(vulnerable=[NEW.hex()])


def test_a_stranger_pushes_approvals(trusting: World) -> None:
    unknown = trusting.unsigned(trusting.contract_fields(name="unknown"))
    approve(trusting.lab, trusting.contract)
    (envelope,) = trusting.lab.broker.measurements.approvals(trusting.contract.digest)
    with nothing_granted(trusting.hospital), pytest.raises(Denied) as caught:
        trusting.hospital.broker.measurements.accept(unknown, envelope)
    assert caught.value.code == "contract.unknown"


def test_one_party_fills_anothers_disk_with_approvals(trusting: World) -> None:
    key = trusting.lab.broker.core.parties.signing
    for number in range(40):
        other = read_release(release(version=f"9.{number}", measurements=[f"{number:064x}"]), KEY.public)
        envelope = approval_envelope(trusting.contract.digest, "lab", other, key, now=number)
        trusting.hospital.broker.measurements.accept(trusting.contract.envelope, envelope)
    held = trusting.hospital.broker.measurements.approvals(trusting.contract.digest)
    assert len(held) == 32


def test_a_release_that_names_what_is_revoked_here(trusting: World) -> None:
    trusting.hospital.broker.measurements.revoke(NEW.hex(), "a hole")
    assert learned(trusting, FIRST).code == "measurement.revoked"
    approve(trusting.lab, trusting.contract)


def test_an_approval_of_a_revoked_contract(trusting: World) -> None:
    trusting.hospital.broker.agreements.revoke(trusting.contract.digest, "over")
    assert learned(trusting, FIRST).code == "contract.revoked"


def test_an_approval_of_a_contract_that_is_not_known(trusting: World) -> None:
    with nothing_granted(trusting.hospital), pytest.raises(Misuse):
        trusting.hospital.broker.measurements.approve(text(FIRST), [bytes(32)])


def test_approvals_find_their_way_though_a_party_was_away(trusting: World) -> None:
    """The hospital approves while the lab is away; the lab, when it approves, reaches the hospital and asks it, too."""
    told = trusting.hospital.broker.measurements.approve(text(FIRST), [trusting.contract.digest])
    assert told["contracts"][0]["unreached"] == ["lab"]
    with serving(trusting.hospital) as hospital:
        introduce(trusting.lab, trusting.hospital, hospital)
        told = trusting.lab.broker.measurements.approve(text(FIRST), [trusting.contract.digest])
        assert told["contracts"][0]["reached"] == ["hospital"]
        trusting.lab.broker.measurements.learn()
        assert len(trusting.lab.broker.measurements.approvals(trusting.contract.digest)) == 2
        assert trusting.lab.broker.measurements.listing()["contracts"][0]["releases"][0]["complete"]
        trusting.workload(measurement=NEW).run()
