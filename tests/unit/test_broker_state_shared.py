"""The database that replicas share: where it is, what it must promise, and what may run over it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cloister.audit import export_log, verify_checkpoint
from cloister.broker import Limits, Settings, create_home
from cloister.broker.database import PostgresDatabase, read_address
from cloister.broker.migration import migrate
from cloister.broker.startup import open_home
from cloister.broker.state import Change, State
from cloister.crypto import Signer
from cloister.errors import Denied, Internal, Misuse, Unavailable, Untrusted
from cloister.keys import open_vault
from tests.broker_party import CHEAP, NOW, PASSPHRASE, FakeClock
from tests.patience import until
from tests.postgres import Postgres, address
from tests.replicas import QUICK, SharedParty, SharedWorld

pytest_plugins = ["tests.broker_fixtures", "tests.postgres_fixtures"]

URL = "postgresql://owner:secret-word@127.0.0.1:5432/broker"


# Where it is.


@pytest.mark.parametrize(
    "text",
    [
        URL,
        f"{URL}\n",
        "postgresql:///broker?host=/run/postgresql",
        "postgresql://owner@localhost/broker",
        "postgresql://owner:x@[::1]/broker",
        "postgresql://owner:x@db.example/broker?sslmode=verify-full&sslrootcert=/etc/ca.pem",
    ],
)
def test_addresses(tmp_path: Path, text: str) -> None:
    url = read_address(address(tmp_path / "url", text))
    assert (url.drivername, url.database) == ("postgresql+psycopg", "broker")
    assert "secret-word" not in str(url) + repr(url)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "state.address"),
        ("db.example", "state.address"),
        ("mysql://owner@127.0.0.1/broker", "state.address"),
        ("postgresql://owner@127.0.0.1", "state.address"),
        ("postgresql://owner@127.0.0.1:port/broker", "state.address"),
        ("postgresql://127.0.0.1/broker?x=" + "y" * 5000, "state.address"),
        ("postgresql://owner:x@db.example/broker", "state.address_tls"),
        ("postgresql://owner:x@db.example/broker?sslmode=require", "state.address_tls"),
        ("postgresql://owner:x@127.0.0.1.example/broker", "state.address_tls"),
        ("postgresql:///broker?host=/run/postgresql,db.example", "state.address_tls"),
        ("postgresql://owner@localhost/broker?host=db.example", "state.address_tls"),
        ("postgresql://owner@localhost/broker?hostaddr=192.0.2.1", "state.address_tls"),
        ("postgresql:///broker?service=elsewhere", "state.address_tls"),
    ],
)
def test_addresses_that_are_none(tmp_path: Path, text: str, code: str) -> None:
    with pytest.raises(Misuse) as refused:
        read_address(address(tmp_path / "url", text))
    assert refused.value.code == code


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o622])
def test_an_address_that_others_can_read(tmp_path: Path, mode: int) -> None:
    file = address(tmp_path / "url", URL)
    file.chmod(mode)
    with pytest.raises(Misuse) as refused:
        read_address(file)
    assert refused.value.code == "state.address_mode"
    with pytest.raises(Misuse):
        read_address(tmp_path / "none")
    with pytest.raises(Misuse):
        read_address(tmp_path)


def told(error: BaseException) -> str:
    """Everything that an error says, down to its causes."""
    found = ""
    cause: BaseException | None = error
    while cause is not None:
        found, cause = found + repr(cause) + str(cause), cause.__cause__ or cause.__context__
    return found


def test_the_password_is_never_told(tmp_path: Path, postgres: Postgres) -> None:
    wrong = postgres.url("postgres").replace(":", ":wrong-", 2).replace("wrong-//", "//", 1)
    for text in (wrong, postgres.url("no_such_database")):
        database = PostgresDatabase(address(tmp_path / "url", text), QUICK)
        password = text.split(":")[2].split("@")[0]
        with pytest.raises(Unavailable) as refused:
            State.shared(database)
        assert refused.value.code == "state.unreachable"
        assert password not in told(refused.value)
        assert password not in repr(vars(database))


# What it must promise.


@pytest.mark.parametrize("value", ["off", "local", "remote_write"])
def test_commits_that_may_be_lost(tmp_path: Path, postgres: Postgres, empty: str, value: str) -> None:
    with postgres.connect() as connection:
        connection.execute(f"ALTER DATABASE {empty} SET synchronous_commit = {value}")
    with pytest.raises(Misuse, match="set synchronous_commit=on") as refused:
        State.shared(PostgresDatabase(address(tmp_path / "url", postgres.url(empty)), QUICK))
    assert refused.value.code == "state.durability"


@pytest.mark.parametrize("name", ["fsync", "full_page_writes"])
def test_a_server_that_does_not_write(tmp_path: Path, postgres: Postgres, empty: str, name: str) -> None:
    def shown() -> str:
        with postgres.connect() as connection:
            row = connection.execute(f"SHOW {name}").fetchone()
            assert row is not None
            return str(row[0])

    def change(value: str) -> None:
        with postgres.connect() as connection:
            connection.execute(f"ALTER SYSTEM SET {name} = {value}")
            connection.execute("SELECT pg_reload_conf()")
        until(f"{name} to be {value}", lambda: shown() == value)

    change("off")
    try:
        with pytest.raises(Misuse, match=f"set {name}=on") as refused:
            State.shared(PostgresDatabase(address(tmp_path / "url", postgres.url(empty)), QUICK))
        assert refused.value.code == "state.durability"
    finally:
        change("on")


def test_a_database_without_a_broker(tmp_path: Path, postgres: Postgres, empty: str) -> None:
    with pytest.raises(Misuse) as refused:
        State.shared(PostgresDatabase(address(tmp_path / "url", postgres.url(empty)), QUICK))
    assert refused.value.code == "state.absent"


# What may run over it.


def test_a_second_party_in_one_database(shared_world: SharedWorld, folder: Path) -> None:
    settings = Settings(folder / "bank", database=shared_world.hospital.address)
    with pytest.raises(Misuse) as refused:
        create_home(settings, "bank", PASSPHRASE, part_of=None, clock=FakeClock(), params=CHEAP)
    assert refused.value.code == "state.taken"
    assert not (folder / "bank").exists(), "nothing was made"


def test_two_processes_in_one_home(shared_world: SharedWorld) -> None:
    hospital = shared_world.hospital
    with pytest.raises(Unavailable) as refused:
        SharedParty("hospital", hospital.home, hospital.clock, hospital.judges)
    assert refused.value.code == "replica.locked"


def test_a_home_with_a_second_truth(shared_world: SharedWorld) -> None:
    hospital = shared_world.hospital
    hospital.broker.close()
    (hospital.home / "state.db").touch()
    with pytest.raises(Misuse) as refused:
        hospital.start()
    assert refused.value.code == "state.two_places"
    (hospital.home / "state.db").unlink()
    hospital.start()


def test_keys_change_only_while_no_other_replica_runs(shared_world: SharedWorld) -> None:
    hospital = shared_world.hospital
    other = hospital.replica()
    epoch, tables = hospital.broker.lifecycle.vault.epoch, hospital.tables()["assets"]
    life, facts = hospital.broker.lifecycle, hospital.tables()["facts"]
    for work in (
        hospital.broker.core.parties.rotate_signing,
        lambda: life.roots.shred_checkpoints("leaked"),
        lambda: life.roots.rekey(PASSPHRASE),
        lambda: life.roots.split(2, 3),
    ):
        with pytest.raises(Denied) as refused:
            work()
        assert refused.value.code == "replicas.running"
    assert hospital.tables()["facts"] == facts, "what can't be done is not announced either"
    with pytest.raises(Denied):
        life.rotation.rotate()
    hospital.broker.lifecycle.keeper.look()
    assert any("Another replica" in note for note in hospital.broker.notes()), "the owner is told what waits"
    assert (hospital.broker.lifecycle.vault.epoch, hospital.tables()["assets"]) == (epoch, tables)
    other.broker.close()
    hospital.broker.lifecycle.keeper.look()
    assert hospital.broker.lifecycle.vault.epoch == epoch + 1
    with pytest.raises(Untrusted) as old:
        other.start()
    assert old.value.code == "vault.rollback", "a replica with the vault from before is refused"
    shutil.copy(hospital.home / "vault.json", other.home / "vault.json")
    other.start()
    workload = shared_world.workload()
    workload.fetch(other, workload.attested(other), shared_world.data.digest)
    other.broker.close()


def test_vaults_that_were_changed_apart(shared_world: SharedWorld) -> None:
    """As when a replica that was thought lost comes back with keys of its own: it would wrap what no other can open."""
    hospital = shared_world.hospital
    other = hospital.replica()
    other.broker.close()
    hospital.broker.core.keys.vault.put_secret("test-one", b"1")
    with open_vault(other.home / "vault.json", PASSPHRASE) as apart:
        apart.put_secret("test-one", b"2")
    with pytest.raises(Untrusted) as refused:
        other.start()
    assert refused.value.code == "vault.other_copy"


def test_a_replica_whose_vault_fell_behind_gets_no_turn(shared_world: SharedWorld) -> None:
    """Its session broke while it had nothing to do, the other one found itself alone and changed the keys."""
    hospital = shared_world.hospital
    other = hospital.replica()
    workload = shared_world.workload()
    cookie = workload.attested(other)
    shared_world.server.kick(shared_world.database)
    hospital.broker.core.keys.vault.put_secret("test-one", b"1")
    with pytest.raises(Untrusted) as refused:
        workload.fetch(other, cookie, shared_world.data.digest)
    assert refused.value.code == "vault.rollback"
    assert "key.released" not in hospital.kinds()
    other.broker.close()


def test_a_turn_that_was_lost_changes_no_keys(shared_world: SharedWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """The vault's guard would be glad of a new session, which would not have the turn that its caller relies on."""
    hospital = shared_world.hospital
    keys, card, vault = hospital.broker.core.keys, hospital.broker.card, (hospital.home / "vault.json").read_bytes()
    real = keys.new_signing

    def lost(serial: int) -> Signer:
        shared_world.server.kick(shared_world.database)
        return real(serial)

    with monkeypatch.context() as patch:
        patch.setattr(keys, "new_signing", lost)
        with pytest.raises(Unavailable):
            hospital.broker.core.parties.rotate_signing()
    assert hospital.broker.card == card
    assert (hospital.home / "vault.json").read_bytes() == vault
    assert hospital.broker.core.parties.rotate_signing().serial == card.serial + 1


def test_a_change_outside_of_a_turn(shared_world: SharedWorld) -> None:
    ledger = shared_world.hospital.broker.core.ledger
    with pytest.raises(Internal):
        ledger.commit("asset.held", target="x", details={}, changes=[])
    with pytest.raises(Internal), ledger.turn(), ledger.turn():
        pass


def test_heads_are_swapped_only_for_the_one_that_was_seen(shared_world: SharedWorld) -> None:
    for party in (shared_world.hospital, shared_world.lab):
        state = party.broker.core.ledger.state
        assert state.swap_head("bank", None, "one")
        assert not state.swap_head("bank", None, "two")
        assert state.swap_head("bank", "one", "two")
        assert not state.swap_head("bank", "one", "three")
        assert [row["note"] for row in state.rows("heads", party="bank")] == ["two"]


def test_values_that_the_database_can_not_hold(shared_world: SharedWorld) -> None:
    ledger = shared_world.hospital.broker.core.ledger
    before = ledger.log.size
    with pytest.raises(Misuse) as refused, ledger.turn():
        ledger.commit("asset.held", target="x", details={}, changes=[Change("facts", {"name": "x", "value": "\0"})])
    assert refused.value.code == "state.value"
    assert (ledger.log.size, ledger.state.rows("facts", name="x")) == (before, [])


def test_an_export_is_made_once(shared_world: SharedWorld, folder: Path) -> None:
    log = shared_world.hospital.broker.core.ledger.log
    assert export_log(log, folder / "export") == log.size
    assert verify_checkpoint((folder / "export" / "checkpoint").read_text(), log.origin,
                             shared_world.hospital.broker.card.keys.receipt).size == log.size  # fmt: skip
    with pytest.raises(Misuse) as refused:
        export_log(log, folder / "export")
    assert refused.value.code == "export.exists"


def test_settings_name_one_place(tmp_path: Path) -> None:
    assert Settings(tmp_path).database is None
    with pytest.raises(Misuse):
        migrate(Settings(tmp_path), PASSPHRASE, clock=lambda: NOW)
    with pytest.raises(Misuse):
        open_home(Settings(tmp_path, database=tmp_path / "url", limits=Limits()), PASSPHRASE)
