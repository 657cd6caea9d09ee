"""What a device holds of a vault beside what the vault's file names: whose it may be, and how it is destroyed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import CloisterError, Denied
from .document import VaultDocument
from .ports import KekDriver

__all__ = ["Swept", "all_orphans", "check_sole", "other_roots", "sweep"]

# Drivers whose handles carry the key itself: each copy of a file has its own, and the device lists none.
_IN_HANDLES = frozenset({"file", "tpm"})


@dataclass(frozen=True)
class Swept:
    """``destroyed``: handles that the device gave up; ``remains``: what is out of reach, a sentence a key; ``stopped``:
    what kept it from going on, and whoever asked has to raise it once it is told how far it came."""

    destroyed: tuple[bytes, ...]
    remains: tuple[str, ...]
    stopped: CloisterError | None = None


def all_orphans(document: VaultDocument, driver: KekDriver) -> tuple[bytes, ...]:
    """Handles on both of the vault's lines that the file does not name, root keys first."""
    found = [h for line in (document.vault.hex(), document.kek_id) for h in driver.list(line)]
    named = document.handles()
    return tuple(handle for handle in found if handle not in named)


def other_roots(document: VaultDocument, driver: KekDriver) -> tuple[bytes, ...]:
    """Those of them that are root keys: of a copy of this file, or left by a rekeying that broke off."""
    named = document.handles()
    return tuple(handle for handle in driver.list(document.vault.hex()) if handle not in named)


def check_sole(document: VaultDocument, driver: KekDriver) -> None:
    """Raises Denied unless the device shows the file's own root key and no other: ``vault.copies``, ``vault.unlisted``.

    A restored file gets a root key of its own, and the old one stays in the device. So while the device holds two,
    there may be two files that need the same KEKs; the owner ends that with a sweep. A device that does not even show
    the root key that this vault was opened with (no right to list, a foreign label) shows no other one, either, so what
    it shows is not taken for an answer.
    """
    if driver.name in _IN_HANDLES:
        return
    listed, named = driver.list(document.vault.hex()), document.handles()
    if any(handle not in named for handle in listed):
        raise Denied(
            "vault.copies",
            "The device holds another root key of this vault, so a copy of its file may be in use (or a rekeying "
            "broke off) and no KEK is destroyed; once no other copy runs, 'cloister key sweep' says that this file is "
            "the one in use.",
        )
    if not named.intersection(listed):
        raise Denied(
            "vault.unlisted",
            "The device does not list this vault's own root key, so nobody can tell whether it holds another one, and "
            "no KEK is destroyed; give the credential the right to list keys.",
        )


def sweep(driver: KekDriver, handles: Iterable[bytes]) -> Swept:
    """Destroy them one after the other, as far as the device goes along."""
    destroyed: list[bytes] = []
    remains: list[str] = []
    for handle in handles:
        try:
            sentence = driver.destroy(handle)
        except CloisterError as error:
            return Swept(tuple(destroyed), tuple(remains), error)
        destroyed.append(handle)
        remains += [] if sentence is None else [sentence]
    return Swept(tuple(destroyed), tuple(remains))
