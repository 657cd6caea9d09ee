"""A key goes out on the word of somebody who is no witness of the contract, or a witness spoils the others' words."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from cloister.audit import Checkpoint, cosign, sign_checkpoint, verify_quorum
from cloister.broker import witness as witness_module
from cloister.crypto import SigningKey
from cloister.errors import CloisterError, Unavailable, Untrusted
from tests.broker_party import Party, insecure_judges
from tests.broker_world import World, introduce, serving

pytest_plugins = ["tests.broker_fixtures"]

LOG, ONE, TWO = (SigningKey(bytes([number]) * 32) for number in (1, 2, 3))
WITNESSES = {"one": ONE.public, "two": TWO.public}
HEAD = Checkpoint("log", 5, b"\x01" * 32)
NOTE = sign_checkpoint(HEAD, LOG)


def cosigned(name: str, key: SigningKey, note: str = NOTE) -> str:
    return cosign(note, HEAD, name=name, key=key, now=100)


def quorum(least: int, **answers: str | CloisterError) -> str:
    errands: dict[Future[str], str] = {}
    for name, answer in answers.items():
        future: Future[str] = Future()
        future.set_exception(answer) if isinstance(answer, CloisterError) else future.set_result(answer)
        errands[future] = name
    return witness_module._quorum(NOTE, errands, WITNESSES, least, 50, 0.0)


def test_a_pinned_party_of_no_contract_witnesses_a_release(world: World) -> None:
    """The contract's only other party is away. What acme says about the log binds nobody who signed."""
    acme = Party("acme", world.folder / "acme", world.clock, insecure_judges())
    for party, other in ((world.hospital, acme), (acme, world.hospital)):
        card = other.broker.card
        party.broker.core.parties.pin(card.envelope.to_bytes().decode(), card.fingerprint)
    platform = {**world.contract_fields()["platform"], "witness_quorum": 1}
    contract = world.sign(world.contract_fields(name="strict", platform=platform))
    workload = world.workload(contract=contract, job=world.make_job(contract))
    with serving(acme) as running:
        introduce(world.hospital, acme, running)
        cookie = workload.attested(world.hospital)
        with pytest.raises(Untrusted) as refused:
            workload.fetch(world.hospital, cookie, world.data.digest)
        assert refused.value.code == "witness.quorum"
        assert acme.broker.heads.known("hospital") is None  # nor was it asked
    with serving(world.lab) as running:
        introduce(world.hospital, world.lab, running)
        _, body = workload.open(workload.fetch(world.hospital, cookie, world.data.digest), world.data.digest)
    verify_quorum(body["receipt"]["checkpoint"], contract.witnesses("hospital"), 1, not_before=0)
    world.lab.start()


def test_a_witness_signs_in_anothers_name() -> None:
    forged = cosigned("two", ONE)
    spoilt = forged.replace(
        cosigned("two", ONE).splitlines()[-1], cosigned("two", TWO).splitlines()[-1][:-6] + "AAAAA="
    )
    for bad in (forged, spoilt):
        assert quorum(1, one=bad, two=cosigned("two", TWO)) == cosigned("two", TWO)
        with pytest.raises(Untrusted) as refused:
            quorum(2, one=bad, two=cosigned("two", TWO))
        assert refused.value.code == "witness.quorum"


def test_a_witness_fills_the_note_with_lines() -> None:
    many = cosigned("one", ONE)
    for number in range(60):
        many = cosigned(f"crowd{number}", SigningKey.generate(), many)
    both = quorum(2, one=many, two=cosigned("two", TWO))
    assert len(both.splitlines()) == len(NOTE.splitlines()) + 2
    assert set(verify_quorum(both, WITNESSES, 2, not_before=50)) == {"one", "two"}


def test_a_witness_cosigns_another_head_or_cosigned_long_ago() -> None:
    other = Checkpoint("log", 6, b"\x02" * 32)
    elsewhere = cosign(sign_checkpoint(other, LOG), other, name="one", key=ONE, now=100)
    old = cosign(NOTE, HEAD, name="one", key=ONE, now=49)
    for answer in (elsewhere, old, NOTE, "", Unavailable("peer.unreachable", "Away.")):
        with pytest.raises(Untrusted) as refused:
            quorum(1, one=answer)
        assert refused.value.code == "witness.quorum"
