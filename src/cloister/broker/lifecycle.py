"""The life of the owner's keys in one place: built once, served to the owner, kept by one thread."""

from __future__ import annotations

from dataclasses import dataclass

from ..keys import Vault
from .core import Core
from .keeper import Keeper, jumped_before
from .retention import Retention
from .rootkeys import RootKeys
from .rotation import Rotation
from .schedule import Schedule
from .shredding import Shredder
from .tasks import Reencryptions
from .usage import Usage

__all__ = ["Lifecycle"]


@dataclass(frozen=True)
class Lifecycle:
    """Every part, in the order in which they stand on each other."""

    vault: Vault
    rotation: Rotation
    schedule: Schedule
    usage: Usage
    retention: Retention
    shredder: Shredder
    tasks: Reencryptions
    roots: RootKeys
    keeper: Keeper

    @classmethod
    def over(cls, core: Core, vault: Vault) -> Lifecycle:
        """``vault``: what ``core.keys`` has, as the file that it is."""
        ledger, clock, limits = core.ledger, core.clock, core.limits
        rotation = Rotation(core.keys, ledger, clock, limits)
        schedule = Schedule(ledger, clock, vault.owner)
        usage = Usage(ledger.log)
        retention = Retention(core.assets, ledger, clock)
        shredder = Shredder(core.assets, retention, rotation, usage, core.knowledge, ledger, clock)
        tasks = Reencryptions(core.keys, core.assets, retention, ledger, clock)
        roots = RootKeys(vault, retention, core.knowledge, ledger, clock)
        gap = jumped_before(ledger.log, now=clock(), limits=limits)
        keeper = Keeper(rotation, schedule, retention, shredder, roots, clock, limits, gap=gap)
        return cls(vault, rotation, schedule, usage, retention, shredder, tasks, roots, keeper)

    def resume(self) -> None:
        """At start: what a crash left half-done. What can't be finished now is said in ``notes``."""
        self.keeper.resume()

    def notes(self) -> list[str]:
        """What the owner should know now."""
        return [*self.roots.notes(), *self.keeper.notes()]

    def stop(self) -> None:
        self.keeper.stop()
