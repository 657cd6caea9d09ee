"""What a vault is to the rest of Cloister. One interface, whether the keys lie in a file, an HSM or a cloud's KMS."""

from __future__ import annotations

from typing import Protocol

from ..crypto import SigningKey
from .models import WrappedKey

__all__ = ["KeyVault"]


class KeyVault(Protocol):
    """Keeps KEKs and named secrets. A KEK never leaves it.

    Guaranteed: a wrapped key opens only in the vault that wrapped it and only for the manifest that it was wrapped
    for. Not guaranteed: that an old copy of the whole vault is noticed (a caller who remembers ``revision`` can),
    and that a key which was unwrapped is ever forgotten by whoever got it.

    Every method raises Misuse after ``close`` and Unavailable when the vault can't be reached.
    """

    @property
    def owner(self) -> str:
        """The party whose vault it is."""
        ...

    @property
    def kek_id(self) -> str:
        """Names this vault's line of KEKs: 32 hex digits."""
        ...

    @property
    def epoch(self) -> int:
        """The KEK that wraps now; 1 at first, one more with every rotation."""
        ...

    @property
    def revision(self) -> int:
        """Grows with every change."""
        ...

    def epochs(self) -> tuple[int, ...]:
        """The KEKs that can still unwrap."""
        ...

    def wrap(self, dek: bytes, manifest_digest: bytes) -> WrappedKey:
        """Wrap a data key (32 bytes) under the newest KEK for one manifest (32 bytes)."""
        ...

    def unwrap(self, wrapped: WrappedKey, manifest_digest: bytes) -> bytes:
        """The data key. Raises Untrusted if it was wrapped for another manifest or changed, Denied if its KEK
        is another vault's or was destroyed."""
        ...

    def rewrap(self, wrapped: WrappedKey, manifest_digest: bytes) -> WrappedKey:
        """The same data key under the newest KEK. Raises as ``unwrap``."""
        ...

    def rotate_kek(self) -> int:
        """Start a new epoch and return it. Older epochs still unwrap, until they are destroyed."""
        ...

    def destroy_epoch(self, epoch: int) -> None:
        """Forget an older KEK: what is wrapped under it can't be unwrapped here any more. Backups of the
        vault, and keys that were released before, are out of its reach. Raises Misuse for the newest epoch."""
        ...

    def secret_names(self) -> tuple[str, ...]: ...

    def put_secret(self, name: str, value: bytes, *, replace: bool = False) -> None:
        """Keep a secret. Raises Misuse if the name is taken and ``replace`` isn't set."""
        ...

    def secret(self, name: str) -> bytes:
        """The secret itself. Raises Misuse if there is none of that name."""
        ...

    def signing_key(self, name: str) -> SigningKey:
        """The Ed25519 key whose seed is the secret of that name."""
        ...

    def close(self) -> None:
        """Drop the keys from memory."""
        ...
