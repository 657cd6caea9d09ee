"""Making and unlocking vaults: from a path and a credential to a ``Vault``, in the order of docs/spec/vault.md."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ..crypto import Argon2Params, argon2id, open_box, random_bytes
from ..errors import CloisterError, Denied, Misuse, Untrusted
from .document import VaultDocument, VaultKeys, check_owner, passphrase_context, root_context
from .drivers import DriverConfig, open_driver
from .entries import DeviceUnlock, Kek, PassphraseUnlock
from .ports import KekDriver
from .storage import create_file, read_file
from .vault import OpenVault, Vault

__all__ = [
    "FILE",
    "MIN_PASSPHRASE",
    "change_passphrase",
    "create_vault",
    "open_passphrase",
    "open_vault",
    "seal_passphrase",
    "seal_root",
    "unix_time",
]

MIN_PASSPHRASE = 8  # bytes
_MAX_PASSPHRASE = 4096
FILE = DriverConfig()


def unix_time() -> int:
    return int(time.time())


def create_vault(
    path: Path,
    credential: bytes,
    owner: str,
    *,
    driver: DriverConfig = FILE,
    params: Argon2Params | None = None,
    clock: Callable[[], int] = unix_time,
) -> Vault:
    """A new vault with one KEK and no secrets. ``credential``: the file's passphrase, or what the driver asks for (a
    PIN, a token). Raises Misuse (path taken, passphrase too short) and what ``open_driver`` raises."""
    check_owner(owner)
    path = path.resolve()
    if path.exists():
        raise Misuse("vault.exists", "There is a file at that path; a vault is never overwritten.")
    vault, kek_id, keys = random_bytes(16), random_bytes(16).hex(), VaultKeys(random_bytes(32))
    is_file = driver.name == "file"
    if is_file:
        _check_passphrase(credential)
    device = open_driver(driver, keys.file_driver_key() if is_file else credential)
    made: list[bytes] = []
    try:
        unlock = (
            seal_passphrase(vault, owner, keys, credential, params or Argon2Params())
            if is_file
            else seal_root(vault, owner, keys, device, made)
        )
        made.append(device.create(kek_id, 1))
        document = VaultDocument(vault, owner, 1, driver, unlock, kek_id, keks=(Kek(1, made[-1], clock()),))
        raw = document.to_bytes(keys)
        create_file(path, raw)
    except BaseException:
        _take_back(device, made)
        raise
    return Vault(path, OpenVault(raw, document, keys, device), clock)


def open_vault(
    path: Path,
    credential: bytes,
    *,
    least_revision: int = 1,
    driver: DriverConfig = FILE,
    clock: Callable[[], int] = unix_time,
) -> Vault:
    """Open a vault. A caller who remembers the last ``revision`` it saw passes it, and an older copy of the whole file
    is refused; the file alone can't show that.

    ``driver`` is what the caller **expects**: nothing in the file is authentic before it is unlocked, and unlocking
    hands the credential to whatever the driver's options name.

    Raises Denied (``vault.passphrase``, ``vault.driver``, a refused credential), Untrusted (``vault.changed``,
    ``vault.rollback``), Malformed, Misuse, Unavailable.
    """
    path = path.resolve()
    raw = read_file(path)
    document, mac = VaultDocument.parse(raw)
    # 1. The credential goes where the caller says, never where only the file says.
    if document.driver != driver:
        raise Denied(
            "vault.driver",
            f"The vault file names the driver {document.driver.name} with its options; give exactly these, if they are "
            "the ones that you set up.",
        )
    # 2. The credential opens the master key. An edited salt, cost or root handle looks the same as a wrong one.
    if isinstance(document.unlock, PassphraseUnlock):
        keys = VaultKeys(open_passphrase(document, document.unlock, credential))
        device = open_driver(driver, keys.file_driver_key())
    else:
        device = open_driver(driver, credential)
    try:
        if isinstance(document.unlock, DeviceUnlock):
            keys = VaultKeys(_open_root(document, document.unlock, device))
        # 3. Nothing in the file was edited, added, removed, or put back.
        keys.check(document, mac)
        # 4. The file as a whole isn't older than what the caller saw last.
        if document.revision < least_revision:
            raise Untrusted(
                "vault.rollback", "The vault file is an older copy than the one last used; restore the newest."
            )
        vault = Vault(path, OpenVault(raw, document, keys, device), clock)
        # 5. What was given up before a crash is destroyed now.
        vault.finish()
    except BaseException:
        device.close()
        raise
    return vault


def change_passphrase(vault: Vault, old: bytes, new: bytes) -> None:
    """Put the master key of a file vault under a new passphrase, with a fresh salt. Raises Denied if ``old`` is wrong.

    Copies of the file that were made before still open with the old one, and hold the same master key.
    """
    _check_passphrase(new)
    with vault._exclusive() as held:
        unlock = held.document.unlock
        if not isinstance(unlock, PassphraseUnlock):
            raise Misuse("vault.credential", "The vault's device has the credential; change it there.")
        open_passphrase(held.document, unlock, old)
        sealed = seal_passphrase(held.document.vault, held.document.owner, held.keys, new, unlock.params)
        vault._write(replace(held.document, unlock=sealed))


def seal_passphrase(
    vault: bytes, owner: str, keys: VaultKeys, passphrase: bytes, params: Argon2Params
) -> PassphraseUnlock:
    """Raises Misuse for a passphrase that is too short or too long, Malformed for costs out of range."""
    _check_passphrase(passphrase)
    salt = random_bytes(16)
    box = keys.seal_master(argon2id(passphrase, salt, params), passphrase_context(vault, owner, salt, params))
    return PassphraseUnlock(salt, params, box)


def seal_root(vault: bytes, owner: str, keys: VaultKeys, device: KekDriver, made: list[bytes]) -> DeviceUnlock:
    """A new root key in the device, and the master key under it. The handle is put into ``made`` at once."""
    made.append(device.create(vault.hex(), 1))
    box = device.wrap(made[-1], keys.export_secret_master(), root_context(vault, owner, device.name))
    return DeviceUnlock(made[-1], box)


def _check_passphrase(passphrase: bytes) -> None:
    if not MIN_PASSPHRASE <= len(passphrase) <= _MAX_PASSPHRASE:
        raise Misuse("vault.passphrase_length", f"A passphrase has from {MIN_PASSPHRASE} to {_MAX_PASSPHRASE} bytes.")


def open_passphrase(document: VaultDocument, unlock: PassphraseUnlock, passphrase: bytes) -> bytes:
    """The master key. Raises Denied (``vault.passphrase``)."""
    try:
        return open_box(argon2id(passphrase, unlock.salt, unlock.params), unlock.box, document.master_context())
    except Untrusted:
        raise Denied("vault.passphrase", "The passphrase is wrong, or the vault file's header was changed.") from None


def _open_root(document: VaultDocument, unlock: DeviceUnlock, device: KekDriver) -> bytes:
    try:
        return device.unwrap(unlock.handle, unlock.box, document.master_context())
    except Untrusted:
        raise Untrusted(
            "vault.changed", "The vault file was changed by something else, or the device is another one."
        ) from None
    except Denied as error:
        if error.code != "wrap.gone":
            raise
        raise Denied(
            "vault.device_key",
            "The device does not hold this vault's root key: connect the right one, or restore it from its own backup "
            "or from recovery shares.",
        ) from None


def _take_back(device: KekDriver, made: list[bytes]) -> None:
    """A vault that could not be written leaves nothing in the device, as far as that can be reached."""
    for handle in made:
        with suppress(CloisterError):  # the error that stopped the creation is the one to tell
            device.destroy(handle)
    device.close()
