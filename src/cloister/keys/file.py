"""A vault in one file, under a passphrase. For a party without an HSM, and for every test."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from ..crypto import Argon2Params, SigningKey, argon2id, open_box, random_bytes, seal_box
from ..errors import Denied, Misuse, Untrusted
from .document import Entry, VaultDocument, VaultKeys, check_owner, check_secret_name
from .models import DEK_SIZE, WrappedKey, wrap_context
from .storage import create_file, locked, read_file, replace_file

__all__ = ["MIN_PASSPHRASE", "FileVault"]

MIN_PASSPHRASE = 8  # bytes
MAX_SECRET = 64 * 1024
_MAX_PASSPHRASE = 4096


class FileVault:
    """``KeyVault`` over a file; see ``ports`` for what each method promises.

    Get one from ``create`` or ``unlock``. Every change is on disk, durably, before its method returns, and
    is refused if another process changed the file since. Keys are held in memory while it is unlocked; Python can't
    promise to wipe them, so ``close`` only drops them.
    """

    def __init__(self, path: Path, raw: bytes, document: VaultDocument, keys: VaultKeys) -> None:
        self._path = path
        self._raw = raw
        self._document = document
        self._keys: VaultKeys | None = keys
        self._lock = threading.Lock()

    @classmethod
    def create(cls, path: Path, passphrase: bytes, owner: str, *, params: Argon2Params | None = None) -> FileVault:
        """A new vault with one KEK and no secrets. Raises Misuse (path taken, passphrase too short)."""
        _check_passphrase(passphrase)
        check_owner(owner)
        vault, kek_id, master = random_bytes(16), random_bytes(16).hex(), random_bytes(32)
        keys = VaultKeys(master)
        kek = keys.seal(vault, "kek", kek_id, 1, random_bytes(32))
        draft = VaultDocument(
            vault, owner, 1, random_bytes(16), params or Argon2Params(), b"", kek_id, keks=(kek,), secrets=()
        )
        document = _with_master(draft, master, passphrase)
        raw = document.to_bytes(keys)
        path = path.resolve()
        create_file(path, raw)
        return cls(path, raw, document, keys)

    @classmethod
    def unlock(cls, path: Path, passphrase: bytes, *, least_revision: int = 1) -> FileVault:
        """Open a vault. A caller who remembers the last ``revision`` it saw passes it, and an older copy of
        the whole file is refused; the file alone can't show that.

        Raises Denied (``vault.passphrase``), Untrusted (``vault.changed``, ``vault.rollback``), Malformed, Misuse.
        """
        path = path.resolve()
        raw = read_file(path)
        document, mac = VaultDocument.parse(raw)
        # 1. The passphrase opens the master key. An edited salt or cost looks the same as a wrong passphrase.
        keys = VaultKeys(_open_master(document, passphrase))
        # 2. Nothing in the file was edited, added, removed, or put back.
        keys.check(document, mac)
        # 3. The file as a whole isn't older than what the caller saw last.
        if document.revision < least_revision:
            raise Untrusted(
                "vault.rollback", "The vault file is an older copy than the one last used; restore the newest."
            )
        return cls(path, raw, document, keys)

    @property
    def owner(self) -> str:
        return self._document.owner

    @property
    def kek_id(self) -> str:
        return self._document.kek_id

    @property
    def epoch(self) -> int:
        return self._document.keks[-1].epoch

    @property
    def revision(self) -> int:
        return self._document.revision

    def epochs(self) -> tuple[int, ...]:
        return tuple(kek.epoch for kek in self._document.keks)

    def wrap(self, dek: bytes, manifest_digest: bytes) -> WrappedKey:
        if len(dek) != DEK_SIZE:
            raise Misuse("wrap.dek", f"A data key has exactly {DEK_SIZE} bytes.")
        newest = self._document.keks[-1]
        context = wrap_context(manifest_digest, self.kek_id, newest.epoch)
        return WrappedKey(self.kek_id, newest.epoch, seal_box(self._open("kek", newest), dek, context))

    def unwrap(self, wrapped: WrappedKey, manifest_digest: bytes) -> bytes:
        context = wrap_context(manifest_digest, wrapped.kek_id, wrapped.epoch)
        if wrapped.kek_id != self.kek_id:
            raise Denied("wrap.kek", "The key was wrapped by another vault; ask its owner.")
        for kek in self._document.keks:
            if kek.epoch == wrapped.epoch:
                return open_box(self._open("kek", kek), wrapped.box, context)
        raise Denied("wrap.epoch", "The key was wrapped in an epoch that this vault no longer holds.")

    def rewrap(self, wrapped: WrappedKey, manifest_digest: bytes) -> WrappedKey:
        return self.wrap(self.unwrap(wrapped, manifest_digest), manifest_digest)

    def rotate_kek(self) -> int:
        def rotated(document: VaultDocument, keys: VaultKeys) -> VaultDocument:
            epoch = document.keks[-1].epoch + 1
            kek = keys.seal(document.vault, "kek", document.kek_id, epoch, random_bytes(32))
            return replace(document, keks=(*document.keks, kek))

        return self._change(rotated).keks[-1].epoch

    def destroy_epoch(self, epoch: int) -> None:
        def without(document: VaultDocument, _: VaultKeys) -> VaultDocument:
            if epoch not in {kek.epoch for kek in document.keks[:-1]}:
                raise Misuse("vault.epoch", "Only an older epoch that the vault holds can be destroyed; rotate first.")
            return replace(document, keks=tuple(kek for kek in document.keks if kek.epoch != epoch))

        self._change(without)

    def secret_names(self) -> tuple[str, ...]:
        return tuple(secret.name for secret in self._document.secrets)

    def put_secret(self, name: str, value: bytes, *, replace: bool = False) -> None:
        check_secret_name(name)
        if len(value) > MAX_SECRET:
            raise Misuse("vault.secret_size", f"A secret has at most {MAX_SECRET} bytes.")

        def added(document: VaultDocument, keys: VaultKeys) -> VaultDocument:
            old = self._find(document, name)
            if old is not None and not replace:
                raise Misuse(
                    "vault.secret_exists", "The vault has a secret of that name; replacing it must be asked for."
                )
            epoch = old.epoch + 1 if old is not None else 1
            return document.with_secret(keys.seal(document.vault, "secret", name, epoch, value))

        self._change(added)

    def secret(self, name: str) -> bytes:
        entry = self._find(self._document, name)
        if entry is None:
            raise Misuse("vault.no_secret", "The vault has no secret of that name.")
        return self._open("secret", entry)

    def signing_key(self, name: str) -> SigningKey:
        return SigningKey(self.secret(name))

    def change_passphrase(self, old: bytes, new: bytes) -> None:
        """Put the master key under a new passphrase, with a fresh salt. Raises Denied if ``old`` is wrong.

        Copies of the file that were made before still open with the old one.
        """
        _check_passphrase(new)

        def changed(document: VaultDocument, _: VaultKeys) -> VaultDocument:
            master = _open_master(document, old)
            return _with_master(replace(document, salt=random_bytes(16)), master, new)

        self._change(changed)

    def close(self) -> None:
        self._keys = None

    def _held(self) -> VaultKeys:
        if self._keys is None:
            raise Misuse("vault.closed", "The vault is locked; unlock it again.")
        return self._keys

    def _open(self, kind: str, entry: Entry) -> bytes:
        return self._held().open(self._document.vault, kind, entry)

    @staticmethod
    def _find(document: VaultDocument, name: str) -> Entry | None:
        return next((secret for secret in document.secrets if secret.name == name), None)

    def _change(self, edit: Callable[[VaultDocument, VaultKeys], VaultDocument]) -> VaultDocument:
        """Apply ``edit`` to the document on disk; what is in memory changes only once the disk has it."""
        keys = self._held()
        with self._lock, locked(self._path):
            if read_file(self._path) != self._raw:
                raise Misuse("vault.stale", "The vault was changed by another process; unlock it again.")
            edited = edit(self._document, keys)
            document = replace(edited, revision=self._document.revision + 1)
            raw = document.to_bytes(keys)
            replace_file(self._path, raw)
            self._raw, self._document = raw, document
            return document

    def __enter__(self) -> FileVault:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"FileVault({self.owner}, epoch {self.epoch}, revision {self.revision})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a vault is not pickled")


def _check_passphrase(passphrase: bytes) -> None:
    if not MIN_PASSPHRASE <= len(passphrase) <= _MAX_PASSPHRASE:
        raise Misuse("vault.passphrase_length", f"A passphrase has from {MIN_PASSPHRASE} to {_MAX_PASSPHRASE} bytes.")


def _open_master(document: VaultDocument, passphrase: bytes) -> bytes:
    try:
        return open_box(
            argon2id(passphrase, document.salt, document.params), document.master, document.master_context()
        )
    except Untrusted:
        raise Denied("vault.passphrase", "The passphrase is wrong, or the vault file's header was changed.") from None


def _with_master(document: VaultDocument, master: bytes, passphrase: bytes) -> VaultDocument:
    key = argon2id(passphrase, document.salt, document.params)
    return replace(document, master=seal_box(key, master, document.master_context()))
