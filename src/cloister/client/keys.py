"""Keys from their owner's side: rotate, shred, keep, hold, look. The party's own broker does it; this waits."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import CloisterError, Misuse, Unavailable
from ..fields import Fields
from .agent import OwnerAgent
from .progress import Progress, Step, silent
from .supervisor import Home

__all__ = [
    "Shredded",
    "cancel_reencryption",
    "find_orphans",
    "hold",
    "key_usage",
    "list_keys",
    "needs_passphrase",
    "rekey",
    "retain",
    "rotate_kek",
    "schedule_rotation",
    "shred",
    "shred_checkpoints",
    "split_secret_root",
    "sweep_orphans",
    "unhold",
    "versions_to_shred",
    "was_split",
]

_FIRST, _LONGEST = 0.02, 0.5  # seconds between looks


@dataclass(frozen=True)
class Shredded:
    """What was destroyed. ``beyond_recall``: what no shredding reaches; ``rotation``: of the KEK, after it; ``driver``:
    what keeps the vault's KEKs."""

    name: str
    versions: tuple[dict[str, Any], ...]
    leases_cut: int
    beyond_recall: tuple[str, ...]
    rotation: dict[str, Any]
    driver: str

    def document(self) -> dict[str, Any]:
        return {
            "beyond_recall": list(self.beyond_recall),
            "driver": self.driver,
            "leases_cut": self.leases_cut,
            "name": self.name,
            "rotation": self.rotation,
            "versions": list(self.versions),
        }


def rotate_kek(home: Home, party: str, *, progress: Progress = silent) -> dict[str, Any]:
    """A new KEK; returns when every data key is wrapped under it and the old ones are destroyed.

    ``begun`` is false where this joined a rotation that was under way.
    """
    agent = home.agent(party)
    begun = bool(agent.rotate()["begun"])
    return {**_await_rotation(agent, progress), "begun": begun, "party": party}


def _await_rotation(
    agent: OwnerAgent, progress: Progress, *, sleep: Callable[[float], None] = time.sleep
) -> dict[str, Any]:
    wait, seen = _FIRST, None
    while (found := agent.rotation())["pending"]:
        progress(Step("rewrap", int(found["done"]), int(found["total"]), "keys"))
        if found["error"] and not found["running"]:
            raise Unavailable(
                "rotation.waits", f"The rotation is not finished: {found['error'].rstrip('.')}; the broker goes on"
                " by itself, 'cloister key status' tells.",
            )  # fmt: skip
        wait = _FIRST if found["done"] != seen else min(wait * 1.5, _LONGEST)
        seen = found["done"]
        sleep(wait)
    progress(Step("rewrap", int(found["done"]), int(found["total"]), "keys"))
    return found


def schedule_rotation(home: Home, party: str, every: int | None) -> dict[str, Any]:
    """Rotate every so many seconds; None: by hand only."""
    return {**home.agent(party).schedule_rotation(every), "party": party}


def shred(home: Home, name: str, versions: list[int] | None, *, reason: str, progress: Progress = silent) -> Shredded:
    """Destroy the keys of these versions of an asset (None: of all) for good. The same call again tells the same.

    Raises Denied("asset.held") under a legal hold, Misuse for what there is not, and Unavailable("shred.rotation")
    where the keys are removed but the rotation after it did not end: the same call again waits for it.
    """
    agent = home.agent(_owner(name))
    answer = agent.shred(name, versions, reason)
    try:
        rotation = _await_rotation(agent, progress)
    except CloisterError as error:
        raise Unavailable(
            "shred.rotation", "The keys are removed already, but the rotation that closes old copies is not seen to its"
            f" end: {error.message.rstrip('.')}; it goes on without this command.",
        ) from error  # fmt: skip
    last = rotation["last"] or {}
    remains = [str(sentence) for sentence in last.get("remains", [])]
    return Shredded(
        name=name,
        versions=tuple(answer["versions"]),
        leases_cut=int(answer["leases_cut"]),
        beyond_recall=(*map(str, answer["beyond_recall"]), *remains),
        rotation={key: rotation[key] for key in ("epoch", "epochs", "last")},
        driver=str(answer["driver"]),
    )


def versions_to_shred(home: Home, name: str, version: list[int], all_versions: bool) -> list[int] | None:
    """What a person named: some versions, all, or the only one whose key still exists. Raises Misuse otherwise."""
    if version and all_versions:
        raise Misuse("shred.versions", "Give --version or --all-versions, not both.")
    if version:
        return version
    if all_versions:
        return None
    rows = [row for row in home.agent(_owner(name)).assets() if row["name"] == name]
    alive = [int(row["version"]) for row in rows if row["shredded"] is None]
    if not rows:
        raise Misuse("asset.unknown", f"There is no asset {name}; 'cloister key list' shows those there are.")
    if len(alive) > 1:
        raise Misuse("shred.versions", f"{name} has several versions; say which with --version N, or --all-versions.")
    return alive or None


def retain(home: Home, name: str, until: int, *, version: int | None = None) -> list[dict[str, Any]]:
    """Keep an asset until ``until`` (unix seconds), then shred it. Under a contract only shorter than before."""
    return home.agent(_owner(name)).retain(name, version, until)


def hold(home: Home, name: str, reason: str) -> dict[str, Any]:
    """A legal hold: nothing of the asset is destroyed until it is lifted."""
    return home.agent(_owner(name)).hold(name, reason)


def unhold(home: Home, name: str, reason: str) -> dict[str, Any]:
    return home.agent(_owner(name)).hold(name, reason, lift=True)


def list_keys(home: Home, party: str) -> dict[str, Any]:
    """Every key of the party's vault, every asset with its dates, every re-encryption, and the rotation's state."""
    agent = home.agent(party)
    return {**agent.keys(), "party": party, "rotation": agent.rotation()}


def key_usage(home: Home, party: str) -> dict[str, Any]:
    """What each key was used for, from the audit log, and what of it is unusual."""
    return {**home.agent(party).key_usage(), "party": party}


def cancel_reencryption(home: Home, name: str) -> dict[str, Any]:
    """End a re-encryption; its key is destroyed. What was written so far is removed by the next one."""
    return home.agent(_owner(name)).cancel_reencryption(name)


def shred_checkpoints(home: Home, party: str, reason: str) -> dict[str, Any]:
    """Make every checkpoint unreadable that the party's share went into; runs that are under way end."""
    return {**home.agent(party).shred_checkpoints(reason), "party": party}


def needs_passphrase(home: Home, party: str) -> bool:
    """Whether the vault's own file is under a passphrase; a device was given its credential when it was opened."""
    return bool(home.agent(party).keys()["driver"] == "file")


def was_split(home: Home, party: str) -> bool:
    """Whether recovery shares of the party's vault were ever made, as far as its broker knows."""
    return bool(home.agent(party).keys()["recovery_split"])


def rekey(home: Home, party: str, credential: str | None) -> dict[str, Any]:
    """A new master key for the party's vault; recovery shares made before don't open its file any more.

    ``credential``: the present passphrase, where ``needs_passphrase``. Raises Denied("vault.passphrase").
    """
    return {**home.agent(party).rekey(credential), "party": party}


def find_orphans(home: Home, party: str) -> dict[str, Any]:
    """How many keys the party's device holds that its vault file does not name: ``roots`` and ``keys`` of them can go,
    ``kept`` stay, because ``assets`` may need them; ``which`` is for ``sweep_orphans``."""
    return {**home.agent(party).orphans(), "party": party}


def sweep_orphans(home: Home, party: str, which: str) -> dict[str, Any]:
    """Destroy those that can go. Only where no other copy of the vault file is in use: to an older one they are its
    keys.

    Raises Misuse("sweep.changed") where the device holds others meanwhile, Untrusted("vault.rollback").
    """
    return {**home.agent(party).sweep(which), "party": party}


def split_secret_root(home: Home, party: str, threshold: int, shares: int) -> list[str]:
    """Recovery shares, for as many people; ``threshold`` of them and a backup of the vault file restore it."""
    return home.agent(party).split_secret_root(threshold, shares)


def _owner(name: str) -> str:
    return Fields({"name": name}, "command").asset("name").partition("/")[0]
