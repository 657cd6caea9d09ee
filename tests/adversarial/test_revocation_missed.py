"""A party was away when a contract was revoked, or somebody makes the revoker forget it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from cloister.broker.state import State
from cloister.contracts import in_force_statement, revocation_envelope
from cloister.crypto import SigningKey
from cloister.errors import Denied, Unavailable
from tests.adversarial.test_rollback_broker import copy_home, put_back
from tests.broker_world import Party, World, introduce, nothing_granted, serving
from tests.patience import until

pytest_plugins = ["tests.broker_fixtures"]


def revoke(world: World, by: Party) -> tuple[list[str], list[str]]:
    contract, text = by.broker.agreements.revoke(world.contract.digest, "no longer wanted")
    return by.broker.notices.revoked(contract, text)


def revoked_at(world: World, party: Party) -> str | None:
    (row,) = [row for row in party.tables()["contracts"] if row["digest"] == world.contract.digest.hex()]
    return row["revoked_by"]


def told(party: Party) -> list[str]:
    return [row["party"] for row in party.broker.core.ledger.state.rows("told")]


def no_key(world: World, party: Party) -> None:
    statements = []
    for other in world.parties.values():
        key = other.broker.core.keys.status
        statement = in_force_statement(world.contract, other.name, key, now=world.clock())
        statements.append(statement.to_bytes().decode())
    with nothing_granted(party), pytest.raises(Denied) as refused:
        party.broker.releases.challenge(world.workload().request(statements=statements))
    assert refused.value.code == "contract.revoked"


def test_a_revocation_that_only_the_log_has(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state's disk is full, so the tables know nothing of it yet: no word of ours may say "in force" meanwhile."""

    def unreachable(*_: Any, **__: Any) -> NoReturn:
        raise Unavailable("state.unreachable", "The broker's state can't be written.")

    agreements = world.lab.broker.agreements
    assert agreements.status(world.contract.digest).statement is not None
    with monkeypatch.context() as full:
        full.setattr(State, "apply", unreachable)
        with pytest.raises(Unavailable):
            agreements.revoke(world.contract.digest, "no longer wanted")
        assert revoked_at(world, world.lab) is None
        answer = agreements.status(world.contract.digest)  # finishes what the log has before it says anything
    assert (answer.statement, answer.refusal.code if answer.refusal else None) == (None, "contract.revoked")


def test_a_peer_is_kept_away_while_a_contract_is_revoked(world: World) -> None:
    """It is told as soon as it can be reached again, also by a revoker that was restarted since."""
    assert revoke(world, world.hospital) == ([], ["lab"])
    world.hospital.restart()
    world.hospital.broker.notices.resend()
    assert (revoked_at(world, world.lab), told(world.hospital)) == (None, [])
    with serving(world.lab) as lab:
        introduce(world.hospital, world.lab, lab)
        world.hospital.broker.notices.resend()
        assert (revoked_at(world, world.lab), told(world.hospital)) == ("hospital", ["lab"])
        no_key(world, world.lab)
        size = len(world.lab.log())
        world.hospital.broker.notices.resend()
        assert len(world.lab.log()) == size


def test_the_background_tells_what_was_missed(world: World) -> None:
    world.hospital.limits = replace(world.hospital.limits, heads_interval=0.01, notices_interval=0.05)
    world.hospital.restart()
    revoke(world, world.hospital)
    with serving(world.hospital), serving(world.lab) as lab:
        introduce(world.hospital, world.lab, lab)
        until("the lab to be told", lambda: told(world.hospital))
        assert revoked_at(world, world.lab) == "hospital"


def test_a_peer_that_refuses_the_notice_is_told_again(world: World) -> None:
    revoke(world, world.hospital)
    with serving(world.lab) as lab:
        introduce(world.hospital, world.lab, lab)
        accept, world.lab.broker.agreements.accept_revocation = world.lab.broker.agreements.accept_revocation, _refuse
        world.hospital.broker.notices.resend()
        assert told(world.hospital) == []
        world.lab.broker.agreements.accept_revocation = accept
        world.hospital.broker.notices.resend()
        assert told(world.hospital) == ["lab"]


def _refuse(*_: object) -> None:
    raise Denied("contract.unpinned", "Not yet.")


def test_an_old_copy_of_the_revokers_home_forgets_the_revocation(world: World, folder: Path) -> None:
    """The peer has the revocation and shows it, before the old copy serves anybody."""
    copy_home(world.hospital, folder / "copy")
    with serving(world.lab) as lab:
        introduce(world.hospital, world.lab, lab)
        copy_home(world.hospital, folder / "introduced")
        assert revoke(world, world.hospital) == (["lab"], [])
        put_back(world.hospital, folder / "introduced")
        world.hospital.start()
        assert revoked_at(world, world.hospital) == "hospital"
        assert world.hospital.broker.agreements.status(world.contract.digest).statement is None
    no_key(world, world.hospital)


def test_an_old_copy_starts_while_the_peer_is_away(world: World, folder: Path) -> None:
    """The peer is asked as soon as it can be reached."""
    copy_home(world.hospital, folder / "copy")
    with serving(world.lab) as lab:
        introduce(world.hospital, world.lab, lab)
        assert revoke(world, world.hospital) == (["lab"], [])
        put_back(world.hospital, folder / "copy")
        world.hospital.start()
        assert revoked_at(world, world.hospital) is None
        introduce(world.hospital, world.lab, lab)
        world.hospital.broker.notices.learn()
        assert revoked_at(world, world.hospital) == "hospital"


def test_a_party_that_was_away_asks_when_it_is_back(world: World) -> None:
    revoke(world, world.hospital)
    with serving(world.hospital) as hospital:
        introduce(world.lab, world.hospital, hospital)
        world.lab.restart()
        assert revoked_at(world, world.lab) == "hospital"
    no_key(world, world.lab)


def test_a_peer_shows_a_revocation_that_nobody_signed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It could as well refuse its own statements; it can't speak for others."""
    thief = SigningKey.generate()
    forged = revocation_envelope(world.contract.digest, "hospital", thief, now=world.clock(), reason="x")
    peers = world.hospital.broker.core.peers
    peers.set_address("lab", "127.0.0.1:1")
    monkeypatch.setattr(peers, "revocation", lambda *_: forged.to_bytes().decode())
    with nothing_granted(world.hospital):
        world.hospital.broker.notices.learn()
    assert revoked_at(world, world.hospital) is None


@pytest.mark.parametrize(
    ("status", "answer"),
    [(200, {}), (403, []), (403, {}), (403, {"revocation": 5}), (403, {"revocation": "{}"}), (500, None)],
)
def test_a_peer_answers_with_rubbish(
    world: World, monkeypatch: pytest.MonkeyPatch, status: int, answer: object
) -> None:
    peers = world.hospital.broker.core.peers
    peers.set_address("lab", "127.0.0.1:1")
    asked: list[str] = []

    def rubbish(_card: object, _method: str, path: str, _body: object) -> tuple[int, object]:
        asked.append(path)
        return status, answer

    monkeypatch.setattr(peers, "_ask", rubbish)
    with nothing_granted(world.hospital):
        for _ in range(2):
            world.hospital.broker.notices.learn()
    assert asked == [f"/cloister/v1/status/{world.contract.digest.hex()}"]
