"""The life of the owner's keys in one place: built once, served to the owner, kept by one thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import Untrusted
from ..keys import KeyVault
from .core import Core
from .keeper import Keeper, jumped_before
from .ledger import Ledger
from .retention import Retention
from .rootkeys import RootKeys, Splitter
from .rotation import Rotation, fact
from .schedule import Schedule
from .shredding import Shredder
from .tasks import Reencryptions
from .usage import Usage

__all__ = ["Lifecycle", "remembered_revision"]


@dataclass(frozen=True)
class Lifecycle:
    """Every part, in the order in which they stand on each other."""

    vault: KeyVault
    rotation: Rotation
    schedule: Schedule
    usage: Usage
    retention: Retention
    shredder: Shredder
    tasks: Reencryptions
    roots: RootKeys
    keeper: Keeper

    @classmethod
    def over(cls, core: Core, *, split: Splitter) -> Lifecycle:
        ledger, clock, limits, vault = core.ledger, core.clock, core.limits, core.keys.vault
        rotation = Rotation(core.keys, ledger, clock, limits)
        schedule = Schedule(ledger, clock, vault.owner)
        usage = Usage(ledger.log)
        retention = Retention(core.assets, ledger, clock)
        shredder = Shredder(core.assets, retention, rotation, usage, core.knowledge, ledger, clock)
        tasks = Reencryptions(core.keys, core.assets, retention, ledger, clock)
        roots = RootKeys(vault, core.knowledge, ledger, clock, split)
        gap = jumped_before(ledger.log, now=clock(), limits=limits)
        keeper = Keeper(rotation, schedule, retention, shredder, roots, clock, limits, gap=gap)
        return cls(vault, rotation, schedule, usage, retention, shredder, tasks, roots, keeper)

    def resume(self, orphans: Callable[[], object]) -> None:
        """At start: what a crash left half-done. What can't be finished now is said in ``keeper.notes``.

        ``orphans``: tells what a device holds of this vault and its file does not name.
        """
        self.keeper.resume(orphans)

    def stop(self) -> None:
        self.keeper.stop()


def remembered_revision(ledger: Ledger, vault: KeyVault) -> int:
    """The vault's revision that the state remembers, after what a crash left was finished: that may be newer than what
    the vault was opened with, and an older file holds KEKs that were destroyed. Raises Untrusted("vault.rollback")."""
    known = int(fact(ledger, "vault_revision"))
    if vault.revision < known:
        raise Untrusted("vault.rollback", "The vault file is an older copy than the one last used; restore the newest.")
    return known
