"""A party says no, and somebody wants the run to go on: silence, old words, words about something else."""

from __future__ import annotations

from typing import Any

import pytest

from cloister.contracts import in_force_statement, read_contract, revocation_envelope
from cloister.crypto import Envelope, SigningKey
from cloister.errors import CloisterError, Denied, Untrusted
from tests.broker_world import LEASE, Party, World, nothing_granted

pytest_plugins = ["tests.broker_fixtures"]


def statement(world: World, party: Party, *, contract: Any = None, now: int | None = None) -> str:
    key = party.broker.core.keys.status
    moment = world.clock() if now is None else now
    return in_force_statement(contract or world.contract, party.name, key, now=moment).to_bytes().decode()


def knock(world: World, statements: list[str]) -> None:
    world.hospital.broker.releases.challenge(world.workload().request(statements=statements))


def test_the_operator_leaves_out_a_partys_statement(world: World) -> None:
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        knock(world, [statement(world, world.hospital)])
    assert refused.value.code == "status.missing"
    assert refused.value.details == {"party": "lab"}


def test_the_operator_keeps_an_old_statement(world: World) -> None:
    """Silencing a party's broker works for one lease at most."""
    old = statement(world, world.lab)
    world.clock.pass_seconds(LEASE)
    knock(world, [old])
    world.clock.pass_seconds(1)
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        knock(world, [old])
    assert refused.value.code == "status.stale"


def test_a_statement_from_the_future_is_kept_for_later(world: World) -> None:
    early = statement(world, world.lab, now=world.clock() + 6)
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        knock(world, [early])
    assert refused.value.code == "status.stale"


def test_a_statement_about_another_contract(world: World) -> None:
    other = world.sign(world.contract_fields(name="other"))
    with nothing_granted(world.hospital), pytest.raises(Untrusted) as refused:
        knock(world, [statement(world, world.lab, contract=other)])
    assert refused.value.code == "status.other"


def test_a_statement_that_somebody_else_signed(world: World) -> None:
    thief = SigningKey.generate()
    forged = in_force_statement(world.contract, "lab", thief, now=world.clock()).to_bytes().decode()
    with nothing_granted(world.hospital), pytest.raises(Untrusted) as refused:
        knock(world, [forged])
    assert refused.value.code == "dsse.unsigned"


def test_statements_go_stale_within_a_session(world: World) -> None:
    """Attested in time, then held back until the other party had said no."""
    workload = world.workload()
    cookie = workload.attested(world.hospital)
    world.clock.pass_seconds(LEASE + 1)
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        workload.fetch(world.hospital, cookie, world.data.digest)
    assert refused.value.code == "status.stale"


def revoke(world: World, by: Party, to: Party | None = None) -> str:
    _, text = by.broker.agreements.revoke(world.contract.digest, "no longer wanted")
    if to is not None:
        to.broker.agreements.accept_revocation(world.contract.envelope, Envelope.from_bytes(text.encode()))
    return text


@pytest.mark.parametrize(("by", "to"), [("hospital", None), ("lab", "hospital")])
def test_a_revoked_contract_gives_no_key(world: World, by: str, to: str | None) -> None:
    workload = world.workload()
    cookie = workload.attested(world.hospital)
    statements = workload.statements()
    revoke(world, world.parties[by], world.parties[to] if to else None)
    with nothing_granted(world.hospital):
        with pytest.raises(Denied) as refused:
            workload.fetch(world.hospital, cookie, world.data.digest)
        assert refused.value.code == "contract.revoked"
        with pytest.raises(Denied) as refused:
            knock(world, statements)
        assert refused.value.code == "contract.revoked"


def test_the_answer_to_a_retry_is_not_given_after_a_revocation(world: World) -> None:
    workload = world.workload()
    cookie = workload.attested(world.hospital)
    workload.fetch(world.hospital, cookie, world.data.digest)
    revoke(world, world.hospital)
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        workload.fetch(world.hospital, cookie, world.data.digest)
    assert refused.value.code == "contract.revoked"


def test_a_running_job_goes_on_after_a_revocation(world: World, folder: Any) -> None:
    """Its lease is cut at once: no renewal, no checkpoint, no output."""
    workload = world.workload().run()
    output = workload.output(folder / "o")
    statements = workload.statements()
    revoke(world, world.lab, world.hospital)
    broker = world.hospital.broker
    attempts = [
        lambda: broker.releases.challenge(workload.request("renew", 1, statements=statements)),
        lambda: broker.leases.checkpoint(workload.record(1)),
        lambda: broker.permits.permit(output.envelope),
    ]
    with nothing_granted(world.hospital):
        for attempt in attempts:
            with pytest.raises(Denied) as refused:
                attempt()
            assert refused.value.code in ("contract.revoked", "lease.cut")
    assert [row["cut"] for row in world.hospital.tables()["instances"]] == [1]


def test_the_revoker_makes_no_more_statements(world: World) -> None:
    text = revoke(world, world.lab)
    answer = world.lab.broker.agreements.status(world.contract.digest)
    assert answer.statement is None
    assert answer.refusal is not None
    assert (answer.refusal.code, answer.revocation) == ("contract.revoked", text)


def test_a_revocation_is_taken_back(world: World) -> None:
    """Neither the revoker nor anybody else can: a second one changes nothing, and signing again is refused."""
    first = revoke(world, world.lab)
    with nothing_granted(world.lab):
        assert revoke(world, world.lab) == first
        with pytest.raises(Denied) as refused:
            world.lab.broker.agreements.sign(world.contract.envelope)
    assert refused.value.code == "contract.revoked"
    world.lab.broker.agreements.store(world.contract.envelope)
    assert world.lab.broker.agreements.status(world.contract.digest).statement is None


def test_a_revocation_survives_a_restart(world: World) -> None:
    revoke(world, world.lab)
    world.lab.restart()
    assert world.lab.broker.agreements.status(world.contract.digest).statement is None


def test_a_stranger_revokes(world: World) -> None:
    thief = SigningKey.generate()
    for party in ("lab", "mallory"):
        forged = revocation_envelope(world.contract.digest, party, thief, now=world.clock(), reason="x")
        with nothing_granted(world.hospital), pytest.raises(Untrusted):
            world.hospital.broker.agreements.accept_revocation(world.contract.envelope, forged)
    knock(world, [statement(world, world.lab)])


def test_a_stranger_fills_the_state_with_revoked_contracts(world: World) -> None:
    """Contracts that nobody signed, or that other parties made, are not stored on anybody's word."""
    unsigned = read_contract(world.unsigned(world.contract_fields(name="spam")))
    key = world.lab.broker.core.keys.status
    revocation = revocation_envelope(unsigned.digest, "lab", key, now=world.clock(), reason="x")
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        world.hospital.broker.agreements.accept_revocation(unsigned.envelope, revocation)
    assert refused.value.code == "contract.unsigned"


def test_a_revocation_arrives_before_its_contract(world: World) -> None:
    """A fully signed contract of ours, which only the other party had stored yet."""
    envelope = world.unsigned(world.contract_fields(name="fresh"))
    for party in world.parties.values():
        envelope = envelope.signed_by(party.broker.core.parties.signing)
    contract = read_contract(envelope)
    key = world.lab.broker.core.keys.status
    revocation = revocation_envelope(contract.digest, "lab", key, now=world.clock(), reason="x")
    world.hospital.broker.agreements.accept_revocation(envelope, revocation)
    world.hospital.broker.agreements.store(envelope)
    answer = world.hospital.broker.agreements.status(contract.digest)
    assert answer.refusal is not None
    assert answer.refusal.code == "contract.revoked"


def test_leases_end_by_themselves_when_a_party_falls_silent(world: World) -> None:
    workload = world.workload().run()
    world.clock.pass_seconds(LEASE)
    for attempt in (
        lambda: workload.attested(world.hospital, "renew", 1),
        lambda: world.hospital.broker.leases.checkpoint(workload.record(1)),
    ):
        with nothing_granted(world.hospital), pytest.raises(CloisterError) as refused:
            attempt()
        assert refused.value.code == "lease.expired"


def test_one_party_declares_another_lost(world: World) -> None:
    workload = world.workload()
    cookie = workload.attested(world.hospital)
    world.hospital.broker.core.parties.distrust("lab", None)
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        workload.fetch(world.hospital, cookie, world.data.digest)
    assert refused.value.code == "party.compromised"


def test_a_party_declares_itself_lost(world: World) -> None:
    statement = world.lab.broker.core.parties.declare_compromised().to_bytes().decode()
    assert world.lab.broker.agreements.status(world.contract.digest).statement is None
    world.hospital.broker.core.parties.distrust("lab", statement)
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        world.workload().attested(world.hospital)
    assert refused.value.code == "party.compromised"
