"""What stands in a vault's file, entry by entry: plain values with one encoding each.

Nothing here is secret by itself: boxes are sealed, handles are sealed or only name a key inside a device.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..crypto import Argon2Params, b64url, unb64url
from ..errors import Malformed, Misuse

__all__ = [
    "DeviceKey",
    "DeviceUnlock",
    "Kek",
    "PassphraseUnlock",
    "Recovery",
    "Secret",
    "Unlock",
    "check_name",
    "is_count",
    "malformed",
]

SCHEMA = "cloister/vault/v1"
MAX_HANDLE = 4096
MAX_ROOT_BOX = 2048
KINDS = ("secret", "signing")
_NAME = re.compile(r"[a-z][a-z0-9.-]{0,62}")


def malformed() -> Malformed:
    return Malformed("vault.form", f"The file is not a vault of the form {SCHEMA}; restore it from a backup.")


def check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise Misuse("vault.name", "A key's name is lower-case letters, digits, '-' and '.', at most 63.")


def is_count(value: object, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**53


def _require(*conditions: object) -> None:
    if not all(conditions):
        raise malformed()


def _is_name(value: object) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


@dataclass(frozen=True)
class Kek:
    """A KEK of one epoch, under the driver's handle; ``created`` in unix seconds, 0 if unknown."""

    epoch: int
    handle: bytes
    created: int

    def __post_init__(self) -> None:
        _require(is_count(self.epoch), is_count(self.created, 0), 1 <= len(self.handle) <= MAX_HANDLE)

    def fields(self) -> dict[str, Any]:
        return {"created": self.created, "epoch": self.epoch, "handle": b64url(self.handle)}

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> Kek:
        return cls(raw["epoch"], unb64url(raw["handle"]), raw["created"])


@dataclass(frozen=True)
class Secret:
    """A named value, sealed under the master key. ``epoch`` counts its replacements; ``kind`` is ``secret``, or
    ``signing`` for a seed that only signs."""

    name: str
    kind: str
    epoch: int
    box: bytes
    created: int

    def __post_init__(self) -> None:
        _require(_is_name(self.name), self.kind in KINDS, is_count(self.epoch), is_count(self.created, 0))

    def fields(self) -> dict[str, Any]:
        numbers = {"created": self.created, "epoch": self.epoch}
        return {**numbers, "box": b64url(self.box), "kind": self.kind, "name": self.name}

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> Secret:
        return cls(raw["name"], raw["kind"], raw["epoch"], unb64url(raw["box"]), raw["created"])


@dataclass(frozen=True)
class DeviceKey:
    """A signing key that the driver's device keeps; ``public`` has 32 bytes."""

    name: str
    epoch: int
    handle: bytes
    public: bytes
    created: int

    def __post_init__(self) -> None:
        _require(_is_name(self.name), is_count(self.epoch), is_count(self.created, 0))
        _require(1 <= len(self.handle) <= MAX_HANDLE, len(self.public) == 32)

    def fields(self) -> dict[str, Any]:
        numbers = {"created": self.created, "epoch": self.epoch}
        return {**numbers, "handle": b64url(self.handle), "name": self.name, "public": self.public.hex()}

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> DeviceKey:
        public = bytes.fromhex(raw["public"])
        return cls(raw["name"], raw["epoch"], unb64url(raw["handle"]), public, raw["created"])


@dataclass(frozen=True)
class PassphraseUnlock:
    """The master key's box under Argon2id of a passphrase. Raises Malformed for costs out of range, before use."""

    salt: bytes
    params: Argon2Params
    box: bytes

    def __post_init__(self) -> None:
        costs = (self.params.memory_kib, self.params.iterations, self.params.lanes)
        _require(len(self.salt) == 16, all(is_count(cost) for cost in costs))
        self.params.check()

    def fields(self) -> dict[str, Any]:
        p = self.params
        costs = {"iterations": p.iterations, "lanes": p.lanes, "memory_kib": p.memory_kib}
        return {**costs, "box": b64url(self.box), "method": "argon2id", "salt": b64url(self.salt)}


@dataclass(frozen=True)
class DeviceUnlock:
    """The master key, wrapped by the driver under a root key of the vault's own."""

    handle: bytes
    box: bytes

    def __post_init__(self) -> None:
        _require(1 <= len(self.handle) <= MAX_HANDLE, 1 <= len(self.box) <= MAX_ROOT_BOX)

    def fields(self) -> dict[str, Any]:
        return {"box": b64url(self.box), "handle": b64url(self.handle), "method": "driver"}


Unlock = PassphraseUnlock | DeviceUnlock


def parse_unlock(raw: dict[str, Any]) -> Unlock:
    if raw["method"] == "driver":
        return DeviceUnlock(unb64url(raw["handle"]), unb64url(raw["box"]))
    params = Argon2Params(raw["memory_kib"], raw["iterations"], raw["lanes"])
    if not all(is_count(cost) for cost in (params.memory_kib, params.iterations, params.lanes)):
        raise malformed()
    return PassphraseUnlock(unb64url(raw["salt"]), params, unb64url(raw["box"]))


@dataclass(frozen=True)
class Recovery:
    """The master key's box under a secret that is split: ``threshold`` of ``shares`` restore it. ``set_id`` (15 bits)
    stands in every share, so that another set's is told from a mistyped one."""

    set_id: int
    threshold: int
    shares: int
    box: bytes

    def __post_init__(self) -> None:
        _require(is_count(self.set_id, 0), self.set_id < 2**15)
        _require(is_count(self.threshold), is_count(self.shares), self.threshold <= self.shares <= 16)

    def fields(self) -> dict[str, Any]:
        counts = {"set": self.set_id, "shares": self.shares, "threshold": self.threshold}
        return {**counts, "box": b64url(self.box)}

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> Recovery:
        return cls(raw["set"], raw["threshold"], raw["shares"], unb64url(raw["box"]))
