"""How long assets are kept: their dates, legal holds, and what is overdue. Shredding itself is in ``shredding``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from ..contracts import read_contract
from ..crypto import Envelope
from ..errors import Denied, Misuse
from .assets import Assets
from .ledger import Ledger
from .state import Change, Row

__all__ = ["Retention", "check_held", "check_unheld", "check_until", "overdue"]

_NAMED = 2000  # characters of names in one refusal


def check_until(present: int, until: int, *, contracted: bool, now: int) -> None:
    """Pure: may an owner change the date until which an asset is kept?

    Raises Denied for a later one of what stands in a contract: the other parties signed an end, and what they don't
    lengthen nobody lengthens alone. Misuse for a date that has passed: destroying at once is another command.
    """
    if until <= now:
        raise Misuse("retention.past", "The date lies in the past; to destroy a key at once, use 'cloister key shred'.")
    if contracted and until > present:
        raise Denied(
            "retention.longer", "A contract names this asset, so the time for which it is kept only gets shorter."
        )


def check_held(name: str, reason: str | None) -> None:
    """Pure. Raises Denied("asset.held") where there is a hold: nothing of the asset may be destroyed."""
    if reason is not None:
        raise Denied(
            "asset.held", f"{name} is under a legal hold ({reason}); lift it with 'cloister key unhold' first."
        )


def check_unheld(names: Collection[str], held: Mapping[str, str]) -> None:
    """Pure. Raises Denied("asset.held") where runs used any of the ``held`` assets: what opens their checkpoints is
    kept, too."""
    kept = sorted(set(names) & set(held))
    if kept:
        named = ", ".join(f"{name} ({held[name]})" for name in kept)
        raise Denied(
            "asset.held",
            f"Runs used what is under a legal hold, so what opens their checkpoints is kept: {named[:_NAMED]}; lift it "
            "with 'cloister key unhold' first.",
            assets=",".join(kept)[:_NAMED],
        )


def overdue(rows: Iterable[Row], held: Iterable[str], *, now: int) -> list[Row]:
    """Pure: the versions whose time is over, whose key still exists, and that no hold keeps."""
    kept = set(held)
    return [r for r in rows if r["shredded"] is None and r["keep_until"] <= now and r["name"] not in kept]


class Retention:
    """Dates and holds of the own assets. Every change is logged first."""

    def __init__(self, assets: Assets, ledger: Ledger, clock: Callable[[], int]) -> None:
        self._assets = assets
        self._ledger = ledger
        self._clock = clock

    def retain(self, name: str, version: int | None, until: int) -> list[dict[str, Any]]:
        """Keep the versions of an asset (or one) until ``until``. What changed: name, version, keep_until, before."""
        with self._ledger.turn():
            rows = [r for r in self._versions(name) if version in (None, r["version"]) and r["shredded"] is None]
            if not rows:
                raise Misuse("asset.version", f"There is no such version of {name} whose key still exists.")
            contracted = self._contracted()
            for row in rows:
                present = row["keep_until"]
                check_until(present, until, contracted=row["digest"] in contracted, now=self._clock())
            changes = [Change("assets", {**row, "keep_until": until}) for row in rows]
            versions = ",".join(str(row["version"]) for row in rows)
            details: dict[str, str | int] = {"name": name, "until": until, "versions": versions[:8000]}
            self._ledger.commit("asset.retained", target=name, details=details, changes=changes)
        return [{"before": r["keep_until"], "keep_until": until, "name": name, "version": r["version"]} for r in rows]

    def hold(self, name: str, reason: str) -> None:
        """Nothing of this name is destroyed until ``unhold``, versions that are yet to be sealed included.

        It does not lengthen what jobs may do: their contracts' dates hold as before.
        """
        with self._ledger.turn():
            self._versions(name)
            self._put_hold("asset.held", name, reason, reason)

    def unhold(self, name: str, reason: str) -> None:
        with self._ledger.turn():
            if self.held().get(name) is None:
                raise Misuse("asset.unheld", f"There is no hold on {name}.")
            self._put_hold("asset.unheld", name, None, reason)

    def held(self) -> dict[str, str]:
        """Reasons by name."""
        rows = self._ledger.state.rows("holds")
        return {row["name"]: row["reason"] for row in rows if row["reason"] is not None}

    def overdue(self, *, now: int) -> list[Row]:
        return overdue(self._ledger.state.rows("assets"), self.held(), now=now)

    def _put_hold(self, kind: str, name: str, kept: str | None, reason: str) -> None:
        change = Change("holds", {"name": name, "reason": kept, "at": self._clock()})
        self._ledger.commit(kind, target=name, details={"name": name, "reason": reason}, changes=[change])

    def _versions(self, name: str) -> list[Row]:
        rows = self._assets.versions(name)
        if not rows:
            raise Misuse(
                "asset.unknown", f"This broker has no asset {name}; 'cloister key list' shows those there are."
            )
        return rows

    def _contracted(self) -> set[str]:
        """Digests that stand in a contract which our party signed, or which all signed."""
        envelopes = [row["envelope"] for row in self._ledger.state.rows("contracts")]
        contracts = [read_contract(Envelope.from_bytes(text.encode())) for text in envelopes]
        return {asset.digest.hex() for contract in contracts for asset in contract.assets}
