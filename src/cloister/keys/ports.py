"""What a vault is to the rest of Cloister, and what a driver is to a vault. One interface, whether the keys lie in a
file, a TPM, an HSM or a cloud's KMS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol, runtime_checkable

from ..crypto import Signer
from .models import KeyInfo, WrappedKey

__all__ = ["KekDriver", "KeyVault", "SigningDriver"]


class KekDriver(Protocol):
    """Keeps KEKs, each under a handle, and wraps data keys with them. tests/vault_conformance.py is its suite.

    A handle (at most 4096 bytes, no secret by itself) names one KEK for ever; the vault's file keeps it, authenticated.
    ``context`` is what binds a wrapped key (``wrap_context``): where the service takes associated data it goes there;
    where it does not (AES-KWP, RSA-OAEP), the driver wraps ``dek ‖ SHA-256(context)`` and compares after unwrapping,
    in constant time. Every method raises Unavailable when device or service can't be reached, Denied when it refuses
    the credential, and never puts a credential or a key into a message. Drivers reconnect by themselves after a lost
    session, once per call; they are used by several threads at once.
    """

    name: ClassVar[str]  # "file", "tpm", "pkcs11", "transit", "aws", "gcp", "azure"
    experimental: ClassVar[bool]  # True while it was never run against the real thing
    algorithm: ClassVar[str]  # stands in every WrappedKey, so that it can change later

    def create(self, kek_id: str, epoch: int) -> bytes:
        """A new KEK, non-extractable where the device can; its handle. ``kek_id`` and ``epoch`` label it for people."""
        ...

    def wrap(self, handle: bytes, dek: bytes, context: bytes) -> bytes:
        """Box of a key of 32 bytes; at most 2048 bytes. Raises Misuse (``wrap.dek``) for another size, Denied
        (``wrap.gone``) for a KEK that is not there any more."""
        ...

    def unwrap(self, handle: bytes, box: bytes, context: bytes) -> bytes:
        """The 32 bytes. Raises Untrusted (``wrap.changed``) for a changed box or another context, Denied
        (``wrap.gone``) for a KEK that is not there any more, or a handle that never named one."""
        ...

    def destroy(self, handle: bytes) -> str | None:
        """Make the KEK unusable for ever. Idempotent. Returns None when it is gone now, else one sentence that says
        what remains (a KMS with a waiting period, a file's backups)."""
        ...

    def list(self, kek_id: str) -> Sequence[bytes]:
        """Handles of that line that device or service holds: what a crash left behind can be found and destroyed."""
        ...

    def close(self) -> None:
        """End the connection and drop what is in memory. Idempotent; every other method then raises Misuse
        (``vault.closed``)."""
        ...


@runtime_checkable
class SigningDriver(KekDriver, Protocol):
    """A driver that keeps Ed25519 signing keys, too. ``destroy`` takes their handles, and ``list`` shows them."""

    def create_signer(self, name: str) -> tuple[bytes, bytes]:
        """A new key, non-extractable where the device can: (handle, 32 public bytes). ``name`` is
        ``<kek_id>/<name of the key>/<epoch>``; its first part is what ``list`` is asked for."""
        ...

    def signer(self, handle: bytes) -> Signer:
        """What signs with that key, as often as wanted. It, or its ``sign``, raises Denied (``sign.gone``) for a key
        that is not there any more, Misuse (``vault.closed``) after ``close``."""
        ...


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
    def driver(self) -> str:
        """The name of what keeps the KEKs."""
        ...

    @property
    def warnings(self) -> Sequence[str]:
        """What whoever runs this vault should know, for example that its driver is experimental."""
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

    def keys(self) -> Sequence[KeyInfo]:
        """Every KEK and named key: what it is, where it lies, since when, and how often it was used since start."""
        ...

    def wrap(self, dek: bytes, manifest_digest: bytes) -> WrappedKey:
        """Wrap a data key (32 bytes) under the newest KEK for one manifest (32 bytes)."""
        ...

    def unwrap(self, wrapped: WrappedKey, manifest_digest: bytes) -> bytes:
        """The data key. Raises Untrusted if it was wrapped for another manifest or changed, Denied if its KEK
        is another vault's, of another algorithm, or was destroyed."""
        ...

    def rewrap(self, wrapped: WrappedKey, manifest_digest: bytes) -> WrappedKey:
        """The same data key under the newest KEK. Raises as ``unwrap``."""
        ...

    def rotate_kek(self) -> int:
        """Start a new epoch and return it. Older epochs still unwrap, until they are destroyed."""
        ...

    def destroy_epoch(self, epoch: int) -> str | None:
        """Forget an older KEK: what is wrapped under it can't be unwrapped here any more. Returns what is out of
        reach, in one sentence, or None (``KekDriver.destroy``). Raises Misuse for the newest epoch, Denied
        (``vault.copies``, ``vault.unlisted``) while a restored copy of this vault and the one that was restored may
        both be in use."""
        ...

    def check_sole(self) -> None:
        """Raises what ``destroy_epoch`` would in that case, and destroys nothing."""
        ...

    def secret_names(self) -> tuple[str, ...]: ...

    def put_secret(self, name: str, value: bytes, *, replace: bool = False) -> None:
        """Keep a secret. Raises Misuse if the name is taken and ``replace`` isn't set."""
        ...

    def secret(self, name: str) -> bytes:
        """The secret itself. Raises Misuse if there is none of that name."""
        ...

    def create_signing_key(self, name: str, *, replace: bool = False) -> Signer:
        """A new Ed25519 key of that name: inside the device where the driver can sign, else as a secret."""
        ...

    def signing_key(self, name: str) -> Signer:
        """The Ed25519 key of that name. Raises Misuse if there is none."""
        ...

    def close(self) -> None:
        """Drop the keys from memory."""
        ...
