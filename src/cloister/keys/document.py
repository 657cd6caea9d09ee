"""The vault file: its fields, their one encoding, and the constructions that keep entries from being swapped.

Pure: no disk, no passphrase, no device. The format is docs/spec/vault.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from ..crypto import (
    Argon2Params,
    b64url,
    canonical_json,
    constant_time_equal,
    frame,
    hkdf,
    open_box,
    parse_canonical,
    seal_box,
    unb64url,
)
from ..crypto.kdf import hmac_sha256
from ..errors import CloisterError, Malformed, Misuse, Untrusted
from .drivers import DriverConfig
from .entries import (
    MAX_HANDLE,
    SCHEMA,
    DeviceKey,
    Kek,
    PassphraseUnlock,
    Recovery,
    Secret,
    Unlock,
    is_count,
    malformed,
    parse_unlock,
)

__all__ = [
    "MAX_VAULT",
    "VaultDocument",
    "VaultKeys",
    "check_owner",
    "passphrase_context",
    "recovery_context",
    "root_context",
]

MAX_VAULT = 4 * 1024 * 1024
_MAX_ENTRIES = 10_000
_PARTY = re.compile(r"[a-z][a-z0-9-]{0,62}")


def check_owner(owner: str) -> None:
    if not _PARTY.fullmatch(owner):
        raise Misuse("vault.owner", "A party's name is lower-case letters, digits and '-', starting with a letter.")


def _ascend(values: Sequence[Any]) -> bool:
    return len(values) <= _MAX_ENTRIES and list(values) == sorted(set(values))


@dataclass(frozen=True)
class VaultDocument:
    """All fields but the MAC. ``keks`` ascend by epoch, the last is the one that wraps; ``secrets`` and ``keys`` ascend
    by name and share no name. ``destroying``: handles of keys that the vault gave up and the device still holds."""

    vault: bytes
    owner: str
    revision: int
    driver: DriverConfig
    unlock: Unlock
    kek_id: str
    keks: tuple[Kek, ...]
    secrets: tuple[Secret, ...] = ()
    keys: tuple[DeviceKey, ...] = ()
    destroying: tuple[bytes, ...] = ()
    recovery: Recovery | None = None

    def __post_init__(self) -> None:
        names = [secret.name for secret in self.secrets] + [key.name for key in self.keys]
        well_formed = (
            len(self.vault) == 16
            and _PARTY.fullmatch(self.owner)
            and is_count(self.revision)
            and re.fullmatch(r"[0-9a-f]{32}", self.kek_id)
            and self.keks
            and _ascend([kek.epoch for kek in self.keks])
            and _ascend([secret.name for secret in self.secrets])
            and _ascend([key.name for key in self.keys])
            and _ascend(self.destroying)
            and all(1 <= len(handle) <= MAX_HANDLE for handle in self.destroying)
            and len(names) == len(set(names))
            # A passphrase protects a file; what a device keeps, the device unlocks.
            and isinstance(self.unlock, PassphraseUnlock) == (self.driver.name == "file")
        )
        if not well_formed:
            raise malformed()

    def body(self) -> bytes:
        """Canonical JSON of everything but the MAC: what the MAC covers."""
        return canonical_json(self._fields())

    def _fields(self) -> dict[str, Any]:
        return {
            "destroying": [b64url(handle) for handle in self.destroying],
            "driver": {"name": self.driver.name, "options": dict(self.driver.options)},
            "kek_id": self.kek_id,
            "keks": [kek.fields() for kek in self.keks],
            "keys": [key.fields() for key in self.keys],
            "owner": self.owner,
            "recovery": None if self.recovery is None else self.recovery.fields(),
            "revision": self.revision,
            "schema": SCHEMA,
            "secrets": [secret.fields() for secret in self.secrets],
            "unlock": self.unlock.fields(),
            "vault": self.vault.hex(),
        }

    def to_bytes(self, keys: VaultKeys) -> bytes:
        """The file's content, with its MAC. Raises Misuse if it grows beyond what is read back."""
        data = canonical_json({**self._fields(), "mac": keys.mac(self.body()).hex()})
        if len(data) > MAX_VAULT:
            raise Misuse("vault.full", f"The vault would be longer than {MAX_VAULT} bytes; keep less in it.")
        return data

    @classmethod
    def parse(cls, data: bytes) -> tuple[VaultDocument, bytes]:
        """(document, MAC), not yet verified. Raises Malformed for anything that would be written differently."""
        raw = parse_canonical(data, limit=MAX_VAULT)
        try:
            mac = bytes.fromhex(raw["mac"])
            document = cls._from_fields(raw)
            if canonical_json({**document._fields(), "mac": mac.hex()}) == data and len(mac) == 32:
                return document, mac
        except Malformed as error:
            raise error if error.code == "vault.argon2" else malformed() from None
        except (KeyError, TypeError, ValueError, AttributeError, CloisterError):
            raise malformed() from None
        raise malformed()

    @classmethod
    def _from_fields(cls, raw: dict[str, Any]) -> VaultDocument:
        recovery = raw["recovery"]
        return cls(
            vault=bytes.fromhex(raw["vault"]),
            owner=raw["owner"],
            revision=raw["revision"],
            driver=DriverConfig(raw["driver"]["name"], raw["driver"]["options"]),
            unlock=parse_unlock(raw["unlock"]),
            kek_id=raw["kek_id"],
            keks=tuple(Kek.parse(kek) for kek in raw["keks"]),
            secrets=tuple(Secret.parse(secret) for secret in raw["secrets"]),
            keys=tuple(DeviceKey.parse(key) for key in raw["keys"]),
            destroying=tuple(unb64url(handle) for handle in raw["destroying"]),
            recovery=None if recovery is None else Recovery.parse(recovery),
        )

    def master_context(self) -> bytes:
        """Associated data of the master key's box: it opens in this vault, unlocked in this way, or not at all."""
        if isinstance(self.unlock, PassphraseUnlock):
            return passphrase_context(self.vault, self.owner, self.unlock.salt, self.unlock.params)
        return root_context(self.vault, self.owner, self.driver.name)

    def find(self, name: str) -> Secret | DeviceKey | None:
        secret = next((secret for secret in self.secrets if secret.name == name), None)
        return secret or next((key for key in self.keys if key.name == name), None)

    def with_entry(self, entry: Secret | DeviceKey) -> VaultDocument:
        """Put a secret or key in the place of what has that name now."""
        secrets = [e for e in self.secrets if e.name != entry.name]
        keys = [e for e in self.keys if e.name != entry.name]
        if isinstance(entry, Secret):
            secrets.append(entry)
        else:
            keys.append(entry)
        ordered = tuple(sorted(secrets, key=lambda e: e.name)), tuple(sorted(keys, key=lambda e: e.name))
        return replace(self, secrets=ordered[0], keys=ordered[1])

    def handles(self) -> frozenset[bytes]:
        """Every handle that the vault knows of: what a device holds beside them, nobody uses."""
        root = () if isinstance(self.unlock, PassphraseUnlock) else (self.unlock.handle,)
        named = [*(kek.handle for kek in self.keks), *(key.handle for key in self.keys)]
        return frozenset((*root, *named, *self.destroying))

    def resealed(self, old: VaultKeys, new: VaultKeys) -> VaultDocument:
        """The same secrets under another master key. KEKs and unlocking are the caller's business."""
        moved = (new.seal(self.vault, s.kind, s.name, s.epoch, old.open(self.vault, s)) for s in self.secrets)
        secrets = tuple(replace(s, box=box) for s, box in zip(self.secrets, moved, strict=True))
        return replace(self, secrets=secrets)


class VaultKeys:
    """A vault's master key, and what comes from it: one key seals entries, one authenticates the whole file, one is
    the file driver's."""

    __slots__ = ("_mac", "_master", "_seal")

    def __init__(self, master: bytes) -> None:
        self._master = master
        self._seal = hkdf(master, info=b"cloister/vault/seal/v1")
        self._mac = hkdf(master, info=b"cloister/vault/mac/v1")

    def mac(self, body: bytes) -> bytes:
        return hmac_sha256(self._mac, body)

    def check(self, document: VaultDocument, mac: bytes) -> None:
        """Raise Untrusted unless the document is, entry for entry, one that a holder of these keys wrote."""
        if not constant_time_equal(self.mac(document.body()), mac):
            raise Untrusted("vault.changed", "The vault file was changed by something else; restore it from a backup.")

    def seal(self, vault: bytes, kind: str, name: str, epoch: int, value: bytes) -> bytes:
        return seal_box(self._seal, value, _entry_context(vault, kind, name, epoch))

    def open(self, vault: bytes, secret: Secret) -> bytes:
        """Raises Untrusted unless the box was sealed for this vault, kind, name and epoch."""
        return open_box(self._seal, secret.box, _entry_context(vault, secret.kind, secret.name, secret.epoch))

    def file_driver_key(self) -> bytes:
        return hkdf(self._master, info=b"cloister/vault/file-driver/v1")

    def seal_master(self, key: bytes, context: bytes) -> bytes:
        """The master key itself, boxed under ``key``: for a passphrase or for recovery."""
        return seal_box(key, self._master, context)

    def export_secret_master(self) -> bytes:
        """The master key itself: only for wrapping it in a device."""
        return self._master

    def __repr__(self) -> str:
        return "VaultKeys(…)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a vault's keys are not pickled")


def passphrase_context(vault: bytes, owner: str, salt: bytes, params: Argon2Params) -> bytes:
    costs = (params.memory_kib, params.iterations, params.lanes)
    return frame("cloister/vault/master/v1", vault, owner, salt, *costs)


def root_context(vault: bytes, owner: str, driver: str) -> bytes:
    return frame("cloister/vault/root/v1", vault, owner, driver)


def recovery_context(vault: bytes, owner: str, set_id: int, threshold: int, shares: int) -> bytes:
    return frame("cloister/vault/recovery/v1", vault, owner, set_id, threshold, shares)


def _entry_context(vault: bytes, kind: str, name: str, epoch: int) -> bytes:
    return frame("cloister/vault/entry/v1", vault, kind, name, epoch)
