"""Sealing: files in, one folder of ciphertext and a signed manifest out; all of it or nothing."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

from ..crypto import Envelope, random_bytes
from ..crypto.merkle import RootHasher
from ..crypto.streaming import StreamWriter
from ..errors import Internal, Misuse, Unavailable
from .binding import associated_data, dek_commitment, file_key
from .folder import MANIFEST_NAME, member_name, sync_folder
from .models import MANIFEST_TYPE, FileEntry, Manifest, SealIdentity
from .paths import PathSet

__all__ = ["Progress", "Sealed", "SignCallback", "seal_object"]

SignCallback = Callable[[str, bytes], Envelope]
Progress = Callable[[str, int], None]  # path, plaintext bytes of it so far
_CHUNK = 4 * 1024 * 1024


@dataclass(frozen=True)
class Sealed:
    """What was written: the manifest, its envelope, and the digest that names the asset (32 bytes)."""

    manifest: Manifest
    envelope: Envelope
    digest: bytes


def seal_object(
    files: Iterable[tuple[str, Path | BinaryIO]],
    dest: Path,
    *,
    dek: bytes,
    identity: SealIdentity,
    sign: SignCallback,
    terms: Mapping[str, Any],
    progress: Progress | None = None,
) -> Sealed:
    """Encrypt ``files`` under a fresh ``dek`` into the new folder ``dest``, in constant memory.

    ``sign`` gets (payload type, payload) and returns the envelope; the key may live in another process. ``dest``
    appears by one rename after everything is on disk: a crash at any moment leaves nothing under that name. A
    sealed object is never overwritten, since its digest names it: ``dest`` must not exist.

    A DEK must be fresh for every version: the associated data would keep files apart, but whoever was given the
    key of an old version must not be able to open a new one.

    Raises Misuse (``dest`` exists, a source can't be read), Malformed (paths, identity, terms), Unavailable
    (``storage.full``, ``storage.write``) or what ``sign`` raises; then the partial folder is removed.
    """
    if os.path.lexists(dest):
        raise Misuse(
            "sealed.exists", "The folder to write exists; a sealed object is never overwritten, so name another."
        )
    with _storage_errors():
        dest.parent.mkdir(parents=True, exist_ok=True)
    with _partial_folder(dest) as partial:
        commit = dek_commitment(dek, identity.asset_id, identity.version)
        entries = _write_files(files, partial, file_key(dek), identity, commit, progress)
        described = {f.name: getattr(identity, f.name) for f in fields(SealIdentity)}
        manifest = Manifest(**described, dek_commit=commit, files=tuple(entries), terms=dict(terms))
        payload = manifest.to_payload()
        Manifest.from_payload(payload)  # never sign what a reader would refuse
        envelope = sign(MANIFEST_TYPE, payload)
        if (envelope.payload_type, envelope.payload) != (MANIFEST_TYPE, payload) or not envelope.signatures:
            raise Internal("sealed.sign", "The signer returned another document than it was given; check the signer.")
        with _storage_errors():
            _write_durably(partial / MANIFEST_NAME, envelope.to_bytes())
            sync_folder(partial)
            _rename(partial, dest)
            sync_folder(dest.parent)
    return Sealed(manifest, envelope, envelope.digest)


def _write_files(
    files: Iterable[tuple[str, Path | BinaryIO]],
    folder: Path,
    key: bytes,
    identity: SealIdentity,
    commit: bytes,
    progress: Progress | None,
) -> list[FileEntry]:
    entries: list[FileEntry] = []
    paths = PathSet()
    buffer = memoryview(bytearray(_CHUNK))
    try:
        # Hashing takes longer than encrypting; on a thread of its own it costs no time.
        with ThreadPoolExecutor(max_workers=1) as lane:
            for index, (path, source) in enumerate(files):
                paths.add(path)  # before anything of it is read
                aad = associated_data(identity, commit, path, index)
                place = folder / member_name(index)
                entries.append(_write_file(path, source, place, key, aad, lane, buffer, progress))
    finally:
        buffer[:] = bytes(len(buffer))
    return entries


def _write_file(
    path: str,
    source: Path | BinaryIO,
    place: Path,
    key: bytes,
    aad: bytes,
    lane: ThreadPoolExecutor,
    buffer: memoryview,
    progress: Progress | None,
) -> FileEntry:
    root = RootHasher()
    with _storage_errors():
        file = place.open("xb", buffering=0)
    with file, StreamWriter(file, key, aad, observe=lambda _, block: lane.submit(root.add, block).result) as writer:
        for chunk in _chunks(source, buffer):
            with _storage_errors():
                writer.write(chunk)
            if progress is not None:
                progress(path, writer.plaintext_size)
        with _storage_errors():
            writer.close()
            os.fsync(file.fileno())
            size = file.tell()
    return FileEntry(path, writer.plaintext_size, size, root.root())


def _chunks(source: Path | BinaryIO, buffer: memoryview) -> Iterator[memoryview]:
    """What is in a source, piece by piece in the one buffer. A source that the caller opened stays open."""
    try:
        with open(source, "rb", buffering=0) if isinstance(source, Path) else nullcontext(source) as file:
            readinto = getattr(file, "readinto", None)
            while True:
                if readinto is not None:
                    n = readinto(buffer) or 0
                else:
                    data = file.read(len(buffer))
                    n = len(data)
                    buffer[:n] = data
                if n == 0:
                    return
                yield buffer[:n]
    except OSError:
        raise Misuse("sealed.source", "A file to seal can't be read; check that it exists and is readable.") from None


@contextmanager
def _partial_folder(dest: Path) -> Iterator[Path]:
    """A new folder beside ``dest``; removed again unless it was renamed.

    It is locked while it lives, so that the next writer can tell what a killed one left behind, and remove it.
    """
    with _storage_errors():
        for old in dest.parent.glob(f".{glob.escape(dest.name)}.*.partial"):
            _remove_abandoned(old)
        partial, lock = _new_locked(dest)
    try:
        yield partial
    finally:
        if partial.exists():
            shutil.rmtree(partial, ignore_errors=True)  # what can't be removed now, the next writer sweeps
        os.close(lock)


def _new_locked(dest: Path) -> tuple[Path, int]:
    while True:
        partial = dest.parent / f".{dest.name}.{random_bytes(8).hex()}.partial"
        partial.mkdir(mode=0o755)
        try:
            lock = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # another writer swept it before it was locked
        fcntl.flock(lock, fcntl.LOCK_EX)
        if partial.exists():
            return partial, lock
        os.close(lock)


def _remove_abandoned(partial: Path) -> None:
    try:
        lock = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # its writer finished just now
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(partial, ignore_errors=True)
    except BlockingIOError:
        return  # its writer is alive
    finally:
        os.close(lock)


def _rename(partial: Path, dest: Path) -> None:
    try:
        os.rename(partial, dest)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise Misuse("sealed.exists", "The folder to write exists by now; name another.") from None
        raise


def _write_durably(place: Path, data: bytes) -> None:
    with place.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _storage_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise Unavailable(
                "storage.full", "The storage is full; free space or choose another folder, then seal again."
            ) from None
        raise Unavailable("storage.write", "The sealed object can't be written; check the storage.") from None
