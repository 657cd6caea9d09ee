"""Sealed objects on a local disk, one folder for each."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ...crypto import random_bytes
from ...errors import Misuse, Untrusted
from ..checker import check_ciphertext
from ..folder import MANIFEST_NAME, FolderSource, sync_folder
from ..ports import ObjectSource
from .layout import as_digest, folder_of, incomplete, stored_envelope
from .staging import disk_errors, remove_staged
from .transfer import fetch_object

__all__ = ["LocalStore"]


class LocalStore:
    """``Store`` in a folder. An object appears by one rename and goes by one, so no crash leaves half of it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        with disk_errors():
            root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, digest: bytes) -> Path:
        """Its folder; whether it is there shows when it is read."""
        return self._root / folder_of(digest)

    def put(self, folder: Path, digest: bytes, *, recheck: bool = False) -> None:
        if self.has(digest):
            if not recheck:
                return
            try:
                self._check(digest)
                return
            except Untrusted:
                self.delete(digest)  # damaged; the copy that is at hand is checked before it takes its place
        try:
            fetch_object(FolderSource(folder), digest, self.path(digest))
        except Misuse:
            if not self.has(digest):  # another put of the same object came first
                raise

    def _check(self, digest: bytes) -> None:
        stored_envelope(self.source(digest), digest)
        check_ciphertext(self.path(digest))

    def take(self, folder: Path, digest: bytes) -> None:
        stored_envelope(FolderSource(folder), digest)
        if self.has(digest):
            shutil.rmtree(folder, ignore_errors=True)
            return
        with disk_errors():
            sync_folder(folder)
            os.rename(folder, self.path(digest))
            sync_folder(self._root)

    def source(self, digest: bytes) -> ObjectSource:
        return _LocalSource(self.path(digest))

    def fetch(self, digest: bytes, dest: Path) -> None:
        fetch_object(self.source(digest), digest, dest)

    def digests(self) -> Iterator[bytes]:
        with disk_errors():
            names = os.listdir(self._root)
        for name in names:
            digest = as_digest(name)
            if digest is not None and self.has(digest):
                yield digest

    def has(self, digest: bytes) -> bool:
        return (self.path(digest) / MANIFEST_NAME).is_file()

    def delete(self, digest: bytes) -> None:
        doomed = self._root / f".{folder_of(digest)}.{random_bytes(8).hex()}.partial"  # a sweep knows such names
        with disk_errors():
            try:
                os.rename(self.path(digest), doomed)
            except FileNotFoundError:
                return
            sync_folder(self._root)
        shutil.rmtree(doomed, ignore_errors=True)

    def sweep(self, *, before: int) -> int:
        return remove_staged(self._root, before=before)


class _LocalSource(FolderSource):
    """In a store, what has no manifest does not exist."""

    def envelope(self) -> bytes:
        if not os.path.lexists(self._folder / MANIFEST_NAME):
            raise incomplete()
        return super().envelope()
