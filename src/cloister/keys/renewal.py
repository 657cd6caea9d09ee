"""A new master key for a vault, for when a copy of its file and a way to open that copy may be in wrong hands."""

from __future__ import annotations

from dataclasses import replace

from ..crypto import random_bytes
from ..errors import Internal
from .document import VaultKeys
from .drivers.file import FileDriver
from .entries import DeviceUnlock, PassphraseUnlock
from .opening import open_passphrase, seal_passphrase, seal_root
from .vault import OpenVault, Vault

__all__ = ["check_credential", "rekey"]

_OLD_COPIES = (
    "Copies of the vault file that were made before still open with the passphrase of their time, and give all that "
    "the file held then."
)
_OLD_COPIES_AND_SHARES = (
    "Copies of the vault file that were made before still open with the passphrase or the recovery shares of their "
    "time, and give all that the file held then."
)
_OLD_SHARES = (
    "Copies of the vault file that were made before still open with the recovery shares of their time, and give all "
    "secrets that the file held then."
)


def check_credential(vault: Vault, credential: bytes) -> None:
    """Raises Denied (``vault.passphrase``) unless it is a file vault's present passphrase. A device has checked its own
    when the vault was opened."""
    document = vault._held().document
    if isinstance(document.unlock, PassphraseUnlock):
        open_passphrase(document, document.unlock, credential)


def rekey(vault: Vault, credential: bytes, *, split: bool = True) -> tuple[str, ...]:
    """Seal everything anew under a new master key, which no copy of the file from before holds: not with its
    passphrase, nor with recovery shares. Shares must be made again (``split_root``).

    ``credential``: the present passphrase of a file vault; a device needs none, it is connected. What an old copy
    holds stays known to whoever opened it: rotate the KEK and replace signing keys and secrets as well. Returns what is
    out of reach, in sentences; ``split``: whether recovery shares were ever made, as far as the caller knows.

    Raises Denied (``vault.passphrase``) and what the device raises. The file changes as a whole or not at all.
    """
    fresh = VaultKeys(random_bytes(32))
    with vault._exclusive() as held:
        unlock = held.document.unlock
        if isinstance(unlock, PassphraseUnlock):
            _rekey_file(vault, held, fresh, unlock, credential)
            return (_OLD_COPIES_AND_SHARES if split else _OLD_COPIES,)
        remains = _rekey_device(vault, held, fresh, unlock)
    return tuple(sentence for sentence in (_OLD_SHARES if split else None, remains) if sentence is not None)


def _rekey_file(vault: Vault, held: OpenVault, fresh: VaultKeys, unlock: PassphraseUnlock, passphrase: bytes) -> None:
    document, old = held.document, held.driver
    if not isinstance(old, FileDriver):
        raise Internal("vault.driver", "A file vault is open over another driver; report this.")
    open_passphrase(document, unlock, passphrase)
    sealed = seal_passphrase(document.vault, document.owner, fresh, passphrase, unlock.params)
    driver = FileDriver(fresh.file_driver_key())
    keks = tuple(replace(kek, handle=old.moved(kek.handle, driver)) for kek in document.keks)
    edited = replace(document.resealed(held.keys, fresh), unlock=sealed, keks=keks, recovery=None)
    vault._write(edited, fresh, driver)


def _rekey_device(vault: Vault, held: OpenVault, fresh: VaultKeys, unlock: DeviceUnlock) -> str | None:
    document = held.document
    made: list[bytes] = []
    with vault._unused(made):
        sealed = seal_root(document.vault, document.owner, fresh, held.driver, made)
        edited = replace(document.resealed(held.keys, fresh), unlock=sealed, recovery=None)
        return vault._give_up(edited, unlock.handle, document.vault.hex(), fresh)
