"""KEKs in the vault's own file: for a party without a device, and for every test.

A handle is the KEK itself, sealed under a key that only the vault knows. So whoever has the file and its passphrase
has the KEKs; what the other drivers add is that nobody has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, NoReturn

from ...crypto import frame, open_box, random_bytes, seal_box
from ...errors import Denied, Misuse, Untrusted
from ..models import DEK_SIZE

__all__ = ["FileDriver", "open_driver"]

_HEADER = 16 + 8  # KEK id ‖ epoch
_HANDLE = _HEADER + 12 + 32 + 16


class FileDriver:
    """``KekDriver`` without a device. A handle is ``KEK id (16) ‖ epoch (8, big-endian) ‖ box of the KEK (60)``."""

    name: ClassVar[str] = "file"
    experimental: ClassVar[bool] = False
    algorithm: ClassVar[str] = "A256GCM"

    def __init__(self, key: bytes) -> None:
        self._key: bytes | None = key

    def create(self, kek_id: str, epoch: int) -> bytes:
        header = bytes.fromhex(kek_id) + epoch.to_bytes(8, "big")
        return header + seal_box(self._held(), random_bytes(32), _context(header))

    def wrap(self, handle: bytes, dek: bytes, context: bytes) -> bytes:
        kek = self._kek(handle)
        if len(dek) != DEK_SIZE:
            raise Misuse("wrap.dek", f"A data key has exactly {DEK_SIZE} bytes.")
        return seal_box(kek, dek, context)

    def unwrap(self, handle: bytes, box: bytes, context: bytes) -> bytes:
        kek = self._kek(handle)
        try:
            return open_box(kek, box, context)
        except Untrusted:
            raise Untrusted(
                "wrap.changed", "A wrapped key does not open: it was changed, or wrapped for something else."
            ) from None

    def destroy(self, handle: bytes) -> str | None:  # noqa: ARG002 - there is no device that could forget it
        """The vault drops the handle from its file; copies of the file are out of reach."""
        self._held()
        return "Copies of the vault file that were made before still hold the key, under the passphrase of that time."

    def list(self, kek_id: str) -> Sequence[bytes]:  # noqa: ARG002 - the file is all there is
        self._held()
        return ()

    def moved(self, handle: bytes, other: FileDriver) -> bytes:
        """The same KEK's handle under another vault key. Raises as ``wrap``."""
        header = handle[:_HEADER]
        return header + seal_box(other._held(), self._kek(handle), _context(header))

    def close(self) -> None:
        self._key = None

    def _held(self) -> bytes:
        if self._key is None:
            raise Misuse("vault.closed", "The vault is locked; unlock it again.")
        return self._key

    def _kek(self, handle: bytes) -> bytes:
        key = self._held()
        try:
            if len(handle) == _HANDLE:
                return open_box(key, handle[_HEADER:], _context(handle[:_HEADER]))
        except Untrusted:
            raise _gone() from None
        raise _gone()

    def __repr__(self) -> str:
        return "FileDriver(…)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a vault's driver is not pickled")


def _context(header: bytes) -> bytes:
    """Associated data of a KEK's box: it opens for one line and epoch. The key is one vault's own."""
    return frame("cloister/vault/kek/v1", header[:16], header[16:])


def _gone() -> Denied:
    return Denied("wrap.gone", "The vault does not hold that KEK any more; what it wrapped can't be opened here.")


def open_driver(options: Mapping[str, str], credential: bytes) -> FileDriver:
    """``credential``: 32 bytes that the vault derives from its master key. There are no options."""
    if options:
        raise Misuse("driver.options", "The file driver takes no options.")
    if len(credential) != 32:
        raise Misuse("driver.credential", "The file driver takes a key of 32 bytes, from its vault.")
    return FileDriver(credential)
