"""When passphrase or device are lost: k of n people, each with a share of words, put a vault's file back in use.

What is split is a fresh secret of 32 bytes; the file holds the master key boxed under it. So a new split replaces the
old one in the file; old shares still open old copies. Those hold the same master key, which opens the newest file, too,
unless ``rekey`` came between. The shares alone hold no key: they need the file or a backup of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ..crypto import Argon2Params, frame, hkdf, open_box, random_bytes
from ..crypto.slip39 import join_shares, share_secret
from ..errors import CloisterError, Denied, Misuse, Untrusted
from .document import VaultDocument, VaultKeys, recovery_context
from .drivers import DriverConfig, open_driver
from .entries import DeviceKey, DeviceUnlock, Kek, PassphraseUnlock, Recovery, Unlock
from .models import DEK_SIZE
from .opening import FILE, seal_passphrase, seal_root, unix_time
from .ports import KekDriver, SigningDriver
from .storage import locked, read_file, replace_file
from .vault import Vault

__all__ = ["Restored", "restore_root", "split_root"]

_SHARED = (
    "The file as it was before still opens in this device, so no KEK is destroyed there for now. Stop the broker over "
    "the other file for good, then give 'cloister key sweep' for the one that is in use: it destroys the other's root "
    "key, so that the other opens with its recovery shares only, and keeps the KEKs that any key may still need."
)


@dataclass(frozen=True)
class Restored:
    """What came back. ``lost_epochs`` and ``lost_keys`` are in no device that could be reached, or not in this backup;
    ``notes``: what to do now, in sentences."""

    owner: str
    revision: int
    epochs: tuple[int, ...]
    lost_epochs: tuple[int, ...]
    lost_keys: tuple[str, ...]
    notes: tuple[str, ...]


def split_root(vault: Vault, threshold: int, shares: int) -> list[str]:
    """New recovery shares, any ``threshold`` of which restore the vault: 33 words each, to be shown once and written
    down. Shares of an earlier split open no file from now on, but still copies that were made before; and what such a
    copy holds opens the newest file, until ``rekey``.

    Raises Misuse unless 2 ≤ threshold ≤ shares ≤ 16.
    """
    secret = random_bytes(32)
    set_id, texts = share_secret(secret, threshold, shares)
    with vault._exclusive() as held:
        document = held.document
        context = recovery_context(document.vault, document.owner, set_id, threshold, shares)
        box = held.keys.seal_master(_box_key(secret), context)
        vault._write(replace(document, recovery=Recovery(set_id, threshold, shares, box)))
    return texts


def restore_root(
    path: Path,
    shares: Sequence[str],
    credential: bytes,
    *,
    driver: DriverConfig | None = None,
    least_revision: int = 0,
    used_epochs: Collection[int] = (),
    params: Argon2Params | None = None,
    clock: Callable[[], int] = unix_time,
) -> Restored:
    """Give the vault file at ``path`` (usually a backup) a new passphrase or device credential.

    Without a ``driver`` it becomes, or stays, a vault under the passphrase ``credential``. Secrets and seeds come back
    in any case. KEKs and signing keys inside a device come back only with a driver of the same kind on a device that
    still has them, or has them again from its own backup; else there is a new KEK, and ``notes`` says what is lost. The
    old root key stays in the device: a drill with a copy must not lock the vault that is in use.
    ``least_revision``: what the broker remembers; people with shares may decide that this backup is now the newest.
    ``used_epochs``: those under which the broker has keys. One that an older backup lacks is lost; its number is never
    given to another KEK, so that a key wrapped under it is told from one that was changed.

    Nothing is written unless all succeeds. Raises Malformed or Misuse (``shares.*``, ``recovery.none``,
    ``recovery.driver``), Untrusted (``recovery.other``: another vault's shares or an older split's; ``shares.forged``;
    ``vault.changed``), and what opening the device raises.
    """
    path = path.resolve()
    raw = read_file(path)
    document, mac = VaultDocument.parse(raw)
    keys = VaultKeys(_join(document, shares))
    keys.check(document, mac)
    target = driver or (document.driver if document.driver.name == "file" else FILE)
    if document.driver.name == "file" and target.name != "file":
        raise Misuse("recovery.driver", "A vault whose keys lie in its file is restored as such; give a passphrase.")
    is_file = target.name == "file"
    device = open_driver(target, keys.file_driver_key() if is_file else credential)
    made: list[bytes] = []
    try:
        move = _Move(document, target, device, made, clock, max(used_epochs, default=0))
        unlock: Unlock = (
            seal_passphrase(document.vault, document.owner, keys, credential, params or _costs(document))
            if is_file
            else move.root(keys)
        )
        moved = move.document(unlock, revision=max(document.revision, least_revision) + 1)
        with locked(path):
            if read_file(path) != raw:
                raise Misuse("vault.stale", "The vault was changed by another process; close it first.")
            replace_file(path, moved.to_bytes(keys))
        shared = move.shares_device()
    except BaseException:
        # The error that stopped the restoration is the one to tell. Where the file did change, the keys are in use.
        with suppress(CloisterError):
            for handle in made if read_file(path) == raw else ():
                device.destroy(handle)
        raise
    finally:
        device.close()
    told = _told(document, moved, used_epochs)
    return replace(told, notes=(*told.notes, _SHARED)) if shared else told


def _join(document: VaultDocument, shares: Sequence[str]) -> bytes:
    """The master key."""
    made = document.recovery
    if made is None:
        raise Misuse(
            "recovery.none",
            "This vault file has no recovery shares: it was never split, or was given a new master key since; find a "
            "copy from between the split and that.",
        )
    set_id, secret = join_shares(shares)
    other = Untrusted("recovery.other", "These shares are of another vault, or of another split than this file's.")
    if set_id != made.set_id:
        raise other
    context = recovery_context(document.vault, document.owner, made.set_id, made.threshold, made.shares)
    try:
        return open_box(_box_key(secret), made.box, context)
    except Untrusted:
        raise other from None


def _box_key(secret: bytes) -> bytes:
    return hkdf(secret, info=frame("cloister/vault/recovery-key/v1"))


def _costs(document: VaultDocument) -> Argon2Params:
    return document.unlock.params if isinstance(document.unlock, PassphraseUnlock) else Argon2Params()


@dataclass(frozen=True)
class _Move:
    """From what a file names to what a device really has. New handles are put into ``made`` at once."""

    old: VaultDocument
    target: DriverConfig
    device: KekDriver
    made: list[bytes]
    clock: Callable[[], int]
    used: int  # the highest epoch under which anything was wrapped, as far as is known

    def root(self, keys: VaultKeys) -> DeviceUnlock:
        """The master key under a new root key: the old one may be gone, and its handle another device's."""
        return seal_root(self.old.vault, self.old.owner, keys, self.device, self.made)

    def document(self, unlock: Unlock, *, revision: int) -> VaultDocument:
        same = self.target.name == self.old.driver.name
        keks = tuple(kek for kek in self.old.keks if same and self._has_kek(kek))
        newest = self.old.keks[-1]
        if not keks or keks[-1] != newest or newest.epoch < self.used:
            # The number goes on from the lost one: what was wrapped in a lost epoch must never be tried with this KEK.
            epoch = max(newest.epoch, self.used) + 1
            self.made.append(self.device.create(self.old.kek_id, epoch))
            keks = (*keks, Kek(epoch, self.made[-1], self.clock()))
        return replace(
            self.old,
            driver=self.target,
            unlock=unlock,
            revision=revision,
            keks=keks,
            keys=tuple(key for key in self.old.keys if same and self._has_key(key)),
            destroying=self.old.destroying if same else (),
        )

    def shares_device(self) -> bool:
        """Whether the old root key is in this device, too: the file that was restored opens there as before."""
        if not isinstance(self.old.unlock, DeviceUnlock):
            return False
        try:
            return self.old.unlock.handle in self.device.list(self.old.vault.hex())
        except CloisterError:
            return True  # what can't be looked at is taken to be so

    def _has_kek(self, kek: Kek) -> bool:
        try:
            self.device.wrap(kek.handle, bytes(DEK_SIZE), b"")
        except Denied as error:
            if error.code == "wrap.gone":
                return False
            raise
        return True

    def _has_key(self, key: DeviceKey) -> bool:
        if not isinstance(self.device, SigningDriver):
            return False
        try:
            signer = self.device.signer(key.handle)
            signer.sign(b"cloister: is this key still here?")
        except Denied as error:
            if error.code == "sign.gone":
                return False
            raise
        return signer.public == key.public


def _told(old: VaultDocument, new: VaultDocument, used: Collection[int]) -> Restored:
    held, names = {kek.epoch for kek in new.keks}, {key.name for key in new.keys}
    listed = {kek.epoch for kek in old.keks}
    lost, newer = tuple(sorted(listed - held)), tuple(sorted(set(used) - held - listed))
    lost_keys = tuple(key.name for key in old.keys if key.name not in names)
    notes = ["These shares still open this file and its copies: split anew, now that they were together in one place."]
    if lost:
        notes.append(
            f"The KEKs of {len(lost)} epochs are in the lost device alone: what is wrapped under them opens again only "
            "when the device's own backup is restored."
        )
    if newer:
        notes.append(
            f"This backup lacks the KEKs of {len(newer)} epochs that the broker has keys under: those open again only "
            "when another copy of the file, which has them, is restored. Look for one: the device may still hold those "
            "KEKs, and 'cloister key sweep' keeps them while keys are under them."
        )
    if lost_keys:
        notes.append(f"Signing keys that never left the lost device must be replaced: {', '.join(lost_keys)}.")
    return Restored(
        new.owner, new.revision, tuple(kek.epoch for kek in new.keks), (*lost, *newer), lost_keys, tuple(notes)
    )
