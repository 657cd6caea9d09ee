"""A party's vault: a file of sealed entries, and a driver that keeps the KEKs. Opened by ``opening``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from ..crypto import Signer, SigningKey
from ..errors import CloisterError, Denied, Misuse, Unavailable, Untrusted
from .document import VaultDocument, VaultKeys
from .entries import DeviceKey, Kek, Secret, check_name
from .models import DEK_SIZE, KeyInfo, WrappedKey, wrap_context
from .orphans import Swept, all_orphans, check_sole, other_roots, sweep
from .ports import KekDriver, SigningDriver
from .storage import locked, read_file, replace_file
from .usage import CountedSigner, Usage

__all__ = ["OpenVault", "Vault"]

MAX_SECRET = 64 * 1024
# Drivers whose KEKs are in this process's memory while they are used.
_IN_MEMORY = frozenset({"file", "tpm"})
_UNREACHED = "The device could not be reached to destroy the key: that is done when the vault is opened next."


@dataclass(frozen=True, repr=False)
class OpenVault:
    """What an unlocked vault consists of; replaced as a whole, so that no thread sees halves of two states."""

    raw: bytes
    document: VaultDocument
    keys: VaultKeys
    driver: KekDriver


class Vault:
    """``KeyVault`` over a file and a driver; see ``ports`` for what each method promises.

    Get one from ``create_vault`` or ``open_vault``. Every change is on disk, durably, before its method returns, and is
    refused if another process changed the file since. Several threads may use it. Keys are in memory while it is
    unlocked; Python can't promise to wipe them, so ``close`` only drops them.
    """

    def __init__(self, path: Path, opened: OpenVault, clock: Callable[[], int]) -> None:
        self._path = path
        self._open: OpenVault | None = opened
        self._last = opened.document  # what may still be asked after ``close``
        self._clock = clock
        self._lock = threading.Lock()
        self._usage = Usage()
        # What else must hold while the file changes, beside this file's own lock. Replicas change theirs only alone.
        self.guard: Callable[[], AbstractContextManager[None]] = nullcontext
        self._warnings: list[str] = []
        if opened.driver.experimental:
            self._warnings.append(
                f"The vault's driver {opened.driver.name} is experimental: it was never run against the real service."
            )

    @property
    def path(self) -> Path:
        return self._path

    @property
    def owner(self) -> str:
        return self._last.owner

    @property
    def driver(self) -> str:
        return self._last.driver.name

    @property
    def warnings(self) -> Sequence[str]:
        return tuple(self._warnings)

    @property
    def kek_id(self) -> str:
        return self._last.kek_id

    @property
    def epoch(self) -> int:
        return self._last.keks[-1].epoch

    @property
    def revision(self) -> int:
        return self._last.revision

    def epochs(self) -> tuple[int, ...]:
        return tuple(kek.epoch for kek in self._last.keks)

    def keys(self) -> Sequence[KeyInfo]:
        document, used = self._held().document, self._usage.of
        where, inside = document.driver.name, document.driver.name in _IN_MEMORY
        keks = [
            KeyInfo(
                document.kek_id, "kek", kek.epoch, where, inside, kek.created,
                wraps=used("wrap", "", kek.epoch), unwraps=used("unwrap", "", kek.epoch),
            )
            for kek in document.keks
        ]  # fmt: skip
        named = [
            KeyInfo(s.name, s.kind, s.epoch, "file", True, s.created, signs=used("sign", s.name, s.epoch))
            for s in document.secrets
        ]
        named += [
            KeyInfo(k.name, "signing", k.epoch, where, inside, k.created, signs=used("sign", k.name, k.epoch))
            for k in document.keys
        ]
        return (*keks, *sorted(named, key=lambda info: info.name))

    def wrap(self, dek: bytes, manifest_digest: bytes) -> WrappedKey:
        if len(dek) != DEK_SIZE:
            raise Misuse("wrap.dek", f"A data key has exactly {DEK_SIZE} bytes.")
        held = self._held()
        kek_id, newest, driver = held.document.kek_id, held.document.keks[-1], held.driver
        box = driver.wrap(newest.handle, dek, wrap_context(manifest_digest, kek_id, newest.epoch))
        self._usage.count("wrap", "", newest.epoch)
        return WrappedKey(kek_id, newest.epoch, driver.algorithm, box)

    def unwrap(self, wrapped: WrappedKey, manifest_digest: bytes) -> bytes:
        held = self._held()
        context = wrap_context(manifest_digest, wrapped.kek_id, wrapped.epoch)
        if wrapped.kek_id != held.document.kek_id:
            raise Denied("wrap.kek", "The key was wrapped by another vault; ask its owner.")
        # Never what the wrapped key asks for: it comes from outside, and could name something weaker.
        if wrapped.algorithm != held.driver.algorithm:
            raise Denied("wrap.algorithm", "The key claims to be wrapped in a way that this vault does not wrap.")
        for kek in held.document.keks:
            if kek.epoch == wrapped.epoch:
                dek = held.driver.unwrap(kek.handle, wrapped.box, context)
                self._usage.count("unwrap", "", kek.epoch)
                return dek
        raise Denied("wrap.epoch", "The key was wrapped in an epoch that this vault no longer holds.")

    def rewrap(self, wrapped: WrappedKey, manifest_digest: bytes) -> WrappedKey:
        return self.wrap(self.unwrap(wrapped, manifest_digest), manifest_digest)

    def rotate_kek(self) -> int:
        with self._exclusive() as held:
            document = held.document
            epoch = document.keks[-1].epoch + 1
            handle = held.driver.create(document.kek_id, epoch)
            with self._unused([handle]):
                self._write(replace(document, keks=(*document.keks, Kek(epoch, handle, self._clock()))))
            return epoch

    def destroy_epoch(self, epoch: int) -> str | None:
        with self._exclusive() as held:
            document = held.document
            gone = [kek for kek in document.keks[:-1] if kek.epoch == epoch]
            if not gone:
                raise Misuse("vault.epoch", "Only an older epoch that the vault holds can be destroyed; rotate first.")
            check_sole(held.document, held.driver)
            kept = tuple(kek for kek in document.keks if kek.epoch != epoch)
            return self._give_up(replace(document, keks=kept), gone[0].handle, document.kek_id)

    def secret_names(self) -> tuple[str, ...]:
        return tuple(secret.name for secret in self._last.secrets if secret.kind == "secret")

    def put_secret(self, name: str, value: bytes, *, replace: bool = False) -> None:
        if len(value) > MAX_SECRET:
            raise Misuse("vault.secret_size", f"A secret has at most {MAX_SECRET} bytes.")
        with self._exclusive() as held:
            old = self._replaceable(held.document, name, replace)
            if old is not None and not (isinstance(old, Secret) and old.kind == "secret"):
                raise Misuse("vault.kind", "The vault has a signing key of that name; choose another name.")
            self._write(held.document.with_entry(self._sealed(held, name, "secret", old, value)))

    def secret(self, name: str) -> bytes:
        held = self._held()
        entry = held.document.find(name)
        if isinstance(entry, Secret) and entry.kind == "secret":
            return held.keys.open(held.document.vault, entry)
        raise Misuse("vault.no_secret", "The vault has no secret of that name.")

    def create_signing_key(self, name: str, *, replace: bool = False) -> Signer:
        with self._exclusive() as held:
            document = held.document
            old = self._replaceable(document, name, replace)
            if isinstance(held.driver, SigningDriver):
                epoch = 1 if old is None else old.epoch + 1
                handle, public = held.driver.create_signer(f"{document.kek_id}/{name}/{epoch}")
                changed = document.with_entry(DeviceKey(name, epoch, handle, public, self._clock()))
            else:
                handle, seed = b"", SigningKey.generate().export_secret_seed()
                changed = document.with_entry(self._sealed(held, name, "signing", old, seed))
            with self._unused([handle] if handle else []):
                if isinstance(old, DeviceKey):
                    self._give_up(changed, old.handle, document.kek_id)
                else:
                    self._write(changed)
        return self.signing_key(name)

    def signing_key(self, name: str) -> Signer:
        held = self._held()
        entry = held.document.find(name)
        if entry is None:
            raise Misuse("vault.no_secret", "The vault has no signing key of that name.")
        if isinstance(entry, Secret):
            return CountedSigner(SigningKey(held.keys.open(held.document.vault, entry)), self._usage, name, entry.epoch)
        if not isinstance(held.driver, SigningDriver):
            raise Unavailable("sign.driver", "The vault's device holds that key, but can't sign with it right now.")
        signer = held.driver.signer(entry.handle)
        if signer.public != entry.public:
            raise Untrusted("sign.other", "The device holds another signing key than the one that the vault made.")
        return CountedSigner(signer, self._usage, name, entry.epoch)

    def orphans(self) -> tuple[bytes, ...]:
        """Handles of what the device holds of this vault and the file does not name. Only looks.

        A crash or a full disk left it there, or **another copy of the file uses it**: the two look alike.
        """
        held = self._held()
        return all_orphans(held.document, held.driver)

    def other_roots(self) -> tuple[bytes, ...]:
        """Those of the ``orphans`` that are root keys. A file whose root key is gone opens with its recovery shares, if
        there are any, and with nothing else."""
        held = self._held()
        return other_roots(held.document, held.driver)

    def check_sole(self) -> None:
        """Raises Denied (``vault.copies``, ``vault.unlisted``) where ``destroy_epoch`` would. Only looks."""
        held = self._held()
        check_sole(held.document, held.driver)

    def sweep_orphans(self, *, known_revision: int, among: Collection[bytes] | None = None) -> Swept:
        """Destroy the ``orphans``, or those ``among`` these; which ones it were, and what stopped it.

        To an **older or a restored copy** of the file, keys in use look like orphans, and nothing in that copy's own
        folder tells. So nothing calls this by itself: whoever does must know that no other copy of the file is in use,
        and says the newest revision that was ever in use. Untrusted (``vault.rollback``) if the file is older.
        """
        with self._exclusive() as held:
            document = held.document
            if document.revision < known_revision:
                raise Untrusted("vault.rollback", "The vault file is an older copy: what it lacks may be in use.")
            return sweep(held.driver, [h for h in self.orphans() if among is None or h in among])

    def finish(self) -> None:
        """Destroy what a crash kept from being destroyed. ``open_vault`` calls it."""
        if self._last.destroying:
            with self._exclusive() as held:
                for handle in held.document.destroying:
                    sentence = self._destroyed(handle)
                    if sentence is not None:
                        self._warnings.append(sentence)

    def close(self) -> None:
        with self._lock:
            held, self._open = self._open, None
        if held is not None:
            held.driver.close()

    def _held(self) -> OpenVault:
        held = self._open
        if held is None:
            raise Misuse("vault.closed", "The vault is locked; unlock it again.")
        return held

    def _sealed(self, held: OpenVault, name: str, kind: str, old: Secret | DeviceKey | None, value: bytes) -> Secret:
        epoch = 1 if old is None else old.epoch + 1
        box = held.keys.seal(held.document.vault, kind, name, epoch, value)
        return Secret(name, kind, epoch, box, self._clock())

    @staticmethod
    def _replaceable(document: VaultDocument, name: str, replace: bool) -> Secret | DeviceKey | None:
        """What has that name now."""
        check_name(name)
        old = document.find(name)
        if old is not None and not replace:
            raise Misuse("vault.secret_exists", "The vault has a key of that name; replacing it must be asked for.")
        return old

    @contextmanager
    def _exclusive(self) -> Iterator[OpenVault]:
        """Alone in this process and on this machine, with the file still the one that was read."""
        with self.guard(), self._lock:
            held = self._held()
            with locked(self._path):
                if read_file(self._path) != held.raw:
                    raise Misuse("vault.stale", "The vault was changed by another process; unlock it again.")
                yield held

    def _write(self, edited: VaultDocument, keys: VaultKeys | None = None, driver: KekDriver | None = None) -> None:
        """Within ``_exclusive``: what is in memory changes only once the disk has it."""
        held = self._held()
        keys, driver = keys or held.keys, driver or held.driver
        document = replace(edited, revision=held.document.revision + 1)
        raw = document.to_bytes(keys)
        replace_file(self._path, raw)
        self._open, self._last = OpenVault(raw, document, keys, driver), document

    @contextmanager
    def _unused(self, made: Sequence[bytes]) -> Iterator[None]:
        """Keys that the device just made: gone again if the file can't be written."""
        held = self._held()
        try:
            yield
        except BaseException:
            # Where the file did change (only its folder's sync failed), the key is in use now.
            # What can't be destroyed wraps nothing, and sweep_orphans finds it: the first error is what counts.
            with suppress(CloisterError):
                for handle in made if read_file(self._path) == held.raw else ():
                    held.driver.destroy(handle)
            raise

    def _give_up(self, edited: VaultDocument, handle: bytes, line: str, keys: VaultKeys | None = None) -> str | None:
        """File first: from then on nothing uses the key, whatever happens. Then the device. ``line``: where the device
        lists it; ``keys``: the new master key, if that changes, too."""
        # What the device holds is noted until it is gone. A handle that itself carries the key must not be kept.
        in_device = handle in self._held().driver.list(line)
        noted = sorted({*edited.destroying, handle}) if in_device else edited.destroying
        self._write(replace(edited, destroying=tuple(noted)), keys)
        return self._destroyed(handle)

    def _destroyed(self, handle: bytes) -> str | None:
        held = self._held()
        try:
            remains = held.driver.destroy(handle)
        except (Unavailable, Denied):
            return _UNREACHED
        if handle in held.document.destroying:
            rest = tuple(h for h in held.document.destroying if h != handle)
            # The key is gone already; a note that can't be taken away now is taken away at the next opening.
            with suppress(Unavailable):
                self._write(replace(held.document, destroying=rest))
        return remains

    def __enter__(self) -> Vault:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Vault({self.owner}, {self.driver}, epoch {self.epoch}, revision {self.revision})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a vault is not pickled")
