"""``Store`` over a bucket: members first, the manifest last, and nothing believed that comes back."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from ...errors import Malformed, Unavailable, Untrusted
from ..folder import MANIFEST_NAME, MAX_ENVELOPE, FolderSource, member_name, open_member
from ..models import FileEntry
from ..ports import ObjectSource
from .layout import as_digest, folder_of, incomplete, is_ours, is_whole, named_manifest, stored_envelope
from .ports import Bucket, Found
from .ranges import RangeFile
from .transfer import fetch_object, root_over, send_member

__all__ = ["FsspecStore"]

_READERS = 4  # requests that read ahead at once, over all files of the store


class FsspecStore:
    """``Store`` over a ``Bucket``. Use it in ``with``, or ``close`` it.

    What counts is the manifest: it is written after all members were seen there with their sizes, and removed before
    them. So a crash leaves members without a manifest, which is no object, and never a manifest without members. No
    step depends on a condition that a server would have to check.
    """

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._lane = ThreadPoolExecutor(_READERS, thread_name_prefix="cloister-ahead")

    @property
    def url(self) -> str:
        return self._bucket.url

    # --- writing ---------------------------------------------------------------------------------------------------

    def put(self, folder: Path, digest: bytes, *, recheck: bool = False) -> None:
        name = folder_of(digest)
        envelope, manifest = named_manifest(FolderSource(folder), digest)
        found = self._bucket.listing(name)
        if is_whole(found, manifest) and not recheck and self._holds_manifest(digest):
            return
        for index, entry in enumerate(manifest.files):
            if not self._holds_member(name, member_name(index), entry, found):
                self._send(folder, name, member_name(index), entry)
        # A manifest is only ever put beside members that the store shows: it says that all of them are there.
        found = self._bucket.listing(name) | {MANIFEST_NAME: Found(0, 0)}
        if not is_whole(found, manifest):
            raise Unavailable("store.lost", "The store lost a file that it had taken; put the object again.")
        self._bucket.write(name, MANIFEST_NAME, envelope.to_bytes())
        if not self._holds_manifest(digest):
            raise Unavailable("store.lost", "The store lost a manifest that it had taken; put the object again.")

    def _holds_manifest(self, digest: bytes) -> bool:
        try:
            stored_envelope(self.source(digest), digest)
        except (Untrusted, Malformed):
            return False
        return True

    def _holds_member(self, folder: str, name: str, entry: FileEntry, found: dict[str, Found]) -> bool:
        """An earlier put may have left it; its size alone says little, so it is read and hashed."""
        if name not in found or found[name].size != entry.ciphertext_size:
            return False
        try:
            with closing(self._file(folder, name, entry.ciphertext_size)) as file:
                return root_over(file) == entry.root
        except Untrusted:
            return False

    def _send(self, source: Path, folder: str, name: str, entry: FileEntry) -> None:
        with closing(open_member(source, name, entry.ciphertext_size)) as file:
            send_member(file, entry, self._bucket.upload(folder, name, entry.ciphertext_size))

    def take(self, folder: Path, digest: bytes) -> None:
        self.put(folder, digest)
        shutil.rmtree(folder, ignore_errors=True)

    def delete(self, digest: bytes) -> None:
        name = folder_of(digest)
        self._bucket.remove(name, MANIFEST_NAME)
        for member in self._bucket.listing(name):
            if is_ours(name, member):
                self._bucket.remove(name, member)

    def sweep(self, *, before: int) -> int:
        removed = self._bucket.abort_uploads(before=before)
        files: dict[str, dict[str, Found]] = {}
        for folder, name, found in self._bucket.everything():
            if is_ours(folder, name):
                files.setdefault(folder, {})[name] = found
        for folder, members in files.items():
            # A put that is going on would have touched one of them lately.
            if MANIFEST_NAME not in members and all(found.modified < before for found in members.values()):
                for name in members:
                    self._bucket.remove(folder, name)
                    removed += 1
        return removed

    # --- reading ---------------------------------------------------------------------------------------------------

    def source(self, digest: bytes) -> ObjectSource:
        return _BucketSource(self, folder_of(digest))

    def _file(self, folder: str, name: str, size: int) -> RangeFile:
        return RangeFile(lambda start, length: self._read(folder, name, start, length), size, self._lane)

    def _read(self, folder: str, name: str, start: int, length: int) -> bytes:
        try:
            return self._bucket.read(folder, name, start, length)
        except FileNotFoundError:
            raise incomplete() from None

    def fetch(self, digest: bytes, dest: Path) -> None:
        fetch_object(self.source(digest), digest, dest)

    def digests(self) -> Iterator[bytes]:
        for folder, name, _ in self._bucket.everything():
            digest = as_digest(folder)
            if digest is not None and name == MANIFEST_NAME:
                yield digest

    def has(self, digest: bytes) -> bool:
        return MANIFEST_NAME in self._bucket.listing(folder_of(digest))

    def check(self) -> None:
        """That the store answers and takes these credentials. Raises Denied, Misuse or Unavailable."""
        self._bucket.listing("")

    def close(self) -> None:
        self._lane.shutdown(cancel_futures=True)
        self._bucket.close()

    def __enter__(self) -> FsspecStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"FsspecStore({self.url})"


class _BucketSource:
    """``ObjectSource``: one listing tells the sizes of all members, so opening an object of many files stays cheap."""

    def __init__(self, store: FsspecStore, folder: str) -> None:
        self._store, self._folder = store, folder
        self._found: dict[str, Found] | None = None

    def envelope(self) -> bytes:
        return self._store._read(self._folder, MANIFEST_NAME, 0, MAX_ENVELOPE + 1)

    def open(self, name: str, size: int) -> RangeFile:
        if self._found is None:
            self._found = self._store._bucket.listing(self._folder)
        if name not in self._found:
            raise incomplete()
        if self._found[name].size != size:
            raise Untrusted("sealed.size", "A file of the sealed object has not the size that its manifest names.")
        return self._store._file(self._folder, name, size)
