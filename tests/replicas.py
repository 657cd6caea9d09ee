"""A hospital whose state and log are in PostgreSQL, and replicas of its broker.

The lab keeps its own SQLite, as another organization may.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from cloister.audit import LogReport, check_log, export_log
from cloister.broker import Limits, Settings
from tests.broker_party import FakeClock, Party, insecure_judges
from tests.broker_world import World
from tests.postgres import Postgres, address

__all__ = ["QUICK", "SharedParty", "SharedWorld", "checked"]

# What a lost lock or connection costs in waiting; a bound, on which no test's outcome depends.
QUICK = Limits(heads_interval=3600.0, peer_seconds=30.0, turn_seconds=2.0)


@dataclass
class SharedParty(Party):
    """``home`` as ever; the database's URL is in the file beside it."""

    limits: Limits = field(default_factory=lambda: QUICK)

    @property
    def settings(self) -> Settings:
        return Settings(self.home, limits=self.limits, database=self.address)

    @property
    def address(self) -> Path:
        return self.home.with_name(f"{self.home.name}.url")

    def replica(self, name: str = "replica", url: str | None = None) -> SharedParty:
        """Another process's part: a home of its own with copies of vault and card, over the same database."""
        home = self.home.with_name(f"{self.home.name}-{name}")
        home.mkdir(mode=0o700)
        for file in ("vault.json", "card.json"):
            shutil.copy(self.home / file, home / file)
        address(home.with_name(f"{home.name}.url"), url or self.address.read_text())
        return SharedParty(self.name, home, self.clock, self.judges, self.limits)


@dataclass
class SharedWorld(World):
    server: Postgres = None  # type: ignore[assignment]
    database: str = ""

    def open(self) -> SharedWorld:
        judges = insecure_judges()
        self.folder.mkdir(exist_ok=True)
        address(self.folder / "hospital.url", self.server.url(self.database))
        self.parties["hospital"] = SharedParty("hospital", self.folder / "hospital", self.clock, judges)
        self.parties["lab"] = Party("lab", self.folder / "lab", self.clock, judges)
        return self

    @property
    def hospital(self) -> SharedParty:
        party = self.parties["hospital"]
        assert isinstance(party, SharedParty)
        return party

    def copy_to(self, folder: Path) -> SharedWorld:
        shutil.copytree(self.folder, folder)
        copy = SharedWorld(folder, FakeClock(), server=self.server, database=self.server.database(self.database))
        copy.data, copy.base, copy.contract, copy.job = self.data, self.base, self.contract, self.job
        return copy.open()


def checked(party: Party, folder: Path, *, older: str | None = None) -> LogReport:
    """The independent checker's word on the whole log, from an export of it."""
    log = party.broker.core.ledger.log
    shutil.rmtree(folder, ignore_errors=True)
    export_log(log, folder)
    return check_log(folder, log.origin, party.broker.card.keys.receipt, older=older)
