"""The vault file: its fields, their one encoding, and the constructions that keep entries from being swapped.

Pure: no disk, no passphrase. The format is docs/spec/vault.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

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
from ..errors import Malformed, Misuse, Untrusted

__all__ = ["MAX_VAULT", "SCHEMA", "Entry", "VaultDocument", "VaultKeys", "check_owner", "check_secret_name"]

SCHEMA = "cloister/vault/v1"
MAX_VAULT = 4 * 1024 * 1024
_MAX_ENTRIES = 10_000
_PARTY = re.compile(r"[a-z][a-z0-9-]{0,62}")
_NAME = re.compile(r"[a-z][a-z0-9.-]{0,62}")


def _malformed() -> Malformed:
    return Malformed("vault.form", f"The file is not a vault of the form {SCHEMA}; restore it from a backup.")


def check_owner(owner: str) -> None:
    if not _PARTY.fullmatch(owner):
        raise Misuse("vault.owner", "A party's name is lower-case letters, digits and '-', starting with a letter.")


def check_secret_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise Misuse("vault.name", "A secret's name is lower-case letters, digits, '-' and '.', at most 63.")


def _unboxed(text: Any) -> bytes:
    try:
        return unb64url(text)
    except Malformed:
        raise _malformed() from None


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**53


@dataclass(frozen=True)
class Entry:
    """One sealed value. For a KEK the name is the vault's KEK id; for a secret ``epoch`` counts its replacements."""

    name: str
    epoch: int
    box: bytes


@dataclass(frozen=True)
class VaultDocument:
    """All fields but the MAC. ``keks`` ascend by epoch, the last is the one that wraps; ``secrets`` ascend by name."""

    vault: bytes
    owner: str
    revision: int
    salt: bytes
    params: Argon2Params
    master: bytes
    kek_id: str
    keks: tuple[Entry, ...]
    secrets: tuple[Entry, ...]

    def __post_init__(self) -> None:
        self.params.check()
        epochs = [kek.epoch for kek in self.keks]
        names = [secret.name for secret in self.secrets]
        well_formed = (
            len(self.vault) == 16
            and _PARTY.fullmatch(self.owner)
            and _is_count(self.revision)
            and len(self.salt) == 16
            and re.fullmatch(r"[0-9a-f]{32}", self.kek_id)
            and 1 <= len(epochs) <= _MAX_ENTRIES
            and len(names) <= _MAX_ENTRIES
            and epochs == sorted(set(epochs))
            and names == sorted(set(names))
            and all(_is_count(entry.epoch) for entry in (*self.keks, *self.secrets))
            and all(_NAME.fullmatch(name) for name in names)
            and all(kek.name == self.kek_id for kek in self.keks)
        )
        if not well_formed:
            raise _malformed()

    def body(self) -> bytes:
        """Canonical JSON of everything but the MAC: what the MAC covers."""
        return canonical_json(self._fields())

    def _fields(self) -> dict[str, Any]:
        costs = {"iterations": self.params.iterations, "lanes": self.params.lanes, "memory_kib": self.params.memory_kib}
        return {
            "kdf": {"name": "argon2id", "salt": b64url(self.salt), **costs},
            "kek_id": self.kek_id,
            "keks": [{"box": b64url(kek.box), "epoch": kek.epoch} for kek in self.keks],
            "master": b64url(self.master),
            "owner": self.owner,
            "revision": self.revision,
            "schema": SCHEMA,
            "secrets": [{"box": b64url(s.box), "epoch": s.epoch, "name": s.name} for s in self.secrets],
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
        except (KeyError, TypeError, ValueError, AttributeError):
            raise _malformed() from None
        raise _malformed()

    @classmethod
    def _from_fields(cls, raw: dict[str, Any]) -> VaultDocument:
        kdf, kek_id = raw["kdf"], raw["kek_id"]
        costs = [kdf["memory_kib"], kdf["iterations"], kdf["lanes"]]
        if not all(_is_count(cost) for cost in costs):
            raise _malformed()
        return cls(
            vault=bytes.fromhex(raw["vault"]),
            owner=raw["owner"],
            revision=raw["revision"],
            salt=_unboxed(kdf["salt"]),
            params=Argon2Params(*costs),
            master=_unboxed(raw["master"]),
            kek_id=kek_id,
            keks=tuple(Entry(kek_id, kek["epoch"], _unboxed(kek["box"])) for kek in raw["keks"]),
            secrets=tuple(Entry(s["name"], s["epoch"], _unboxed(s["box"])) for s in raw["secrets"]),
        )

    def master_context(self) -> bytes:
        """Associated data of the master key's box: it opens in this vault, with these Argon2 costs, or not at all."""
        p = self.params
        costs = (p.memory_kib, p.iterations, p.lanes)
        return frame("cloister/vault/master/v1", self.vault, self.owner, self.salt, *costs)

    def with_secret(self, entry: Entry) -> VaultDocument:
        others = [s for s in self.secrets if s.name != entry.name]
        return replace(self, secrets=tuple(sorted([*others, entry], key=lambda s: s.name)))


class VaultKeys:
    """The two keys that come from a vault's master key: one seals entries, one authenticates the whole file."""

    __slots__ = ("_mac", "_seal")

    def __init__(self, master: bytes) -> None:
        self._seal = hkdf(master, info=b"cloister/vault/seal/v1")
        self._mac = hkdf(master, info=b"cloister/vault/mac/v1")

    def mac(self, body: bytes) -> bytes:
        return hmac_sha256(self._mac, body)

    def check(self, document: VaultDocument, mac: bytes) -> None:
        """Raise Untrusted unless the document is, entry for entry, one that a holder of these keys wrote."""
        if not constant_time_equal(self.mac(document.body()), mac):
            raise Untrusted("vault.changed", "The vault file was changed by something else; restore it from a backup.")

    def seal(self, vault: bytes, kind: str, name: str, epoch: int, value: bytes) -> Entry:
        return Entry(name, epoch, seal_box(self._seal, value, _entry_context(vault, kind, name, epoch)))

    def open(self, vault: bytes, kind: str, entry: Entry) -> bytes:
        """Raises Untrusted unless the box was sealed for this vault, kind, name and epoch."""
        return open_box(self._seal, entry.box, _entry_context(vault, kind, entry.name, entry.epoch))

    def __repr__(self) -> str:
        return "VaultKeys(…)"

    def __reduce__(self) -> str:
        raise TypeError("a vault's keys are not pickled")


def _entry_context(vault: bytes, kind: str, name: str, epoch: int) -> bytes:
    return frame("cloister/vault/entry/v1", vault, kind, name, epoch)
