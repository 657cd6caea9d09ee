"""Leases: a cookie, a frozen copy, an old instance, a skipped sequence. None of them renews."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cloister.crypto import Envelope, SigningKey, parse_json
from cloister.errors import Denied, Untrusted
from tests.broker_world import LEASE, Workload, World, nothing_granted

pytest_plugins = ["tests.broker_fixtures"]


def renewed(world: World, workload: Workload, sequence: int) -> dict[str, object]:
    cookie = workload.attested(world.hospital, "renew", sequence)
    answer = parse_json(world.hospital.broker.leases.renew(cookie))
    envelope = Envelope.from_bytes(answer["lease"].encode())
    envelope.verify("application/vnd.cloister.lease+json", [world.contract.parties["hospital"].receipt])
    return dict(envelope.document())


def test_an_honest_run_renews(world: World) -> None:
    workload = world.workload().run()
    for sequence in (1, 2, 3):
        world.clock.pass_seconds(LEASE // 2)
        lease = renewed(world, workload, sequence)
        assert (lease["sequence"], lease["expires"]) == (sequence, world.clock() + LEASE)
        assert lease["seconds"] == LEASE
    assert world.hospital.kinds().count("lease.renewed") == 3


def test_the_cookie_of_the_release_renews(world: World) -> None:
    workload = world.workload()
    cookie = workload.attested(world.hospital)
    workload.fetch(world.hospital, cookie, world.data.digest)
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        world.hospital.broker.leases.renew(cookie)
    assert refused.value.code == "session.purpose"


def test_the_cookie_of_a_renewal_renews_again(world: World) -> None:
    workload = world.workload().run()
    cookie = workload.attested(world.hospital, "renew", 1)
    first = world.hospital.broker.leases.renew(cookie)
    world.clock.pass_seconds(LEASE // 2)
    with nothing_granted(world.hospital):
        assert world.hospital.broker.leases.renew(cookie) == first


def test_a_renewal_without_a_session(world: World) -> None:
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        world.hospital.broker.leases.renew("A" * 43)
    assert refused.value.code == "session.absent"


@pytest.mark.parametrize("sequence", [0, 2, 3])
def test_a_renewal_names_another_sequence(world: World, sequence: int) -> None:
    workload = world.workload().run()
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        workload.attested(world.hospital, "renew", sequence)
    assert refused.value.code == "lease.sequence"


def test_two_renewals_attest_for_one_sequence(world: World) -> None:
    workload = world.workload().run()
    cookies = [workload.attested(world.hospital, "renew", 1) for _ in range(2)]
    world.hospital.broker.leases.renew(cookies[0])
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        world.hospital.broker.leases.renew(cookies[1])
    assert refused.value.code == "lease.sequence"


def test_an_instance_without_a_lease_renews(world: World) -> None:
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        world.workload().attested(world.hospital, "renew", 1)
    assert refused.value.code == "lease.unknown"


def test_the_old_instance_renews_after_a_new_one_began(world: World) -> None:
    old = world.workload().run()
    cookie = old.attested(world.hospital, "renew", 1)
    world.workload().run("resume")
    with nothing_granted(world.hospital):
        with pytest.raises(Denied) as refused:
            world.hospital.broker.leases.renew(cookie)
        assert refused.value.code == "lease.cut"
        for purpose, sequence in (("renew", 1), ("release", 0), ("resume", 0)):
            with pytest.raises(Denied) as refused:
                old.attested(world.hospital, purpose, sequence)
            assert refused.value.code == "lease.cut"


def test_an_instance_renews_with_other_keys(world: World) -> None:
    """Memory was copied out, and the copy brought its own signing key."""
    workload = world.workload().run()
    copy = replace(workload, signing=SigningKey.generate())
    with nothing_granted(world.hospital), pytest.raises(Untrusted) as refused:
        copy.attested(world.hospital, "renew", 1)
    assert refused.value.code == "instance.other"


def test_a_lease_that_has_ended_is_renewed(world: World) -> None:
    workload = world.workload().run()
    world.clock.pass_seconds(LEASE)
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        workload.attested(world.hospital, "renew", 1)
    assert refused.value.code == "lease.expired"


def test_a_lease_does_not_outlive_its_contract(world: World) -> None:
    world.clock.now = world.contract.expires - 10
    workload = world.workload()
    _, body = workload.open(
        workload.fetch(world.hospital, workload.attested(world.hospital), world.data.digest), world.data.digest
    )
    assert body["lease"] == {"expires": world.contract.expires, "seconds": 10, "sequence": 0}


def test_a_renewed_lease_does_not_outlive_its_contract(world: World) -> None:
    world.clock.now = world.contract.expires - LEASE
    workload = world.workload().run()
    world.clock.pass_seconds(LEASE - 2)
    lease = renewed(world, workload, 1)
    assert (lease["expires"], lease["seconds"]) == (world.contract.expires, 2)


def test_a_second_key_does_not_lengthen_the_lease(world: World) -> None:
    workload = world.workload()
    cookie = workload.attested(world.hospital)
    workload.fetch(world.hospital, cookie, world.data.digest)
    world.clock.pass_seconds(10)
    jwe = world.hospital.broker.releases.resource(cookie, "hospital", "state-share", "checkpoint")
    from cloister.broker.kbs_request import resource_named

    share, body = workload.open(jwe, resource_named("state-share", "checkpoint").digest)
    assert len(share) == 32
    assert body["lease"]["seconds"] == LEASE - 10


def test_a_session_outlives_its_time(world: World) -> None:
    workload = world.workload()
    cookie = workload.attested(world.hospital)
    world.clock.pass_seconds(world.hospital.limits.session_seconds)
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        workload.fetch(world.hospital, cookie, world.data.digest)
    assert refused.value.code == "session.absent"
