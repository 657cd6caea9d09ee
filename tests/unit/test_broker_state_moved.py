"""Moving a broker from its home to the database that replicas share."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.broker import Settings
from cloister.broker.migration import migrate
from cloister.errors import CloisterError, Misuse, Untrusted
from tests.broker_party import PASSPHRASE, FakeClock, Party, insecure_judges
from tests.postgres import Postgres, address
from tests.replicas import QUICK, SharedParty, checked

pytest_plugins = ["tests.broker_fixtures", "tests.postgres_fixtures"]


@pytest.fixture
def moving(folder: Path, postgres: Postgres, empty: str) -> tuple[Party, SharedParty, Settings]:
    """A party in its own home, the same one as it will be, and the settings to move it with."""
    own = Party("hospital", folder / "hospital", FakeClock(), insecure_judges())
    own.seal(folder / "data", "hospital/queries", "dataset")
    ledger = own.broker.core.ledger
    ledger.log.append_many([ledger._encoded("attest.ok", target="x", details={"n": n}) for n in range(600)])
    ledger.append("attest.ok", target="x", details={})  # the journal drops what full bundles hold
    own.broker.close()
    address(folder / "hospital.url", postgres.url(empty))
    later = SharedParty.__new__(SharedParty)
    later.name, later.home, later.clock, later.judges, later.limits = (
        own.name, own.home, own.clock, own.judges, QUICK,
    )  # fmt: skip
    return own, later, Settings(own.home, limits=QUICK, database=folder / "hospital.url")


def test_a_home_is_moved(moving: tuple[Party, SharedParty, Settings], folder: Path) -> None:
    own, later, settings = moving
    own.start()
    log, key = own.broker.core.ledger.log, own.broker.card.keys.receipt
    size, head, tables, entries = log.size, log.head(), own.tables(), own.log()
    receipt = log.receipt(3)
    own.broker.close()
    moved = migrate(settings, PASSPHRASE, clock=own.clock)
    assert moved.entries == size
    assert {path.name for path in moved.aside} >= {"state.db.migrated", "log.migrated"}
    with pytest.raises(Misuse) as refused:
        own.start()
    assert refused.value.code == "state.file", "the home alone is no broker any more"
    later.start()
    assert later.tables() == tables
    assert later.log()[:size] == entries
    assert later.kinds()[size : size + 2] == ["state.migrated", "broker.started"]
    again = later.broker.core.ledger.log.receipt(3)
    assert (again.leaf, again.index) == (receipt.leaf, 3)
    again.verify(log.origin, key)
    assert checked(later, folder / "export", older=head).checkpoint.size > size
    with pytest.raises(Misuse):
        migrate(settings, PASSPHRASE, clock=own.clock)
    later.broker.close()


def test_a_move_that_was_broken_off_is_gone_on_with(
    moving: tuple[Party, SharedParty, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    own, later, settings = moving

    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("cloister.broker.migration._set_aside", kill)
        with pytest.raises(Killed):
            migrate(settings, PASSPHRASE, clock=own.clock)
    with pytest.raises(Misuse) as refused:
        later.start()
    assert refused.value.code == "state.two_places", "neither truth is taken silently"
    migrate(settings, PASSPHRASE, clock=own.clock)
    later.start()
    later.broker.close()


def test_a_home_that_went_on_is_not_moved_over_what_was_copied(
    moving: tuple[Party, SharedParty, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    own, _, settings = moving
    with monkeypatch.context() as patch:
        patch.setattr("cloister.broker.migration._set_aside", lambda _: ())
        with pytest.raises(CloisterError):
            migrate(settings, PASSPHRASE, clock=own.clock)
    own.start()
    own.broker.close()
    with pytest.raises(Misuse) as refused:
        migrate(settings, PASSPHRASE, clock=own.clock)
    assert refused.value.code == "state.taken"


def test_a_changed_log_is_not_moved(
    moving: tuple[Party, SharedParty, Settings], postgres: Postgres, empty: str
) -> None:
    own, _, settings = moving
    bundle = own.home / "log" / "tile" / "entries" / "000"
    data = bytearray(bundle.read_bytes())
    data[1000] ^= 1
    bundle.write_bytes(bytes(data))
    with pytest.raises(Untrusted):
        migrate(settings, PASSPHRASE, clock=own.clock)
    with postgres.connect(empty) as connection:
        found = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone()
    assert found == (0,), "nothing was kept of it"
    assert (own.home / "state.db").exists()
