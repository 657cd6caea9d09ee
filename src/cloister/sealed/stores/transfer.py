"""Moving one object between a folder and a store, hashed on the way."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

from ...crypto.merkle import RootHasher
from ...crypto.streaming import ReadableFile
from ...errors import Misuse, Unavailable, Untrusted
from ..checker import check_ciphertext
from ..folder import MANIFEST_NAME, member_name
from ..models import FileEntry
from ..ports import ObjectSource
from .layout import BLOCK, named_manifest
from .ports import Upload
from .staging import disk_errors, staged, write_durably

__all__ = ["fetch_object", "read_full", "root_over", "send_member"]


def read_full(file: ReadableFile, out: memoryview) -> int:
    """Fill ``out`` as far as the file goes; returns how far. Raises Unavailable on an I/O error."""
    done = 0
    try:
        while done < len(out):
            n = file.readinto(out[done:])
            if not n:
                break
            done += n
    except OSError:
        raise Unavailable("storage.read", "A sealed file can't be read; check the storage and try again.") from None
    return done


def root_over(file: ReadableFile) -> bytes:
    """The root over a file's blocks, as the manifest has it."""
    root, block = RootHasher(), memoryview(bytearray(BLOCK))
    while n := read_full(file, block):
        root.add(block[:n])
    return root.root()


def send_member(file: ReadableFile, entry: FileEntry, upload: Upload) -> None:
    """Send one file. Finished only if what went out has the manifest's size and root; else nothing becomes visible.

    Raises Untrusted, and what ``upload`` raises; then the upload is aborted.
    """
    root, sent = RootHasher(), 0
    part = memoryview(bytearray(upload.part_size))  # a multiple of BLOCK
    try:
        while n := read_full(file, part):
            for start in range(0, n, BLOCK):
                root.add(part[start : min(n, start + BLOCK)])
            sent += n
            upload.write(bytes(part[:n]))
        if sent != entry.ciphertext_size or root.root() != entry.root:
            raise Untrusted(
                "sealed.root", "A sealed file is not the ciphertext that its manifest names; fetch it again."
            )
        upload.finish()
    except BaseException:
        upload.abort()
        raise


def fetch_object(source: ObjectSource, digest: bytes, dest: Path) -> None:
    """Copy an object into the new folder ``dest``: checked as a whole before it appears there.

    Raises Misuse (``dest`` exists), Untrusted, Malformed or Unavailable.
    """
    if os.path.lexists(dest):
        raise Misuse("sealed.exists", "The folder to write exists; a sealed object is never overwritten.")
    envelope, manifest = named_manifest(source, digest)
    with staged(dest) as folder:
        for index, entry in enumerate(manifest.files):
            with closing(source.open(member_name(index), entry.ciphertext_size)) as file:
                _write(file, folder / member_name(index), entry.ciphertext_size)
        write_durably(folder / MANIFEST_NAME, envelope.to_bytes())
        check_ciphertext(folder)  # what lies on this disk now, not what was seen passing by


def _write(file: ReadableFile, place: Path, size: int) -> None:
    block = memoryview(bytearray(4 * BLOCK))
    left = size
    with disk_errors():
        out = place.open("xb", buffering=0)
    with out:
        while left and (n := read_full(file, block[: min(left, len(block))])):
            with disk_errors():
                rest = block[:n]
                while rest:
                    rest = rest[out.write(rest) :]
            left -= n
        with disk_errors():
            os.fsync(out.fileno())
