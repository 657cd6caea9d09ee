"""An older copy of the broker's state, of its log, of its vault, or of all three is put back."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cloister.audit import AuditLog
from cloister.errors import Denied, Misuse, Untrusted
from tests.broker_world import Party, World, introduce, nothing_granted, serving

pytest_plugins = ["tests.broker_fixtures"]


def copy_home(party: Party, to: Path) -> None:
    """As an attacker with access to the disk would, while nothing runs."""
    party.broker.close()
    shutil.copytree(party.home, to)
    party.start()


def put_back(party: Party, copy: Path, *names: str) -> None:
    party.broker.close()
    for name in names or [path.name for path in copy.iterdir()]:
        old, new = copy / name, party.home / name
        if new.is_dir():
            shutil.rmtree(new)
        else:
            new.unlink(missing_ok=True)
        if old.is_dir():
            shutil.copytree(old, new)
        elif old.exists():
            shutil.copy2(old, new)


DATABASE = ("state.db", "state.db-wal", "state.db-shm")


def test_the_state_is_put_back_to_win_a_run(world: World, folder: Path) -> None:
    """The budget lives in the state: with an old copy, a used-up run would come back."""
    copy_home(world.hospital, folder / "copy")
    world.workload().run()
    put_back(world.hospital, folder / "copy", *DATABASE)
    with pytest.raises(Untrusted) as refused:
        world.hospital.start()
    assert refused.value.code == "state.rollback"


def test_the_state_is_put_back_to_forget_a_revocation(world: World, folder: Path) -> None:
    copy_home(world.lab, folder / "copy")
    world.lab.broker.agreements.revoke(world.contract.digest, "no longer wanted")
    put_back(world.lab, folder / "copy", *DATABASE)
    with pytest.raises(Untrusted) as refused:
        world.lab.start()
    assert refused.value.code == "state.rollback"


def test_the_log_is_put_back(world: World, folder: Path) -> None:
    copy_home(world.hospital, folder / "copy")
    world.workload().run()
    put_back(world.hospital, folder / "copy", "log")
    with pytest.raises(Untrusted) as refused:
        world.hospital.start()
    assert refused.value.code == "audit.rollback"


def test_another_log_of_the_same_length_is_put_in_place(world: World, folder: Path) -> None:
    """Written by a thief of the log key: the state remembers another root."""
    world.hospital.broker.close()
    origin, key = world.hospital.broker.card.log_origin, world.hospital.broker.core.keys.receipt
    size = world.hospital.broker.core.ledger.log.size
    shutil.rmtree(world.hospital.home / "log")
    with AuditLog.create(world.hospital.home / "log", origin=origin, signer=key) as log:
        log.append_many([b"invented"] * (size + 5))
    with pytest.raises(Untrusted) as refused:
        world.hospital.start()
    assert refused.value.code == "audit.rollback"


def test_the_vault_is_put_back_to_revive_a_destroyed_key(world: World, folder: Path) -> None:
    copy_home(world.hospital, folder / "copy")
    world.hospital.broker.lifecycle.rotation.rotate()
    put_back(world.hospital, folder / "copy", "vault.json")
    with pytest.raises(Untrusted) as refused:
        world.hospital.start()
    assert refused.value.code == "vault.rollback"


@pytest.mark.parametrize("name", ["state.db", "log", "vault.json", "card.json"])
def test_a_part_of_the_home_is_removed(world: World, name: str) -> None:
    world.hospital.broker.close()
    path = world.hospital.home / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises((Misuse, Untrusted)):
        world.hospital.start()


def test_the_vault_of_another_party_is_put_in_place(world: World) -> None:
    for party in world.parties.values():
        party.broker.close()
    shutil.copy(world.lab.home / "vault.json", world.hospital.home / "vault.json")
    with pytest.raises(Untrusted) as refused:
        world.hospital.start()
    assert refused.value.code == "vault.other"


def test_the_wrong_passphrase(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.hospital.broker.close()
    monkeypatch.setattr("tests.broker_party.PASSPHRASE", b"another passphrase")
    with pytest.raises(Denied) as refused:
        world.hospital.start()
    assert refused.value.code == "vault.passphrase"


def test_the_whole_home_is_put_back_and_a_peer_remembers(world: World, folder: Path) -> None:
    with serving(world.lab) as lab:
        introduce(world.hospital, world.lab, lab)
        copy_home(world.hospital, folder / "copy")
        workload = world.workload()
        workload.fetch(world.hospital, workload.attested(world.hospital), world.data.digest)
        assert world.hospital.broker.core.herald.show_all() == 1
        put_back(world.hospital, folder / "copy")
        with pytest.raises(Untrusted) as refused:
            world.hospital.start()
        assert refused.value.code == "state.rollback"
        assert "lab" in refused.value.message


def test_the_whole_home_is_put_back_while_the_peer_is_away(world: World, folder: Path) -> None:
    """At level none the broker starts with a warning; as soon as the peer is heard again, it gives out nothing more."""
    copy_home(world.hospital, folder / "copy")
    workload = world.workload()
    workload.fetch(world.hospital, workload.attested(world.hospital), world.data.digest)
    note = world.hospital.broker.core.ledger.log.head()
    world.lab.broker.heads.accept("hospital", note, [])
    put_back(world.hospital, folder / "copy")
    world.hospital.start()
    assert any("No peer confirmed" in warning for warning in world.hospital.broker.warnings)
    late = world.workload()
    cookie = late.attested(world.hospital)
    with serving(world.lab) as lab:
        introduce(world.hospital, world.lab, lab)
        assert world.hospital.broker.core.herald.show_all() == 0
        with nothing_granted(world.hospital), pytest.raises(Untrusted) as refused:
            late.fetch(world.hospital, cookie, world.data.digest)
        assert refused.value.code == "state.rollback"


def test_a_peer_that_confirms_lifts_the_warning(world: World) -> None:
    with serving(world.lab) as lab:
        introduce(world.hospital, world.lab, lab)
        world.hospital.broker.core.herald.show_all()
        broker = world.hospital.restart()
        assert broker.core.knowledge.witnessed
        assert broker.warnings == []


def test_a_peer_shows_a_head_that_another_key_signed(world: World) -> None:
    """It can't stop us with an invented head: only our own signature raises the alarm."""
    from cloister.audit import Checkpoint, sign_checkpoint
    from cloister.crypto import SigningKey

    forged = sign_checkpoint(
        Checkpoint(world.hospital.broker.card.log_origin, 1000, b"\x01" * 32), SigningKey.generate()
    )
    world.lab.broker.core.ledger.state.put_hint("heads", {"party": "hospital", "note": forged})
    with serving(world.lab) as lab:
        introduce(world.hospital, world.lab, lab)
        broker = world.hospital.restart()
        assert not broker.core.knowledge.witnessed
        broker.core.herald.check()


def test_the_log_of_a_peer_is_rolled_back_before_our_eyes(world: World) -> None:
    heads, log = world.lab.broker.heads, world.hospital.broker.core.ledger.log
    first, size = log.head(), log.size
    world.workload().run()
    newer = log.head()
    heads.accept("hospital", first, [])
    heads.accept("hospital", newer, log.prove_consistency(size, log.size))
    with pytest.raises(Untrusted) as refused:
        heads.accept("hospital", first, [])
    assert refused.value.code == "witness.rollback"
    assert heads.known("hospital") == newer
    with pytest.raises(Untrusted) as refused:
        heads.accept("hospital", newer, [b"\x00" * 32])
    assert refused.value.code == "witness.inconsistent"


def test_heads_of_strangers_are_not_kept(world: World) -> None:
    note = world.hospital.broker.core.ledger.log.head()
    for party in ("mallory", "lab"):
        with pytest.raises(Denied) as refused:
            world.lab.broker.heads.accept(party, note, [])
        assert refused.value.code == "head.unpinned"
        assert world.lab.broker.heads.known(party) is None
